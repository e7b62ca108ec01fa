"""The compiled training graph, kept in the run directory, so that a restart need not compile it again.

MindSpore numbers a process's graphs in the order of their compilation and takes the cached one of that number, whatever
it computes; of the sources it looks only at some, and the folder it asks for once in a process. So one graph alone is
cached, under a key of all that it depends on: others would have to be compiled in the same order at each start.
"""

import hashlib
import importlib.metadata
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash
from mindspore import nn

from launcher.contract.files import beside, write_atomic
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.kernels import library

logger = logging.getLogger(__name__)

DIGEST = "xxh3"
PACKAGE = Path(__file__).parents[1]  # every room: the graph depends on the networks' code too


class CachedGraph:
    """`cell`, whose graph for the first inputs is read from `folder` or left there; those of other shapes, such as
    aspect buckets give, are compiled anew in each process.

    `folder` is this rank's own; it holds one entry, whose name is the key. The cell's parameters must lie in it as
    members, or MindSpore gives a graph that it reads fresh memory for them.
    """

    def __init__(self, cell: nn.Cell, config: TrainConfig, folder: Path) -> None:
        self.cell, self.config, self.folder = cell, config, folder
        self.ready = False

    def __call__(self, *inputs: Any) -> Any:
        if self.ready:
            return self.cell(*inputs)
        for name, parameter in self.cell.parameters_and_names():
            parameter.name = name  # a read graph finds its parameters by it; unlike MindSpore's it has no history
        entry = self.folder / graph_key(self.config, self.cell, inputs)
        if is_sound(entry):
            logger.info("compiled graph taken from %s", entry)
            with runtime.compile_cache(entry):
                self.cell.compile(*inputs)
        else:
            self._compile_into(entry, *inputs)
        runtime.give_back_memory()
        self.ready = True
        return self.cell(*inputs)

    def _compile_into(self, entry: Path, *inputs: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of other code, other ranks or damaged
        aside = beside(entry)
        aside.mkdir(parents=True)
        with runtime.compile_cache(aside):
            self.cell.compile(*inputs)
        write_atomic(aside / DIGEST, digest_of(files_in(aside)))
        aside.rename(entry)


def graph_key(config: TrainConfig, cell: nn.Cell, inputs: Iterable[Any]) -> str:
    """What a graph depends on, as 32 hexadecimal digits: this package's code, MindSpore, the compiled operations, the
    recipe, and names, shapes and types of parameters and inputs."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)} {digest_of([path])}\n".encode())
    parameters = [(each.name, each.shape, each.dtype, each.requires_grad) for each in cell.get_parameters()]
    shapes = [(each.shape, each.dtype) for each in inputs]
    version = importlib.metadata.version("mindspore")
    digest.update(repr((version, library.loaded(), config.model_dump_json(), parameters, shapes)).encode())
    return digest.hexdigest()[:32]


def is_sound(entry: Path) -> bool:
    """Whether `entry` holds what was written."""
    recorded = entry / DIGEST
    return recorded.is_file() and recorded.read_text() == digest_of(files_in(entry))


def files_in(entry: Path) -> list[Path]:
    """MindSpore's files, in a fixed order."""
    return [path for path in sorted(entry.rglob("*")) if path.is_file() and path != entry / DIGEST]


def digest_of(paths: Iterable[Path]) -> str:
    """xxh3-128, hexadecimal, of the files one after the other."""
    digest = xxhash.xxh3_128()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
