#!/usr/bin/env python3
"""Stands in for kubectl where there is no Kubernetes: records each call and answers from a table.

Beside it lie answers.json, a list of [pattern of the joined argv, exit code, stdout, stderr] of which the first match
counts, and calls.jsonl, which gets argv and standard input of each call. A call that matches nothing fails.
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(sys.argv[0]).parent


def main() -> int:
    argv = sys.argv[1:]
    stdin = "" if sys.stdin.isatty() else sys.stdin.read()
    with (HERE / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"argv": argv, "stdin": stdin}) + "\n")
    for pattern, code, stdout, stderr in json.loads((HERE / "answers.json").read_text()):
        if re.search(pattern, " ".join(argv)):
            print(stdout, end="")
            print(stderr, end="", file=sys.stderr)
            return int(code)
    print(f"fake kubectl: no answer for {argv}", file=sys.stderr)
    return 97


if __name__ == "__main__":
    sys.exit(main())
