"""The memory plan against the arrays that networks and training state really hold."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import CHECKOUT
from support.command_lines import exit_code
from support.host_engine import host_state
from support.weights_files import MODEL as NARROW
from support.weights_files import write_tiny
from vpred_train.commands.train import main
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import LoraConfig
from vpred_train.distributed.collectives import PIECE_ELEMENTS, SingleProcess
from vpred_train.estimates.memory import memory_plan, memory_plans, table

RECIPES = CHECKOUT / "vpred_train" / "recipes"
SD2 = ["--recipe", str(RECIPES / "sd2_768_v.yaml"), "data.path=none", "pretrained.path=none"]


class OneOf(SingleProcess):
    """A rank that never talks."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


@functools.cache
def networks_of(lora: LoraConfig | None) -> Any:
    """Built once for all tests."""
    from vpred_train.models.lora import add_lora
    from vpred_train.models.networks import Networks

    networks = Networks(NARROW, 0)
    if lora:
        add_lora(networks, lora, NARROW, ("unet", "text_encoder"), 0)
    return networks


def bytes_by_kind(config: TrainConfig, world_size: int) -> dict[str, int]:
    """What the ranks allocate, the most of any rank."""
    from vpred_train.distributed.flat_space import FlatSpace

    networks = networks_of(config.lora)
    space = FlatSpace(networks, config.trainable)
    found: dict[str, int] = {}
    for rank in range(world_size):
        state = host_state(config, space, OneOf(rank, world_size))
        arrays = {
            "weights": state.weights,
            **state.optimizer.moments,
            **{f"average {name}": values for name, values in state.averages.items()},
        }
        if world_size > 1 and config.zero_stage:
            arrays["collective buffers"] = np.empty(PIECE_ELEMENTS, np.float32)  # what comes from another rank
        for kind, values in arrays.items():
            found[kind] = max(found.get(kind, 0), values.nbytes)
    found["gradients"] = sum(parameter.nbytes for parameter in space.parameters)
    everything = sum(parameter.nbytes for parameter in networks.get_parameters())
    return {**found, "frozen weights": everything - found["gradients"]}


def narrow(**keys: Any) -> TrainConfig:
    document = {
        "total_samples": 64,
        "global_batch": 16,
        "data": {"path": ".", "resolution": 16},
        "model": NARROW,
        "pretrained": {"path": "."},
        "optimizer": {"learning_rate": 1e-3},
        "ema": {"profiles": ["mindone", "power"]},
        "checkpoint": {"every_samples": 16},
    }
    return TrainConfig.model_validate(document | keys)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"zero_stage": 0},
        {"lora": LoraConfig(rank=2), "trainable": ["unet", "text_encoder"]},
        {"optimizer": {"name": "sgd", "learning_rate": 1, "momentum": 0.9}},
        {"optimizer": {"name": "sgd", "learning_rate": 1}},
    ],
    ids=["zero", "replicated", "lora", "momentum", "sgd"],
)
def test_the_plan_is_what_a_rank_allocates(keys: dict[str, Any], world_size: int) -> None:
    config = narrow(**keys)
    plan = memory_plan(config, world_size)
    assert {item.kind: item.nbytes for item in plan.items} == bytes_by_kind(config, world_size)
    assert {item.place for item in plan.items} == {"host"}


def test_micro_batches_hold_a_second_gradient_and_a_device_its_own_weights() -> None:
    config = narrow(gradient_accumulation_steps=2)
    once, twice = memory_plan(narrow(), 2), memory_plan(config, 2)
    assert twice.total_bytes() - once.total_bytes() == 4 * once.learning
    on_device = memory_plan(narrow(), 2, "ascend", "host")
    frozen = 4 * once.frozen
    assert on_device.total_bytes("host") == once.total_bytes("host") - frozen
    assert on_device.total_bytes("device") == frozen + 2 * 4 * once.learning


