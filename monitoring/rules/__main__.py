"""Writes the rules: python -m monitoring.rules FILE, for a checkout monitoring/stack/rules/vpred.yml."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from monitoring.rules.alerts import ALERTS, Alert
from monitoring.rules.durations import expression, shortened
from monitoring.rules.recording import RECORDING

RUNBOOKS = "docs/operations/alerts.md"


def groups(faster: float = 1, runbooks: str = RUNBOOKS) -> dict[str, Any]:
    """Return the document of a rules file.

    faster: factor by which all durations are shorter than written, for tests
    runbooks: address of the page that has a heading for each alert
    """
    recording = [{"record": name, "expr": expression(expr, faster)} for name, expr in RECORDING.items()]
    return {
        "groups": [
            {"name": "vpred-recording", "interval": shortened("30s", faster), "rules": recording},
            {"name": "vpred-alerts", "rules": [_alert(alert, faster, runbooks) for alert in ALERTS]},
        ]
    }


def _alert(alert: Alert, faster: float, runbooks: str) -> dict[str, Any]:
    lasting = {} if alert.lasting is None else {"for": shortened(alert.lasting, faster)}
    return {
        "alert": alert.name,
        "expr": expression(alert.expr, faster),
        **lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook_url": f"{runbooks}#{alert.name.lower()}"},
    }


def rendered(document: Any) -> str:
    """Return a document as YAML, in its order."""
    return yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the rules file. Returns 2 when it cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.rules", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="the rules file")
    parser.add_argument("--runbooks", default=RUNBOOKS, help="address of the alerts' page, the base of runbook_url")
    arguments = parser.parse_args(argv)
    try:
        arguments.file.write_text(rendered(groups(runbooks=arguments.runbooks)), encoding="utf-8")
    except OSError as error:
        print(f"{arguments.file}: cannot be written ({error.strerror}); name another file", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
