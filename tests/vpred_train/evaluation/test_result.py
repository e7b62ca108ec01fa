"""The result's schema, its requirements and its table."""

import json

import pytest
from pydantic import ValidationError

from launcher.contract.config import ConfigError
from vpred_train.evaluation.result import (
    Metric,
    Requirement,
    Result,
    Weights,
    parse_requirement,
    refuse_extrapolation,
    small_set_notes,
    table,
)

KID = Metric(value=-0.00213, standard_error=0.0144, n=83, method="U-statistic, cubic kernel")
CLIP = Metric(value=31.25, standard_error=None, n=1, method="100 cos")


def result(**changes: object) -> Result:
    values: dict[str, object] = {
        "recipes": {"inception": "clean"},
        "weights": {"inception": Weights(name="pt_inception.pth", digest="xxh3:0a1b")},
        "sampler": {"steps": 50, "guidance_scale": 8.0, "name": "ddim"},
        "versions": {"numpy": "1.26.4"},
        "metrics": {"kid": KID, "clip_score": CLIP},
    }
    return Result.model_validate(values | changes)


def test_the_json_comes_back_equal() -> None:
    text = result().to_json()
    assert Result.model_validate_json(text) == result()
    assert json.loads(text)["metrics"]["kid"] == {
        "value": -0.00213, "standard_error": 0.0144, "n": 83, "method": "U-statistic, cubic kernel",
    }  # fmt: skip
    assert json.loads(text)["metrics"]["clip_score"]["standard_error"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"kid": {"value": float("nan"), "standard_error": 1, "n": 2, "method": "x"}}},
        {"metrics": {"kid": {"value": 1, "standard_error": -1, "n": 2, "method": "x"}}},
        {"metrics": {"kid": {"value": 1, "standard_error": float("inf"), "n": 2, "method": "x"}}},
        {"metrics": {"kid": {"value": 1, "standard_error": 1, "n": 0, "method": "x"}}},
        {"metrics": {"kid": {"value": 1, "standard_error": 1, "method": "x"}}},
        {"weights": {"inception": {"name": "f", "digest": "0a1b"}}},
        {"schema_version": 2},
        {"fid": 3.0},
    ],
)
def test_a_result_outside_the_schema_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        result(**changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kid<=0.02", Requirement("kid", "<=", 0.02)),
        (" clip_score >= 31 ", Requirement("clip_score", ">=", 31)),
        ("fid<90", Requirement("fid", "<", 90)),
        ("kid>-1e-3", Requirement("kid", ">", -0.001)),
    ],
)
def test_a_requirement_is_read(text: str, expected: Requirement) -> None:
    assert parse_requirement(text) == expected
    assert parse_requirement(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "kid", "kid=0.02", "kid==1", "<=3", "kid<=", "kid<=1 2", "kid=<1", "kid<=1<=2"])
def test_a_text_that_is_no_requirement_is_refused_on_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="--require") as raised:
        parse_requirement(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", ["low", "nan", "inf", "1,5"])
def test_a_bound_is_a_finite_number(number: str) -> None:
    with pytest.raises(ConfigError, match="is not a finite number"):
        parse_requirement(f"kid<={number}")


@pytest.mark.parametrize(
    ("text", "met"),
    [("kid<=-0.00213", True), ("kid<-0.00213", False), ("clip_score>=31.25", True), ("clip_score>31.25", False)],
)
def test_a_requirement_judges_the_value(text: str, met: bool) -> None:
    fault = parse_requirement(text).fault(result().metrics)
    assert (fault is None) is met
    assert met or (fault is not None and fault.startswith(f"required {text}, but "))


def test_an_unknown_metric_is_refused_with_those_known() -> None:
    with pytest.raises(ConfigError, match="no metric fit; the result has clip_score, kid"):
        parse_requirement("fit<=3").fault(result().metrics)


def test_the_table_rounds_by_the_standard_error() -> None:
    assert table(result().metrics, ["a floor"]).splitlines() == [
        "metric       value     SE   n  method",
        "kid         -0.002  0.014  83  U-statistic, cubic kernel",
        "clip_score   31.25      -   1  100 cos",
        "note: a floor",
    ]


def test_small_sets_have_notes() -> None:
    assert small_set_notes(5000, 3000, 2048) == []
    assert len(small_set_notes(5000, 2048, 2048)) == 1
    few = small_set_notes(83, 5000, 2048)
    assert few[0].startswith("FID of 83 images is mostly the floor")
    assert few[1].startswith("precision, recall and density need about 1000 images; 83")
    with pytest.raises(ConfigError, match=r"1 generated and 9 real image\(s\); at least 2"):
        small_set_notes(1, 9, 2048)


def test_extrapolation_needs_twice_the_width() -> None:
    refuse_extrapolation(4096, 2048)
    with pytest.raises(ConfigError, match="from 4095 images; at least 4096"):
        refuse_extrapolation(4095, 2048)