def test_stable_diffusion_over_many_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, *SD2, "--memory-plan", "--json") == 0
    plans = json.loads(capsys.readouterr().out)
    assert [(plan["zero_stage"], plan["world_size"]) for plan in plans] == [(1, 8), (1, 64), (1, 512), (0, 512)]
    unet, others = 865_910_724, 83_653_863 + 340_387_840
    for plan, sharded_over in zip(plans, (8, 64, 512, 1), strict=True):
        found = {item["kind"]: item["nbytes"] for item in plan["items"]}
        assert (found["frozen weights"], found["weights"], found["gradients"]) == (4 * others, 4 * unet, 4 * unet)
        assert found["adam_m"] == found["adam_v"] == found["average mindone"] == 4 * -(-unet // sharded_over)
        assert plan["total_bytes"] == {"host": sum(found.values())}
        assert "activations" in plan["not_counted"]


@pytest.mark.parametrize(
    ("world_size", "profiles", "static_gb", "peak_gb"),
    [(1, "mindone", 17.3, 20.9), (8, "mindone", 5.2, 8.8), (8, "mindone,constant", 5.6, 9.2)],
)
def test_stable_diffusion_on_engine_device(
    world_size: int, profiles: str, static_gb: float, peak_gb: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the 865.9 M parameters that learn: 4 bytes of weights, 4 of gradients, and (12 + 4 E) / W.

    The figures were worked out by hand, and are rounded as there. The peak has a bucket of 128 MiB more.
    """
    options = ["--memory-plan", "--json", "--accelerator", "ascend", "--world-sizes", str(world_size)]
    assert main([*options, *SD2, f"ema.profiles=[{profiles}]"]) == 0
    plan = json.loads(capsys.readouterr().out)[0]
    found = {item["kind"]: item["nbytes"] for item in plan["items"] if item["place"] == "device"}
    hccl = found.pop("HCCL buffers", 0)
    assert hccl == (400_000_000 if world_size > 1 else 0)
    peak = sum(found.values()) - found["frozen weights"]
    assert round(peak / 1e9, 1) == peak_gb
    assert round((peak - found["gradients"] - found["a bucket of gradients"]) / 1e9, 1) == static_gb
    kept = [name for name in found if name.startswith(("master", "adam", "average"))]
    assert len(kept) == 3 + len(profiles.split(","))
    shard = 4 * 865_910_724 / world_size
    assert all(shard <= found[name] <= shard + 100 * 4 * 128 for name in kept)  # 35 buckets, padded by 128 elements
    assert plan["total_bytes"]["host"] == sum(found[name] for name in kept)


def test_engine_device_holds_sums_of_micro_batches_and_whole_state_without_sharding() -> None:
    once = memory_plan(narrow(), 2, "ascend")
    twice = memory_plan(narrow(gradient_accumulation_steps=2), 2, "ascend")
    assert twice.total_bytes("device") - once.total_bytes("device") == 4 * once.learning
    unsharded = {item.kind: item.nbytes for item in memory_plan(narrow(zero_stage=0), 4, "ascend").items}
    assert unsharded["master weights"] == unsharded["average mindone"] == 4 * once.learning
    assert unsharded["copy for a checkpoint"] == (3 + len(narrow().ema.names)) * 4 * once.learning


def test_engine_device_on_cpu_takes_the_memory_of_the_host() -> None:
    plan = memory_plan(narrow(), 2, "cpu", "device")
    assert plan.places == ("host",)
    assert {item.kind for item in plan.items} >= {"master weights", "adam_v"}
    assert "HCCL buffers" not in {item.kind for item in plan.items}


def test_the_table_shows_each_kind_once() -> None:
    lines = table(memory_plans(narrow(), [2, 4], "ascend", "host")).splitlines()
    assert lines[1].split() == ["zero_stage", "1", "on", "2", "ranks", "4", "ranks", "zero_stage", "0"]
    names = [line[:28].strip() for line in lines[2:-1]]
    assert len(set(names)) == len(names)
    (buffers,) = (line for line in lines if line.startswith("collective buffers"))
    assert buffers.split()[2:] == ["2.1", "2.1", "-"]
    assert lines[-1].startswith("not counted: activations")


def test_weights_that_are_there_tell_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(tmp_path / "published", "diffusers")
    weights = f"pretrained.path={tmp_path / 'published'}"
    assert exit_code(main, *SD2, weights, "--memory-plan", "--world-sizes", "2", "--json") == 0
    plan = json.loads(capsys.readouterr().out)[0]
    assert plan["learning"] + plan["frozen"] < 5_000_000


@pytest.mark.parametrize("arguments", [["--memory-plan", "--world-sizes", "8,0"], ["--json"]])
def test_what_makes_no_plan(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, *SD2, *arguments) == 2
    assert arguments[0 if arguments == ["--json"] else 1] in capsys.readouterr().err
