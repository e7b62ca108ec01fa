"""Writes the objects: python -m monitoring.kubernetes FOLDER, for a checkout monitoring/kubernetes."""

import sys
from collections.abc import Sequence
from typing import Any

import yaml

from monitoring.file_folder import write_folder
from monitoring.kubernetes.objects import files


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, and equal parts again instead of a reference to the first."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that nothing is a reference."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def rendered(documents: Sequence[Any]) -> str:
    """Return documents as one YAML text."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write one file for each kind. Returns 2 when the folder cannot be written."""
    texts = {name: rendered(documents) for name, documents in files().items()}
    return write_folder(argv, "monitoring.kubernetes", (__doc__ or "").splitlines()[0], texts)


if __name__ == "__main__":
    sys.exit(main())
