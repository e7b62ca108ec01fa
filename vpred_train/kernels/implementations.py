"""Keeps which implementation the networks take for each kind of operation. The accelerator's table names them.

Layers read it while they are built. The compiled operations (`library`), where they are loaded, come first in float32.
"""

from launcher.contract.accelerators import ACCELERATORS, Operations

_chosen = ACCELERATORS["cpu"].operations


def choose(operations: Operations) -> None:
    """Let layers that are built from now on take these implementations."""
    global _chosen
    _chosen = operations


def chosen() -> Operations:
    """Return the implementations that layers take."""
    return _chosen
