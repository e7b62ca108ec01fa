"""Keeps the compiled training graphs in the run directory, so that a restart need not compile them again.

MindSpore numbers the graphs that a process compiles with the cache, and takes the cached graph of that number, whatever
it computes. It checks only some of the sources, and reads the folder's setting once in a process. So all graphs of a
step are compiled together, in a fixed order, under one key of all that they depend on. Other graphs are not cached.
"""

import hashlib
import importlib.metadata
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    """Counts what this process's training graphs took before their first run.

    seconds: time to compile them, or to read them from the cache
    cache_hits: graphs that were read from the cache
    """

    seconds: float = 0.0
    cache_hits: int = 0


compilations = Compilations()

Graph = tuple[nn.Cell, Sequence[Any]]  # a cell, and inputs of the shapes for which it is compiled


class CachedGraph:
    """Calls `cell`, whose graph for the first inputs is read from `folder` or stored there.

    Graphs of other shapes, such as those of aspect buckets, are compiled again in each process.
    """

    def __init__(self, cell: nn.Cell, config: TrainConfig, folder: Path | None) -> None:
        self.cell, self.config, self.folder = cell, config, folder
        self.compiled: set[tuple[Any, ...]] = set()

    def __call__(self, *inputs: Any) -> Any:
        shapes = tuple((each.shape, each.dtype) for each in inputs)
        if shapes not in self.compiled:
            with counted_compilation():
                if self.folder is None or self.compiled:
                    self.cell.compile(*inputs)
                else:
                    compile_cached([(self.cell, inputs)], self.config, self.folder)
            self.compiled.add(shapes)
        return self.cell(*inputs)


@contextmanager
def counted_compilation() -> Iterator[None]:
    """Add the time of the `with` block to `compilations`."""
    started_s = time.perf_counter()
    yield
    compilations.seconds += time.perf_counter() - started_s


def compile_cached(graphs: Sequence[Graph], config: TrainConfig, folder: Path, facts: Sequence[object] = ()) -> None:
    """Read the graphs of a step from `folder`, or compile and store them there. Call it once in a process.

    graphs: each cell's parameters must be its members; otherwise MindSpore allocates fresh memory for them in a cached
    graph
    folder: belongs to this rank alone; it holds one entry, whose name is the key
    facts: what else the graphs depend on, such as the number of ranks
    """
    named: set[int] = set()
    for cell, _ in graphs:
        for name, parameter in cell.parameters_and_names():
            if id(parameter) not in named:  # a cached graph finds its parameters by name, and cells may share them
                parameter.name = name  # MindSpore's names depend on history
                named.add(id(parameter))
    entry = folder / graph_key(config, graphs, facts)
    if is_sound(entry):
        logger.info("compiled graph taken from %s", entry)
        _compile(graphs, entry)
        compilations.cache_hits += len(graphs)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # an entry there is of other code or other ranks, or damaged
        aside = beside(entry)
        aside.mkdir(parents=True)
        _compile(graphs, aside)
        write_atomic(aside / DIGEST, digest_of(files_in(aside)))
        aside.rename(entry)
    runtime.give_back_memory()


def _compile(graphs: Sequence[Graph], entry: Path) -> None:
    with runtime.compile_cache(entry):
        for cell, inputs in graphs:
            cell.compile(*inputs)


def graph_key(config: TrainConfig, graphs: Sequence[Graph], facts: Sequence[object] = ()) -> str:
    """Return a digest, 32 hexadecimal digits, of all that the graphs depend on.

    This is the package's code, MindSpore's version, the chosen operations, the recipe, `facts`, and the names, shapes
    and types of parameters and inputs.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)} {digest_of([path])}\n".encode())
    for cell, inputs in graphs:
        parameters = [(each.name, each.shape, each.dtype, each.requires_grad) for each in cell.get_parameters()]
        shapes = [(each.shape, each.dtype) for each in inputs]
        digest.update(repr((type(cell).__name__, parameters, shapes)).encode())
    version = importlib.metadata.version("mindspore")
    digest.update(
        repr((version, library.loaded(), implementations.chosen(), config.model_dump_json(), *facts)).encode()
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
