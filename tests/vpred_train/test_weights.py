"""Exported files carry their record, and files that do not fit are refused by name."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.contract.config import ConfigError
from vpred_train.config import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.models.weights import export_weights, read_record, read_tensors
from vpred_train.sample import main

TENSORS = {"unet.a": np.arange(6, dtype=np.float32).reshape(2, 3), "unet.b": np.ones(4, np.float32)}
SHAPES = {name: tensor.shape for name, tensor in TENSORS.items()}


def test_round_trip_with_the_record(train_config: TrainConfig, tmp_path: Path) -> None:
    record = record_of(train_config, "ema", 80)
    export_weights(tmp_path / "w.safetensors", TENSORS, record)
    assert read_record(tmp_path / "w.safetensors") == record
    found = read_tensors(tmp_path / "w.safetensors", SHAPES)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_tensors_that_do_not_fit_are_listed(train_config: TrainConfig, tmp_path: Path) -> None:
    export_weights(tmp_path / "w.safetensors", TENSORS, record_of(train_config, "raw", 0))
    with pytest.raises(ConfigError) as caught:
        read_tensors(tmp_path / "w.safetensors", {"unet.a": (3, 2), "unet.c": (1,)})
    for fragment in ("3 tensors", "missing unet.c", "unexpected unet.b", "unet.a is (2, 3), needed (3, 2)"):
        assert fragment in str(caught.value)


def test_foreign_and_broken_files(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "foreign.safetensors")
    with pytest.raises(ConfigError, match="holds no 'parameterization' record"):
        read_record(tmp_path / "foreign.safetensors")
    save_file(TENSORS, tmp_path / "newer.safetensors", {"parameterization": '{"format": "vpred-parameterization-9"}'})
    with pytest.raises(ConfigError, match="parameterization record: "):
        read_record(tmp_path / "newer.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x80" * 30)
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        read_record(tmp_path / "broken.safetensors")


def test_sampling_from_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--run", str(tmp_path), "--prompt", "x"])
    assert caught.value.code == 2
    assert "ema.safetensors: no such file; finish the run first" in capsys.readouterr().err
