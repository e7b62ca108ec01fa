"""The source of the packages as syntax trees."""

import ast
from functools import cache
from pathlib import Path

from support import CHECKOUT

PACKAGES = ("checkpoints_mgr", "data", "launcher", "monitoring", "vpred_train")


def module_name(path: Path) -> str:
    """data/loader.py -> data.loader; data/__init__.py -> data."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    """Dotted module name and syntax tree of every file of the packages; parsed once, not to be changed."""
    paths = (path for package in PACKAGES for path in sorted((CHECKOUT / package).rglob("*.py")))
    return tuple((module_name(path.relative_to(CHECKOUT)), ast.parse(path.read_text())) for path in paths)
