"""The data of a run: looked at by one rank, the same on all, and with the bad rows listed."""

import json
import queue
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data import DataError
from data.sources import scan
from launcher.contract.run_dir import RunDir
from support.jobs import write_images
from support.thread_ranks import ThreadRank
from vpred_train.config.train import TrainConfig
from vpred_train.prepare.data import OpenedData, open_data
from vpred_train.training.run import note_left_out


def on_two_ranks(first: TrainConfig, second: TrainConfig) -> list[OpenedData]:
    told: queue.Queue[Any] = queue.Queue()
    with ThreadPoolExecutor(2) as pool:
        ranks = [pool.submit(open_data, config, ThreadRank(rank, told)) for rank, config in enumerate((first, second))]
        return [rank.result() for rank in ranks]


@pytest.fixture
def config(train_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    write_images(tmp_path / "images", 6)
    return with_data(train_config, path=tmp_path / "images")


def with_data(config: TrainConfig, **changes: Any) -> TrainConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def test_each_image_is_decoded_by_one_rank_once(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(scan, "decode_sized", lambda content, **_: (decoded.append(content), (16, 16)))
    opened = on_two_ranks(config, config)
    assert len(decoded) == 6
    samples = [[each.training.sample(number) for number in range(6)] for each in opened]
    assert samples[0] == samples[1]


def test_a_host_with_other_data_is_found(config: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    same = with_data(config, path=tmp_path / "copy")
    assert [len(each.training) for each in on_two_ranks(config, same)] == [6, 6]
    table = tmp_path / "copy" / "img_txt.csv"
    table.write_text(table.read_text().replace("picture 3", "picture three"))
    (tmp_path / "copy" / ".vpred_index.safetensors").unlink()
    with pytest.raises(DataError, match="rank 1 sees other images or captions there than rank 0"):
        on_two_ranks(config, same)


def test_bad_samples_end_the_run_or_are_left_out_and_listed(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 6 rows are bad.*data\.bad_samples: skip"):
        open_data(config)
    for opened in on_two_ranks(*[with_data(config, bad_samples="skip")] * 2):
        assert [opened.training.sample(number).text for number in range(5)] == [f"picture {n}" for n in (0, 1, 3, 4, 5)]
    run = RunDir(tmp_path)
    note_left_out(opened.left_out, run)
    (line,) = run.bad_samples_jsonl.read_text().splitlines()
    listed = json.loads(line)
    assert listed["origin"] == "img_txt.csv:4"
    assert listed["reason"].startswith("2.png is no image of a known format")
    note_left_out((), run)
    assert not run.bad_samples_jsonl.exists()


def test_several_folders_become_one_source_that_every_rank_compares(config: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "images", tmp_path / "mine")
    (tmp_path / "mine" / "1.png").write_bytes(b"no image")
    sources = ({"path": tmp_path / "images"}, {"path": tmp_path / "mine", "weight": 2})
    raw = config.model_dump()
    raw["data"] |= {"path": None, "sources": sources, "bad_samples": "skip"}
    mixed = TrainConfig.model_validate(raw)
    for opened in on_two_ranks(mixed, mixed):
        assert opened.training.counts == (6, 5)
        assert opened.training.sample(6).origin == f"{tmp_path}/mine/img_txt.csv:2"
        ((origin, _),) = opened.left_out
        assert origin == f"{tmp_path}/mine/img_txt.csv:3"
    shutil.copytree(tmp_path / "images", tmp_path / "host1")  # another host's view of the second folder
    raw["data"]["sources"] = (sources[0], {"path": tmp_path / "host1", "weight": 2})
    with pytest.raises(DataError, match="host1: rank 1 sees other images or captions there than rank 0"):
        on_two_ranks(mixed, TrainConfig.model_validate(raw))


def test_a_held_out_image_may_not_be_trained_on_under_another_name(config: TrainConfig, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    shutil.copy(tmp_path / "images" / "0.png", held_out / "copy.png")
    (held_out / "a.csv").write_text("dir,text\ncopy.png,a copy\n")
    validation = {"every_samples": 4, "path": held_out}
    document = config.model_dump() | {"validation": validation}
    with pytest.raises(DataError, match=r"1 images are trained on, first a\.csv:2"):
        open_data(TrainConfig.model_validate(document))
