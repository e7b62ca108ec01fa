"""Ranks as threads, a small state of many shapes, and bit flips: fixtures, as tests cannot import each other."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints_mgr import CheckpointError, CheckpointManager, FlatShard, Segment, State
from checkpoints_mgr.cli import main
from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.layout import VERIFIED
from launcher.contract.command_line import command_line
from support.command_lines import exit_code

DEADLINE_S = 60.0
WRITE_BYTES = 2000
SHARDED = ("ema", "adam_m", "adam_v")


@pytest.fixture(autouse=True)
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small states too take several writes for each file."""
    monkeypatch.setattr(storage, "WRITE_BYTES", WRITE_BYTES)


class ThreadRank:
    """A Communicator among threads, strict about values; a rank that dies breaks the barrier for the others."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank = rank
        self.world_size = world_size
        self._barrier = barrier
        self._slots = slots

    def barrier(self) -> None:
        self._barrier.wait(DEADLINE_S)

    def allgather_object(self, value: Any) -> list[Any]:
        self._slots[self.rank] = json.dumps(value)
        self.barrier()
        values = [json.loads(slot) for slot in self._slots]
        self.barrier()
        return values

    def all_gather_(self, values: Any, bounds: Any) -> None:
        assert (values.dtype, values.shape) == (np.float32, (bounds[-1],))
        own = values[bounds[self.rank] : bounds[self.rank + 1]]
        parts = self.allgather_object(own.tobytes().hex())
        values[:] = np.frombuffer(bytes.fromhex("".join(parts)), np.float32)

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """As JSON; a chunk of a file, an array at the end of a vote's result, crosses as a list."""
        if (
            isinstance(value, dict)
            and isinstance(value["result"], tuple)
            and isinstance(value["result"][-1], np.ndarray)
        ):
            start, chunk = value["result"]
            value = {**value, "result": [start, {"array": chunk.tolist()}]}
        found = self.allgather_object(value)[root]
        if isinstance(found, dict) and isinstance(found["result"], list) and isinstance(found["result"][-1], dict):
            found["result"][-1] = np.array(found["result"][-1]["array"], np.uint8)
        return found


def _run_ranks(world_size: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """work(comm) on every rank at once; returns results, or the exceptions raised, by rank."""
    barrier = threading.Barrier(world_size)
    slots: list[Any] = [None] * world_size

    def one(rank: int) -> Any:
        threading.current_thread().name = f"rank_{rank}"
        try:
            return work(ThreadRank(rank, world_size, barrier, slots))
        except BaseException as error:
            if not isinstance(error, Exception):
                barrier.abort()
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(one, range(world_size)))


def _make_state(seed: int) -> State:
    """Components model, ema, adam_m, adam_v, whole; odd shapes, a scalar, empty and non-contiguous tensors, dtypes."""
    generator = np.random.default_rng(seed)
    shapes = {"unet.out.2.weight": (5, 3, 3, 3), "unet.in.bias": (7,), "clip.table": (40, 16), "scale": ()}
    whole: dict[str, Any] = {
        f"{component}/{name}": np.asarray(generator.standard_normal(shape), np.float32)
        for component in ("model", *SHARDED)
        for name, shape in shapes.items()
    }
    whole["model/nan"] = np.array([np.nan, -0.0, np.inf], np.float32)
    whole["model/transposed"] = generator.standard_normal((6, 4)).astype(np.float32).T
    whole["model/empty"] = np.zeros((0, 3), np.float32)
    whole["model/half"] = generator.standard_normal(9).astype(np.float16)
    whole["model/count"] = generator.integers(0, 1 << 60, 3)
    whole["model/mask"] = generator.integers(0, 2, 5).astype(np.bool_)
    whole["model/big_endian"] = generator.standard_normal(4).astype(">f8")
    whole["adam_m/empty"] = np.zeros((2, 0), np.float32)
    progress = {"samples_seen": 16 * seed, "optimizer_steps": seed, "shards": [1, 2.5, None, "ü"]}
    return State(whole, progress, record={"recipe": {"seed": seed}})


