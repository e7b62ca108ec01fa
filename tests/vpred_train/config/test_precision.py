"""The precision section, which dtype it comes to on an accelerator, and the loss scale's way through a run."""

from typing import Any

import pytest
from pydantic import ValidationError

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from vpred_train import runtime
from vpred_train.config.precision import MAX_LOSS_SCALE, PrecisionConfig
from vpred_train.optim.loss_scale import LossScale


def scale_of(**keys: Any) -> LossScale:
    return LossScale.fresh(PrecisionConfig(loss_scaling="dynamic", **keys))


@pytest.mark.parametrize(
    ("accelerator", "given", "dtype", "scaling"),
    [
        ("cpu", {}, "float32", "off"),
        ("ascend", {}, "bfloat16", "off"),
        ("cpu", {"compute_dtype": "float16"}, "float16", "dynamic"),
        ("ascend", {"compute_dtype": "float16"}, "float16", "dynamic"),
        ("ascend", {"compute_dtype": "float32"}, "float32", "off"),
        ("cpu", {"loss_scaling": "dynamic"}, "float32", "dynamic"),
        ("ascend", {"compute_dtype": "float16", "loss_scaling": "static"}, "float16", "static"),
        ("cpu", {"compute_dtype": "float16", "loss_scaling": "off"}, "float16", "off"),
    ],
)
def test_auto_is_the_accelerators(accelerator: str, given: dict[str, Any], dtype: str, scaling: str) -> None:
    found = PrecisionConfig(**given).on(ACCELERATORS[accelerator])
    assert (found.dtype, found.loss_scaling) == (dtype, scaling)
    assert found.on(ACCELERATORS[accelerator]) == found


def test_a_dtype_that_the_accelerator_lacks_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        PrecisionConfig(compute_dtype="bfloat16").on(ACCELERATORS["cpu"])
    assert str(caught.value) == (
        "precision.compute_dtype: found 'bfloat16', in which accelerator cpu does not compute "
        "(known: float32, float16); give one of these, or auto"
    )


def test_what_no_accelerator_has_told_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="compute_dtype is auto"):
        _ = PrecisionConfig().dtype


@pytest.mark.parametrize(
    ("given", "fragment"),
    [
        ({"init_loss_scale": 1000.0}, "must be a power of two, which rounds nothing; give 1024"),
        ({"loss_scale_factor": 3.0}, "give 4"),
        ({"loss_scale_factor": 1.0}, "greater than or equal to 2"),
        ({"init_loss_scale": 0.5}, "greater than or equal to 1"),
        ({"init_loss_scale": 2.0**30}, "less than or equal to 16777216"),
        ({"init_loss_scale": float("nan")}, "should be a finite number"),
        ({"init_loss_scale": 4.0, "min_loss_scale": 8.0}, "init_loss_scale 4 is below min_loss_scale 8"),
        ({"loss_scaling": "static", "loss_scale_window_steps": 7}, "loss_scale_window_steps is 7, but static has none"),
        ({"loss_scaling": "off", "init_loss_scale": 2.0}, "init_loss_scale is 2.0, but off has none"),
        ({"compute_dtype": "bfloat16", "init_loss_scale": 2.0}, "init_loss_scale is 2.0, but off has none"),
    ],
)
def test_wrong_values(given: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PrecisionConfig(**given)
    assert fragment in str(caught.value)


def test_the_scale_falls_at_once_and_grows_after_the_window() -> None:
    scale = scale_of(init_loss_scale=16.0, loss_scale_factor=4.0, loss_scale_window_steps=3)
    seen = []
    for good in (True, True, False, True, True, False, False, True, True, True, True):
        scale = scale.after_update() if good else scale.lowered()
        seen.append((scale.value, scale.updates))
    assert seen == [
        *[(16, 1), (16, 2), (4, 0), (4, 1), (4, 2), (1, 0), (1, 0)],  # an overflow starts the window anew
        *[(1, 1), (1, 2), (4, 0), (4, 1)],
    ]


def test_the_scale_stays_within_its_bounds() -> None:
    scale = scale_of(init_loss_scale=MAX_LOSS_SCALE, loss_scale_window_steps=1)
    assert scale.after_update().value == MAX_LOSS_SCALE
    least = scale_of(init_loss_scale=8.0, min_loss_scale=4.0, loss_scale_factor=16.0)
    assert least.can_fall
    assert least.lowered().value == 4
    assert not least.lowered().can_fall


@pytest.mark.parametrize(("scaling", "value"), [("static", 256.0), ("off", 1.0)])
def test_other_scales_never_move(scaling: str, value: float) -> None:
    keys = {"init_loss_scale": 256.0} if scaling == "static" else {}
    scale = LossScale.fresh(PrecisionConfig.model_validate({"loss_scaling": scaling, **keys}))
    assert (scale.value, scale.can_fall, scale.after_update()) == (value, False, scale)
    assert scale.to_progress() is None
    assert scale.restored({"value": 4.0, "updates": 1}) == scale


def test_what_a_checkpoint_keeps_comes_back() -> None:
    scale = scale_of(loss_scale_window_steps=5).lowered().after_update()
    assert scale_of(loss_scale_window_steps=5).restored(scale.to_progress()) == scale
    assert scale.restored(None) == scale


def test_a_device_that_saturates_is_refused_for_float16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    half = PrecisionConfig(compute_dtype="float16").on(ACCELERATORS["ascend"])
    runtime.require_overflow(half)  # as MindSpore on CPU overflows
    monkeypatch.setattr(runtime, "float16_saturates", lambda: True)
    with pytest.raises(ConfigError, match=r"precision\.compute_dtype: found 'float16', which on this device saturates"):
        runtime.require_overflow(half)
    runtime.require_overflow(PrecisionConfig().on(ACCELERATORS["ascend"]))
