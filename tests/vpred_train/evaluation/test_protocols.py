"""Protocols name what exists, judge their bounds, and MLPerf's captions are read or refused by line."""

from pathlib import Path

import pytest

from launcher.contract.config import ConfigError
from vpred_train.evaluation.protocols import (
    PROTOCOLS,
    CocoCaption,
    mlperf_interval_steps,
    protocol_of,
    read_mlperf_captions,
)
from vpred_train.evaluation.resize import recipe_of
from vpred_train.evaluation.result import Metric

HEADER = "image_id\tid\tcaption\n"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_names_a_recipe_that_exists(name: str) -> None:
    assert callable(recipe_of(protocol_of(name).recipe))


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mlperf' is unknown; known are mindone, mlperf_sd2"):
        protocol_of("mlperf")


@pytest.mark.parametrize(
    ("fid", "clip_score", "faults"), [(90, 0.15, 0), (90.01, 0.15, 1), (89, 0.1499, 1), (91, 15 / 101, 2), (20, 0.3, 0)]
)
def test_mlperf_judges_both_bounds(fid: float, clip_score: float, faults: int) -> None:
    metrics = {
        name: Metric(value=value, standard_error=None, n=30_000, method="x")
        for name, value in (("fid", fid), ("clip_score", clip_score))
    }
    found = protocol_of("mlperf_sd2").faults(metrics)
    assert len(found) == faults
    assert all(line.startswith("required ") for line in found)
    with pytest.raises(ConfigError, match="no metric fid"):
        protocol_of("mlperf_sd2").faults({"clip_score": metrics["clip_score"]})


@pytest.mark.parametrize(("batch", "steps"), [(512, 1000), (1024, 500), (2048, 250), (1000, 512), (513, 999)])
def test_mlperf_evaluates_every_512_000_images(batch: int, steps: int) -> None:
    assert mlperf_interval_steps(batch) == steps
    assert (steps - 1) * batch < 512_000 <= steps * batch


def test_captions_come_in_the_files_order(tmp_path: Path) -> None:
    path = tmp_path / "captions.tsv"
    path.write_text(
        HEADER + '5\t12\tA fox\n\n4\t10\t"A ""red"" kite, a\tfox"\n7\t11\tTwo d\'ogs, é\n', encoding="utf-8"
    )
    assert read_mlperf_captions(path, 3) == [
        CocoCaption(5, 12, "A fox"),
        CocoCaption(4, 10, 'A "red" kite, a\tfox'),
        CocoCaption(7, 11, "Two d'ogs, é"),
    ]
    path.write_bytes(b"\xef\xbb\xbfcaption\tid\textra\timage_id\r\nA fox\t12\tx\t5\r\n")  # other order, BOM, CR LF
    assert read_mlperf_captions(path, 1) == [CocoCaption(5, 12, "A fox")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the first line has nothing; columns image_id, id, caption are needed"),
        (b"image_id,id,caption\n5,12,A fox\n", "columns image_id, id, caption are needed"),
        (b"image_id\tcaption\n5\tA fox\n", "columns"),
        (b"image_id\tid\tcaption\tid\n5\t1\tA\t1\n", "columns"),
        (HEADER.encode() + b"5\t12\n", "line 2: 2 fields, not 3"),
        (HEADER.encode() + b"5\t12\tA\tfox\n", "line 2: 4 fields, not 3"),
        (HEADER.encode() + b"5\t1x\tA fox\n", "line 2: id '1x' is not a whole number"),
        (HEADER.encode() + b"-5\t1\tA fox\n", "line 2: image_id '-5'"),
        (HEADER.encode() + b"5\t" + b"1" * 5000 + b"\tA fox\n", "line 2: id '1111"),
        (HEADER.encode() + b"5\t12\t  \n", "line 2: the caption is empty"),
        (HEADER.encode() + b"5\t12\tA fox\n6\t12\tA kite\n", "line 3: id 12 occurs a second time"),
        (HEADER.encode() + b'5\t12\t"A fox\n6\t13\tA kite\n', "line 3: unexpected end of data"),
        (HEADER.encode() + b"5\t12\t" + b"A" * 20_000 + b"\xff\n", "byte 20025 is not UTF-8"),
        (HEADER.encode() + b"5\t12\tA fox\n", "1 captions; the protocol has 30000"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.tsv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        read_mlperf_captions(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_mlperf_captions(tmp_path / "captions.tsv")
    with pytest.raises(ConfigError, match=tmp_path.name):
        read_mlperf_captions(tmp_path)
