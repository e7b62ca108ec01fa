"""Keeps the compiled training graph in the run directory, so that a restart need not compile it again.

MindSpore numbers a process's graphs in the order of their compilation. It takes the cached graph of that number,
whatever it computes. It checks only some of the sources, and reads the folder's setting once in a process. So only one
graph is cached, under a key of all that it depends on. More graphs would need the same compilation order at each start.
"""

import hashlib
import importlib.metadata
import logging
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from mindspore import nn

from launcher.contract.files import beside, write_atomic
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.kernels import implementations, library

logger = logging.getLogger(__name__)

DIGEST = "xxh3"
PACKAGE = Path(__file__).parents[1]  # the full package: the graph depends on the networks' code too


@dataclass
class Compilations:
    """Counts the training graphs of this process.

    seconds: time to compile them, or to read them from the cache
    cache_hits: graphs that were read from the cache
    """

    seconds: float = 0.0
    cache_hits: int = 0


COMPILATIONS = Compilations()


class CachedGraph:
    """Calls `cell`, whose graph for the first inputs is read from `folder` or stored there.

    Graphs of other shapes, such as those of aspect buckets, are compiled again in each process. COMPILATIONS counts
    all of them.

    cell: its parameters must be its members; otherwise MindSpore allocates fresh memory for them in a cached graph
    folder: belongs to this rank alone; it holds one entry, whose name is the key. None stores no graph
    """

    def __init__(self, cell: nn.Cell, config: TrainConfig, folder: Path | None) -> None:
        self.cell, self.config, self.folder = cell, config, folder
        self.compiled: set[tuple[Any, ...]] = set()

    def __call__(self, *inputs: Any) -> Any:
        shapes = tuple((each.shape, each.dtype) for each in inputs)
        if shapes not in self.compiled:
            started = time.perf_counter()
            if self.folder is None or self.compiled:
                self.cell.compile(*inputs)
            else:
                self._take_or_compile(self.folder, *inputs)
            COMPILATIONS.seconds += time.perf_counter() - started
            self.compiled.add(shapes)
            runtime.give_back_memory()
        return self.cell(*inputs)

    def _take_or_compile(self, folder: Path, *inputs: Any) -> None:
        for name, parameter in self.cell.parameters_and_names():
            parameter.name = name  # a cached graph finds its parameters by name; MindSpore's names depend on history
        entry = folder / graph_key(self.config, self.cell, inputs)
        if is_sound(entry):
            logger.info("compiled graph taken from %s", entry)
            with runtime.compile_cache(entry):
                self.cell.compile(*inputs)
            COMPILATIONS.cache_hits += 1
        else:
            self._compile_into(entry, *inputs)

    def _compile_into(self, entry: Path, *inputs: Any) -> None:
        shutil.rmtree(entry.parent, ignore_errors=True)  # an entry there is of other code or other ranks, or damaged
        aside = beside(entry)
        aside.mkdir(parents=True)
        with runtime.compile_cache(aside):
            self.cell.compile(*inputs)
        write_atomic(aside / DIGEST, digest_of(files_in(aside)))
        aside.rename(entry)


def graph_key(config: TrainConfig, cell: nn.Cell, inputs: Iterable[Any]) -> str:
    """Return a digest, 32 hexadecimal digits, of all that a graph depends on.

    This is the package's code, MindSpore's version, the chosen operations, the recipe, and the names, shapes and types
    of parameters and inputs.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)} {digest_of([path])}\n".encode())
    parameters = [(each.name, each.shape, each.dtype, each.requires_grad) for each in cell.get_parameters()]
    shapes = [(each.shape, each.dtype) for each in inputs]
    version = importlib.metadata.version("mindspore")
    digest.update(
        repr(
            (version, library.loaded(), implementations.chosen(), config.model_dump_json(), parameters, shapes)
        ).encode()
    )
    return digest.hexdigest()[:32]


def is_sound(entry: Path) -> bool:
    """Return whether the files of `entry` still match the digest written with them."""
    recorded = entry / DIGEST
    return recorded.is_file() and recorded.read_text() == digest_of(files_in(entry))


def files_in(entry: Path) -> list[Path]:
    """List MindSpore's files in a fixed order."""
    return [path for path in sorted(entry.rglob("*")) if path.is_file() and path != entry / DIGEST]


def digest_of(paths: Iterable[Path]) -> str:
    """Return the xxh3-128 digest, hexadecimal, of the concatenated files."""
    digest = xxhash.xxh3_128()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