def _sharded(state: State, rank: int, world_size: int) -> State:
    """The same, with this rank's range of each component but the model in one padded buffer; ranges cut anywhere, and
    with more ranks than elements or an uneven division some ranks have little or nothing."""
    shards = {}
    for component in SHARDED:
        named = {name.split("/", 1)[1]: array for name, array in state.whole.items() if name.startswith(component)}
        total = sum(array.size for array in named.values())
        bounds = [total * index**2 // world_size**2 for index in (rank, rank + 1)]
        values = np.full(bounds[1] - bounds[0] + 5, np.nan, np.float32)
        segments, start = [], 0
        for name, array in named.items():
            low, high = (min(max(bound - start, 0), array.size) for bound in bounds)
            if low < high:
                place = start + low - bounds[0] + 3  # padding before and after
                values[place : place + high - low] = array.reshape(-1)[low:high]
                segments.append(Segment(name, low, high, place))
            start += array.size
        shards[component] = FlatShard(values, {name: array.shape for name, array in named.items()}, segments)
    whole = {name: array for name, array in state.whole.items() if name.startswith("model")}
    return State(whole, state.progress, shards, state.record)


def _blank(state: State) -> State:
    """A template of the same form: arrays of another content, to be filled."""

    def other(array: Any) -> Any:
        return np.ones(array.shape, array.dtype.newbyteorder("="))

    shards = {name: FlatShard(other(each.values), each.shapes, each.segments) for name, each in state.shards.items()}
    return State({name: other(array) for name, array in state.whole.items()}, {}, shards)


def _restore(root: Path, step: int | str = "latest", comm: Any = None) -> Any:
    """A restore of everything, whole, by one process or a rank."""
    return CheckpointManager(root, comm).restore(_blank(_make_state(0)), step)


def _assert_same(found: State, expected: State) -> None:
    """Bit-equal values (NaN and -0.0 too), equal shapes and dtypes up to byte order, equal progress and record; of
    shards what their segments name."""
    assert (found.progress, found.record) == (expected.progress, expected.record)
    assert found.whole.keys() == expected.whole.keys()
    for name, tensor in expected.whole.items():
        little = tensor.astype(tensor.dtype.newbyteorder("<"))
        assert found.whole[name].dtype == little.dtype, name
        assert found.whole[name].shape == little.shape, name
        assert found.whole[name].tobytes() == little.tobytes(), name
    assert found.shards.keys() == expected.shards.keys()
    for name, shard in expected.shards.items():
        for each in shard.segments:
            part = slice(each.start, each.start + each.high - each.low)
            assert found.shards[name].values[part].tobytes() == shard.values[part].tobytes(), (name, each)


def _names(root: Path) -> list[str]:
    """Without the memory of what was verified, which is not a checkpoint's."""
    return sorted(path.name for path in root.iterdir() if not path.name.startswith(VERIFIED)) if root.exists() else []


def _flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power: which fsync is called, and when, is tested; its effect cannot be."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read of a file by any rank."""
    found: list[int] = []
    real = storage.Reader.read_into

    def counting(reader: Any, buffers: Any, offset: int) -> int:
        found.append(real(reader, buffers, offset))
        return found[-1]

    monkeypatch.setattr(storage.Reader, "read_into", counting)
    return found


@pytest.fixture
def two_steps(tmp_path: Path) -> Path:
    """A root with steps 10 (state 1) and 20 (state 2), written by two ranks."""
    root = tmp_path / "checkpoints"
    for step, seed in ((10, 1), (20, 2)):

        def work(comm: ThreadRank, step: int = step, seed: int = seed) -> Any:
            return CheckpointManager(root, comm).save(step, _sharded(_make_state(seed), comm.rank, 2))

        assert [result.step for result in _run_ranks(2, work)] == [step, step]
    return root


@pytest.fixture
def run_ranks() -> Callable[..., Any]:
    return _run_ranks


@pytest.fixture
def failpoint() -> Iterator[Callable[[Any], None]]:
    """Sets the hook of the file operations; none is left behind."""
    yield storage.set_failpoint
    storage.set_failpoint(None)


@pytest.fixture
def sharded() -> Callable[..., Any]:
    return _sharded


@pytest.fixture
def blank() -> Callable[..., Any]:
    return _blank


@pytest.fixture
def restore() -> Callable[..., Any]:
    return _restore


@pytest.fixture
def vpred_ckpt(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments: Any) -> tuple[Any, str, str]:
        code = exit_code(command_line(CheckpointError, prefix="vpred-ckpt: ")(main), *arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def make_state() -> Callable[..., Any]:
    return _make_state


@pytest.fixture
def assert_same() -> Callable[..., Any]:
    return _assert_same


@pytest.fixture
def names() -> Callable[..., Any]:
    return _names


@pytest.fixture
def flip_bit() -> Callable[..., Any]:
    return _flip_bit
