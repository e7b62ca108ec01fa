"""Runs kubectl, whose own configuration says which cluster and which user, and explains its refusals."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence

from launcher.contract.config import ConfigError
from launcher.submit.pods import Document

CREATE = ("create", "-f", "-")
_TIMEOUT_S = 120.0
# Words in kubectl's message -> the key that they are about, and a remedy. The first match counts.
_KEYS = (
    (r'no matches for kind "PodMonitor"', "submit.kubernetes.pod_monitor", "the cluster has no Prometheus operator"),
    (r"no matches for kind", "submit.kubernetes.workload", "the cluster lacks its controller; take another workload"),
    (r"namespaces? \S+ not found", "submit.kubernetes.namespace", "name one in which you may create jobs"),
    (r"exceeded quota", "submit.nodes", "ask for less, or for a larger quota"),
    (r"[Qq]ueue", "submit.kubernetes.queue", "name a queue of the cluster"),
    (r"connection refused|no such host|i/o timeout|Unable to connect", "kubectl", "try `kubectl version`"),
    (r"[Uu]nauthorized|must be logged in|[Ff]orbidden", "kubectl", "log in, or ask for the right to create jobs"),
)
_SHOWN_LETTERS = 300


class NotFoundError(ConfigError):
    """Reports that an object does not exist."""


def kubectl(namespace: str, *words: str, objects: Sequence[Document] = (), timeout_s: float = _TIMEOUT_S) -> str:
    """Run kubectl with `words` in `namespace`, "" for the one of its context. Returns its output.

    objects: handed to it in JSON, since kubectl reads some texts of YAML as numbers

    Raises ConfigError: when kubectl is missing, does not answer or refuses; NotFoundError: when an object is missing.
    """
    program = shutil.which("kubectl")
    if program is None:
        raise ConfigError("kubectl: found none on PATH", "install it, or use a machine that has it")
    where = ("--namespace", namespace) if namespace else ()
    one = objects[0] if len(objects) == 1 else {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    try:
        answer = subprocess.run(
            [program, *where, *words],
            input=json.dumps(one) if objects else "",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"kubectl {words[0]}: no answer in {timeout_s:.0f} s", "try `kubectl version`") from None
    if answer.returncode != 0:
        raise _refusal(words[0], answer.stderr)
    return answer.stdout


def _refusal(command: str, stderr: str) -> ConfigError:
    """Return the error of one line that names our key."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["it gave no reason"]
    said = " ".join(lines)[:_SHOWN_LETTERS]
    if "(NotFound)" in stderr:
        return NotFoundError(f"kubectl {command}: {said}")
    for pattern, key, remedy in _KEYS:
        if re.search(pattern, stderr):
            return ConfigError(f"{key}: kubectl {command}: {said}", remedy)
    return ConfigError(f"kubectl {command}: {said}", "correct what it names")
