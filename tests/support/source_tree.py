"""The source of the packages as syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support import CHECKOUT

PACKAGES = ("checkpoints_mgr", "data", "launcher", "monitoring", "vpred_train")


def module_name(path: Path) -> str:
    """data/loader.py -> data.loader; data/__init__.py -> data."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Dotted module name and syntax tree of every file of the packages."""
    for package in PACKAGES:
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            yield module_name(path.relative_to(CHECKOUT)), ast.parse(path.read_text())
