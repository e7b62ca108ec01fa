"""The device engine on two ranks under msrun (MCCL) against the host engine on one."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints_mgr import CheckpointManager, State
from support import PROGRAMS
from support.device_engine import batches, same_bits, tensors, worst
from support.host_engine import host_state, host_step
from support.msrun import DEADLINE_S, msrun
from support.programs.device_rank import BAD, MORE, RECIPES, RESUMED, STEPS
from vpred_train.config.train import TrainConfig

RANK = PROGRAMS / "device_rank.py"
REPORT_BYTES = 64 + 8 * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def trained(folder: Path) -> list[dict[str, Any]]:
    """What two ranks print that train each recipe. The compiler's graphs lie in `ir`."""
    ir = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": str(folder / "ir"), "MS_DEV_DUMP_IR_PASSES": "validate"}
    os.environ |= ir
    try:
        return lines_of(*msrun(2, [str(RANK), "train", str(folder)], folder, deadline_s=2 * DEADLINE_S))
    finally:
        for name in ir:
            del os.environ[name]


def lines_of(code: int, logs: list[str]) -> list[dict[str, Any]]:
    assert code == 0, "\n".join(logs)[-4000:]
    return [json.loads(line) for log in logs for line in log.splitlines() if line.startswith('{"recipe"')]


class HostRun:
    """The host engine on one rank: its results on the same batches, and its states after each step."""

    def __init__(self, config: TrainConfig) -> None:
        from vpred_train.models.networks import Networks

        self.step = host_step(config, Networks(config.model, config.seed))
        self.results, self.states = [], {}
        for number, whole in enumerate(batches(config, STEPS, BAD)):
            self.results.append(self.step(whole))
            self.states[number + 1] = {name: values.copy() for name, values in self.state.whole.items()}

    @property
    def state(self) -> State:
        state: State = self.step.state.to_checkpoint()
        return state


@pytest.fixture(scope="module")
def hosts() -> dict[str, HostRun]:
    """A run for each optimiser: on one rank neither sharding nor accumulation changes more than rounding."""
    configs = {each.optimizer.name: each for each in RECIPES.values()}
    return {name: HostRun(each.model_copy(update={"gradient_accumulation_steps": 1})) for name, each in configs.items()}


@pytest.mark.parametrize("name", list(RECIPES))
def test_two_ranks_train_as_the_host_engine_on_one(
    trained: list[dict[str, Any]], hosts: dict[str, HostRun], name: str, folder: Path
) -> None:
    run = hosts[RECIPES[name].optimizer.name]
    mine = [line for line in trained if line["recipe"] == name and line["step"] < STEPS]
    assert len(mine) == 2 * STEPS
    for line in mine:
        expected = run.results[line["step"]]
        assert line["finite"] is expected.finite is (line["step"] != BAD)
        assert line["unchanged"] is not expected.finite
        assert line["to_host_bytes"] <= REPORT_BYTES or not expected.finite
        if expected.finite:
            assert line["loss"] == pytest.approx(expected.loss, rel=1e-6)
            assert line["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-5)
        assert line["blamed"] == ({} if expected.finite else {"1": [2, 3]})
    for step in (2, STEPS):
        restored = CheckpointManager(folder / name).restore(run.state, step)  # onto one rank of the host engine
        assert restored is not None
        assert worst(tensors(restored.state, run.step.state.space), run.states[step]) < 1e-5
        assert restored.state.progress["optimizer_steps"] == (step if step <= BAD else step - 1)


def test_a_run_goes_from_two_ranks_to_one_and_back_with_cached_graphs(
    trained: list[dict[str, Any]], folder: Path
) -> None:
    """2 -> 1 -> 2 ranks, by way of the host engine: the bits stay, and the next steps are those of the first job."""
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.models.networks import Networks

    config = RECIPES[RESUMED]
    one_rank = host_state(config, FlatSpace(Networks(config.model, 1), config.trainable))
    first = CheckpointManager(folder / RESUMED).restore(one_rank.to_checkpoint(), STEPS)
    assert first is not None
    one_rank.from_checkpoint(first.state)
    CheckpointManager(folder / "one_rank").save(STEPS, one_rank.to_checkpoint())
    expected = {name: values.copy() for name, values in one_rank.to_checkpoint().whole.items()}

    code, logs = msrun(2, [str(RANK), "resume", str(folder)], folder)
    lines = lines_of(code, logs)
    assert all("compiled graph taken from" in log for log in logs)
    again = CheckpointManager(folder / "again").restore(one_rank.to_checkpoint(), STEPS)
    assert again is not None
    assert same_bits(dict(again.state.whole), expected)
    before = [line for line in trained if line["recipe"] == RESUMED and line["step"] >= STEPS]
    assert sorted(map(key_of, lines)) == sorted(map(key_of, before))
    assert len(lines) == 2 * MORE


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["rank"], line["step"], line["loss"], line["grad_norm"], line["finite"]


def test_collectives_are_inside_the_graph_and_weights_are_not_copied(
    trained: list[dict[str, Any]], folder: Path
) -> None:
    """One graph of the sharded recipe has a sum of each bucket and of the norm, a gather of each and of the votes."""
    from support.device_engine import BUCKET_ELEMENTS
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.device.buckets import make_buckets
    from vpred_train.models.networks import Networks

    config = RECIPES[RESUMED]
    buckets = make_buckets(FlatSpace(Networks(config.model, 0), config.trainable).spans, 2, BUCKET_ELEMENTS)
    assert len(buckets) > 4
    counts = []
    for path in sorted((folder / "ir").rglob("*validate*.ir")):
        text = path.read_text()
        counts.append([len(re.findall(rf"= {name}\(", text)) for name in ("AllReduce", "AllGather", "TensorMove")])
    n = len(buckets)
    assert [n + 1, n + 1, 0] in counts  # one graph
    assert np.array(counts)[:, 2].max() == 0
