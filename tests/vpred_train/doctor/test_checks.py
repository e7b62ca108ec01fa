"""The doctor's other checks, each with a right and a wrong machine played in this process."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.doctor_record import CheckResult, DoctorRecord
from launcher.contract.identity import Identity
from launcher.contract.run_dir import RunDir
from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.doctor import exchanges, fused, machine, memory, one_step, speeds
from vpred_train.doctor.check import Item, Measured
from vpred_train.doctor.station import Station
from vpred_train.doctor.table import AFTER_RESTART, CHECKS
from vpred_train.kernels import implementations, library, operations
from vpred_train.models.layers import GroupNorm
from vpred_train.prepare.recipe import load_recipe

RECIPES = sorted((Path(one_step.__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.fixture
def station(train_config: TrainConfig, tmp_path: Path) -> Station:
    """This process as the only rank."""
    return made(train_config, tmp_path)


def made(config: TrainConfig, folder: Path, before: DoctorRecord | None = None) -> Station:
    cpu = ACCELERATORS["cpu"]
    config = config.model_copy(update={"precision": config.precision.on(cpu)})
    recorder: Any = None
    identity = Identity(0, 1, 0, 1, "here", "none")
    return Station(config, cpu, identity, 0, SingleProcess(), "mpi4py", RunDir(folder), recorder, 1.0, before)


def test_the_table_has_every_check_in_order() -> None:
    assert list(CHECKS) == [
        *("versions", "start", "number formats", "operations", "extreme shapes", "fused operations"),
        *("speed", "collectives", "training step", "memory"),
    ]
    assert list(AFTER_RESTART) == ["restart"]
    assert [name for name, check in CHECKS.items() if check.collective] == ["collectives", "training step"]


def test_items_have_names_that_differ(station: Station) -> None:
    for name, check in CHECKS.items():
        subjects = [item.subject for item in check.items_of(station)]
        assert len(set(subjects)) == len(subjects) > 0, name


def test_ranks_share_items_without_gap_or_overlap(station: Station) -> None:
    every = [item.subject for item in CHECKS["operations"].items(station)]
    shares = []
    for rank in range(3):
        other = replace(station, identity=Identity(rank, 3, rank, 3, "here", "none"))
        shares.append([item.subject for item in CHECKS["operations"].items_of(other)])
    assert sorted(chain(*shares)) == sorted(every)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_figure_that_is_no_number_is_left_out_of_the_record() -> None:
    result = Item("x", lambda: Measured("")).result("check", Measured("x", "failed", figure=float("nan")))
    assert result.figure is None and result.verdict == "failed"


def test_the_number_formats_of_this_machine_pass(station: Station) -> None:
    found = {item.subject: item.measure().verdict for item in machine.formats(station)}
    assert list(found.values()) == ["ok", "left_out", "ok", "ok"]


def test_a_product_in_hf32_loses_a_bit() -> None:
    """HF32 keeps 11 bits of the mantissa."""

    def hf32(x: FloatArray) -> FloatArray:
        bits = x.view(np.uint32) + np.uint32(1 << 11)
        return (bits & ~np.uint32((1 << 12) - 1)).view(np.float32)

    assert machine.keeps_bits(hf32).verdict == "failed"
    assert machine.keeps_bits(lambda x: x).verdict == "ok"


def test_float16_that_saturates_is_found(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.runtime, "float16_saturates", lambda: True)
    assert machine.overflow(station).verdict == "failed"


def test_another_mindspore_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.packages().verdict == "ok"
    monkeypatch.setattr(machine, "_version", lambda package: "2.9.0")
    measured = machine.packages()
    assert measured.verdict == "failed" and "mindspore 2.9.0" in measured.same


def test_fused_operations_agree_with_plain_ones(station: Station) -> None:
    """Both updates by a wide margin, against float64."""
    for measure in (fused.compiled_adamw, fused.adam_weight_decay):
        measured = measure()
        assert measured.verdict == "ok" and measured.figure is not None and measured.figure < 0.5, measured.found


def test_a_wrong_compiled_operation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from vpred_train.doctor.operations import OPERATIONS

    right = operations.linear

    def wrong(biased: bool) -> Any:
        operation = right(biased)
        return lambda x, weight, *bias: 1.001 * operation(x, weight, *bias)

    assert fused.compiled(OPERATIONS["linear"]).verdict == "ok"
    monkeypatch.setattr(operations, "linear", wrong)
    assert fused.compiled(OPERATIONS["linear"]).verdict == "failed"
    monkeypatch.setattr(library, "_loaded", None)
    assert fused.compiled(OPERATIONS["linear"]).verdict == "left_out"


def test_each_choice_of_the_table_is_compared(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """On cpu it has two choices of a group norm and of a linear map, which agree unless one is wrong."""
    choices = {item.subject.partition(":")[0]: item for item in fused.choices(station)}
    assert list(choices) == ["group_norm", "linear"]
    assert choices["group_norm"].measure().verdict == "ok"
    assert implementations.chosen() == station.accelerator.operations  # as before
    monkeypatch.setattr(fused, "of_choice", lambda operation, choice: GroupNorm(16, 320, silu=True))
    assert choices["group_norm"].measure().verdict == "failed"


def test_a_wrong_update_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from vpred_train.kernels import update

    right = update.adamw_

    def wrong(*arrays: FloatArray, **numbers: float) -> None:
        right(*arrays, **numbers | {"epsilon": 1e-4})

    monkeypatch.setattr(update, "adamw_", wrong)
    assert fused.compiled_adamw().verdict == "failed"


def test_speeds_are_measured_and_demanded_only_of_npus(station: Station) -> None:
    measured = speeds.measure(station, speeds.SPEEDS["kernels started"])
    assert measured.figure is not None and measured.figure > 0
    assert measured.least_share == speeds.LEAST_SHARE_ON_CPU and measured.wanted == ""
    npu = replace(station, accelerator=ACCELERATORS["ascend"])
    assert speeds.judged(npu, 150.0, "TFLOP/s", 188.0, "matrix").verdict == "failed"
    assert speeds.judged(npu, 200.0, "TFLOP/s", 188.0, "matrix").verdict == "ok"
    assert speeds.judged(npu, 1.0, "GB/s", 0.0, "copy").verdict == "ok"
    names = {item.subject for item in speeds.items(npu)}
    assert {"matrix products, bfloat16", "device to host"} <= names
    assert "matrix products, bfloat16" not in {item.subject for item in speeds.items(station)}


class Sums(SingleProcess):
    """A rank of two whose peer has the values that the doctor gives it; its sums are off by `error`."""

    world_size = 2

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error

    def sum_(self, values: FloatArray) -> None:
        values += exchanges.everyones(2, values.size)[1].astype(np.float32)
        values[-1] += self.error


def test_a_wrong_sum_is_found_where_it_is(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "SIZES_BYTES", (4096,))
    for error, verdict in ((0.0, "ok"), (1.0, "failed")):
        measured = exchanges.compare(replace(station, collective=Sums(error)), exchanges.EXCHANGES["all-reduce"])
        assert measured.verdict == verdict
    assert measured.found == "1 of 2053 values are wrong, the first at 2052: 32 in place of 31"


def opened(recipe: Path) -> TrainConfig:
    """A recipe whose data and weights are absent."""
    weights = [] if recipe.stem == "tiny_emoji" else ["data.path=none", "pretrained.path=none"]
    return load_recipe(recipe, weights, without_weights=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("ranks", [1, 8])
def test_the_narrow_recipe_is_one(recipe: Path, ranks: int) -> None:
    config = opened(recipe)
    narrow = one_step.narrow(config, ranks)
    # "would stay random": the networks of a narrow model need no weights. All else must be a valid recipe.
    document = narrow.model_dump() | {"trainable": ("unet", "text_encoder"), "lora": None}
    vae = document["model"].pop("vae")
    document["model"] |= {"vae": None, "space_to_depth": 1}
    document["model"]["unet"]["in_channels"] = 3
    TrainConfig.model_validate(document)
    assert vae is None or vae["channels"] == one_step.WIDTH
    assert narrow.optimizer.name == config.optimizer.name and narrow.zero_stage == config.zero_stage
    batch = one_step.noise_batch(narrow, ranks - 1, ranks, 0)
    assert batch.images.shape[0] * ranks == narrow.global_batch
    assert batch.places[-1] == narrow.global_batch - 1


def test_the_step_of_sd2_with_lora_learns(tmp_path: Path) -> None:
    """The autoencoder, the text encoder and low-rank factors, narrow."""
    recipe = next(path for path in RECIPES if path.stem == "sd2_768_v_lora")
    measured = one_step.train(made(opened(recipe), tmp_path))
    assert measured.verdict == "ok", measured.found


@pytest.mark.parametrize(
    ("weights", "keeps_graphs", "verdict"),
    [
        ("weights 0123", True, "ok"),
        ("weights 4567", True, "failed"),
        ("weights 0123", False, "left_out"),
        ("", True, "left_out"),
    ],
)
def test_the_cached_graph_must_give_the_same_bits(
    weights: str, keeps_graphs: bool, verdict: str, station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_step, "steps", lambda station: ([1.0, 0.9], [1.0, 1.0], "0123"))
    if keeps_graphs:
        (station.run.graphs(0) / "entry").mkdir(parents=True)
    result = CheckResult(check="training step", subject=one_step.ALL_RANKS, verdict="ok", found="", same=weights)
    before = DoctorRecord(rank=0, check="end", results=(result,))
    assert one_step.train_again(replace(station, before=before)).verdict == verdict


def test_a_graph_that_is_compiled_again_is_found(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = station.run.graphs(0)
    (folder / "entry").mkdir(parents=True)

    def compiling(station: Station) -> tuple[list[float], list[float], str]:
        (folder / "another").mkdir()
        return [1.0, 0.9], [1.0, 1.0], "0123"

    monkeypatch.setattr(one_step, "steps", compiling)
    result = CheckResult(check="training step", subject=one_step.ALL_RANKS, verdict="ok", found="", same="weights 0123")
    again = one_step.train_again(replace(station, before=DoctorRecord(rank=0, check="end", results=(result,))))
    assert (again.verdict, again.found) == ("failed", "the graph was compiled again")


def test_a_loss_that_does_not_fall_is_found(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_step, "steps", lambda station: ([1.0, 1.1], [1.0, 1.0], "0123"))
    assert one_step.train(station).verdict == "failed"
    monkeypatch.setattr(one_step, "steps", lambda station: ([1.0, float("nan")], [1.0, 1.0], "0123"))
    assert one_step.train(station).verdict == "failed"


def test_a_plan_beyond_the_memory_is_found(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.plan(station).verdict == "ok"
    monkeypatch.setattr(memory, "memory_bytes", lambda station: 1000)
    assert memory.plan(station).verdict == "failed"
    npu = replace(station, accelerator=ACCELERATORS["ascend"])
    assert memory.plan(npu).verdict == "failed"


def test_cann_is_read_from_its_folder(station: Station, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.cann(station).verdict == "left_out"
    npu: Any = SimpleNamespace(on_cpu=False)
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "version.info").write_text("Version=8.5.0\nversion_dir=8.5.0\n")
    monkeypatch.setattr(machine, "environment", lambda: {"ASCEND_HOME_PATH": str(tmp_path)})
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "none")
    assert machine.cann(npu).same == "CANN 8.5.0, driver unknown"
    monkeypatch.setattr(machine, "environment", dict)
    assert machine.cann(npu).verdict == "failed"


def test_an_npu_of_the_first_generation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    npu: Any = SimpleNamespace(on_cpu=False, device_id=0)
    for soc, name, verdict in (("ascend910", "Ascend910A", "failed"), ("ascend910b", "Ascend910B3", "ok")):
        context = SimpleNamespace(get_ascend_soc_version=lambda soc=soc: soc)
        monkeypatch.setattr(machine, "MSContext", SimpleNamespace(get_instance=lambda context=context: context))
        monkeypatch.setattr(machine.hal, "get_device_name", lambda device, name=name: name)
        assert machine.device(npu).verdict == verdict
