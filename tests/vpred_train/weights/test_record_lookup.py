"""What a network predicts: which declaration decides, and which contradictions are refused."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from launcher.contract.config import ConfigError
from vpred_train.config.diffusion import DiffusionConfig, PredictionType
from vpred_train.config.model import ModelConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.weights.formats.stored_tensor import StoredTensor
from vpred_train.weights.layouts.weight_source import WeightSource
from vpred_train.weights.lora.files import LoraSource
from vpred_train.weights.record_lookup import Declared, find_record, require_record

NAMES = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}


def record(kind: PredictionType, zero_snr: bool = False, base: PredictionType | None = None) -> ParameterizationRecord:
    diffusion = DiffusionConfig(prediction_type=kind, zero_terminal_snr=zero_snr)
    return ParameterizationRecord(
        weights="raw", samples_seen=8, resolution=96, diffusion=diffusion, model=ModelConfig(), base_xxh3="0",
        base_prediction_type=base,
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What each source declares, and the type and the zero terminal SNR that follow; or the fault."""

    name: str
    lora: ParameterizationRecord | None = None
    file: ParameterizationRecord | None = None
    markers: tuple[str, ...] = ()
    scheduler: tuple[str, bool] | None = None
    user: Declared | None = None
    expected: tuple[str, bool] | None = None
    fault: str = ""


V, V_ZERO, EPS = Declared("v"), Declared("v", zero_terminal_snr=True), Declared("eps")
CASES = [
    Case("nothing"),
    Case("the user alone", user=EPS, expected=("eps", False)),
    Case("the user alone, zero SNR", user=V_ZERO, expected=("v", True)),
    Case("markers before the user", markers=("v_pred", "ztsnr"), user=V, expected=("v", True)),
    Case("markers completed by the user", markers=("v_pred",), user=V_ZERO, expected=("v", True)),
    Case("a marker of the schedule, the type from the user", markers=("ztsnr",), user=V, expected=("v", True)),
    Case("a marker of the schedule alone declares no type", markers=("ztsnr",)),
    Case("markers against the user", markers=("v_pred",), user=EPS, fault="declare v-prediction, but .* declares eps-"),
    Case("the scheduler", scheduler=("eps", False), expected=("eps", False)),
    Case("the scheduler before the user", scheduler=("v", True), user=V, expected=("v", True)),
    Case(
        "the scheduler against the user's type", scheduler=("eps", False), user=V, fault="declare eps-prediction, but"
    ),
    Case(
        "the scheduler against the user's schedule", scheduler=("v", False), user=V_ZERO, fault="v-prediction with zero"
    ),
    Case("the record before the user", file=record("v", zero_snr=True), user=V, expected=("v", True)),
    Case("the record against the user", file=record("eps"), user=V, fault="declare eps-prediction, but .* declares v-"),
    Case("the record agrees with the markers", file=record("v"), markers=("v_pred",), expected=("v", False)),
    Case(
        "the record against the markers", file=record("eps"), markers=("v_pred",), fault="record beside it says 'eps'"
    ),
    Case(
        "the record against the scheduler", file=record("v"), scheduler=("eps", False), fault="scheduler_config.json: "
    ),
    Case("LoRA's record, of weights without one", lora=record("v"), expected=("v", False)),
    Case(
        "LoRA's record before that of its base", lora=record("v", base="eps"), file=record("eps"), expected=("v", False)
    ),
    Case(
        "LoRA's record against its base", lora=record("v"), file=record("eps"), fault="LoRA was trained on .* predict v"
    ),
    Case("LoRA's record against the user", lora=record("v"), user=EPS, fault="LoRA was trained on .* predict v, but"),
]


def sources(case: Case, folder: Path) -> tuple[WeightSource, LoraSource | None]:
    tensors = {name: StoredTensor(folder, "float32", (0,), ((0, 0),)) for name in case.markers}
    source = WeightSource(folder, "stability", "safetensors", tensors, case.file)
    if case.scheduler is not None:
        kind, zero = case.scheduler
        document: dict[str, Any] = {"prediction_type": NAMES[kind], "beta_schedule": "scaled_linear"}
        document |= {"beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": zero}
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(document))
        source = replace(source, layout="diffusers")
    return source, None if case.lora is None else LoraSource(folder / "lora", "safetensors", {}, {}, case.lora)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_first_declaration_decides(case: Case, tmp_path: Path) -> None:
    source, lora = sources(case, tmp_path)
    if case.fault:
        with pytest.raises(ConfigError, match=case.fault) as caught:
            find_record(source, declared=case.user, lora=lora)
        assert str(caught.value).startswith(str(tmp_path)) and ";" in str(caught.value)
        return
    found = find_record(source, declared=case.user, lora=lora)
    if case.expected is None:
        assert found is None
        with pytest.raises(ConfigError, match="nothing declares what the network predicts; do this"):
            require_record(source, declared=case.user, lora=lora, remedy="do this")
        return
    assert found == require_record(source, declared=case.user, lora=lora)
    assert (found.diffusion.prediction_type, found.diffusion.zero_terminal_snr) == case.expected
    if case.lora is not None:
        assert (found.resolution, found.base_xxh3, found.base_prediction_type) == (96, None, None)


def test_the_user_is_told_the_key_and_the_type_that_was_found(tmp_path: Path) -> None:
    source = WeightSource(tmp_path, "stability", "safetensors", {}, record("eps"))
    declared = Declared("v", key="diffusion.prediction_type", remedy="set it to {found}")
    with pytest.raises(ConfigError) as caught:
        find_record(source, declared=declared)
    assert str(caught.value) == (
        f"{tmp_path}: the weights declare eps-prediction, but diffusion.prediction_type declares v-prediction; "
        "set it to eps"
    )
