"""Files as MindSpore, torch and safetensors write them are read without those; what is written, they read."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from launcher.contract.config import ConfigError
from support import GOLDEN
from support.weights_files import assert_same, float32s
from vpred_train.weights.formats import mindspore_ckpt
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.mindspore_ckpt import write_mindspore
from vpred_train.weights.formats.safetensors_file import read_sharded, write_safetensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.gamma": RNG.standard_normal((3, 5)).astype(np.float32),
    "a.vector": RNG.standard_normal(300).astype(np.float32),  # sizes beyond one varint byte
    "scalar": np.array(2.5, np.float32),
}


def as_parameters(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "data": Parameter(Tensor(array))} for name, array in arrays.items()]


def test_mindspore_writes_and_we_read(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    parameters = as_parameters(ARRAYS | {"half": ARRAYS["a.gamma"].astype(np.float16)})
    brain = Parameter(Tensor([1.5, -(226 / 128) * 2.0**127], mindspore.bfloat16))
    mindspore.save_checkpoint([*parameters, {"name": "brain", "data": brain}], str(path), append_dict={"note": "grüße"})
    contents = open_contents(path)
    assert (contents.container, contents.texts) == ("mindspore", {"note": "grüße"})
    assert contents.tensors["brain"].dtype == "bfloat16"
    half = ARRAYS["a.gamma"].astype(np.float16).astype(np.float32)
    wide = np.array([1.5, -(226 / 128) * 2.0**127], np.float32)
    assert_same(float32s(path), ARRAYS | {"half": half, "brain": wide})


@pytest.mark.parametrize("slice_kib", [1, 512 * 1024])
def test_tensors_spread_over_several_values(slice_kib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspore.train import serialization

    monkeypatch.setattr(serialization, "SLICE_SIZE", slice_kib)
    monkeypatch.setattr(mindspore_ckpt, "PIECE_BYTES", slice_kib * 1024)
    large = {"large": RNG.standard_normal((33, 47)).astype(np.float32), "small": ARRAYS["a.gamma"]}
    theirs, ours = tmp_path / "theirs.ckpt", tmp_path / "ours.ckpt"
    mindspore.save_checkpoint(as_parameters(large), str(theirs))
    write_mindspore(ours, large, {})
    assert_same(float32s(theirs), large)
    assert_same(float32s(ours), large)
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(open_contents(ours).tensors["large"].pieces) == (7 if slice_kib == 1 else 1)  # 6204 bytes
    assert_same({name: each.asnumpy() for name, each in mindspore.load_checkpoint(str(ours)).items()}, large)


def test_we_write_and_mindspore_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_mindspore(path, ARRAYS, {"record": '{"a": "ü"}'})
    found = mindspore.load_checkpoint(str(path))
    assert found.pop("record") == '{"a": "ü"}'
    assert_same({name: each.asnumpy() for name, each in found.items()}, ARRAYS)
    assert [each.name for each in tmp_path.iterdir()] == ["x.ckpt"]


def test_the_crc_trailer_is_no_tensor(tmp_path: Path) -> None:
    mindspore.save_checkpoint(as_parameters(ARRAYS), str(tmp_path / "x.ckpt"), crc_check=True)
    assert_same(float32s(tmp_path / "x.ckpt"), ARRAYS)


@pytest.mark.parametrize("name", ["zip", "legacy", "lightning"])
def test_torch_state_dicts(name: str) -> None:
    contents = open_contents(GOLDEN / f"torch_{name}.ckpt")
    expected = dict(np.load(GOLDEN / "torch_ckpt.npz"))
    assert contents.tensors.pop("steps").dtype == "int64"
    assert contents.tensors["brain"].dtype == "bfloat16"
    del expected["steps"]
    assert_same({key: tensor.float32() for key, tensor in contents.tensors.items()}, expected)


def test_a_pickle_that_calls_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"refused, because its pickle asks for {os.system.__module__}\.system"):
        open_contents(GOLDEN / "torch_hostile.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stream", "named"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"(S'1'\ni__main__\nf\n.", "opcode INST"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"\x80\x02}}b.", "nothing"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
        (b"\x80\x02K\x01)R.", "a call of 1"),
        (b"\x80\x02]}b.", "BUILD"),
        (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
    ],
)
def test_other_ways_to_call(stream: bytes, named: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", stream)
    if named == "nothing":
        assert open_contents(tmp_path / "x.pt").tensors == {}
        return
    with pytest.raises(ConfigError, match="refused, because its pickle asks for") as caught:
        open_contents(tmp_path / "x.pt")
    assert named in str(caught.value)


def test_safetensors_with_bfloat16_and_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {name: array.shape for name, array in ARRAYS.items()}, ARRAYS, {"note": "n"})
    assert_same(load_file(path), ARRAYS)
    assert_same(float32s(path), ARRAYS)
    with safe_open(path, "np") as file:
        assert file.metadata() == open_contents(path).texts == {"note": "n"}
    header = b'{"b":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\xc0\x80\x7f")
    np.testing.assert_array_equal(float32s(path)["b"], np.array([1, -2, np.inf], np.float32))


def test_a_sharded_index(tmp_path: Path) -> None:
    index = tmp_path / "x.safetensors.index.json"
    for number, name in enumerate(ARRAYS):
        save_file({name: ARRAYS[name]}, tmp_path / f"x-{number}.safetensors")
    places = {name: f"x-{number}.safetensors" for number, name in enumerate(ARRAYS)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same({name: tensor.float32() for name, tensor in read_sharded(index).tensors.items()}, ARRAYS)
    index.write_text(json.dumps({"weight_map": places | {"lost": "x-0.safetensors"}}))
    with pytest.raises(ConfigError, match="'lost' is not where the index says"):
        read_sharded(index)
    index.write_text(json.dumps({"weight_map": places | {"lost": "x-9.safetensors"}}))
    with pytest.raises(ConfigError, match=r"x-9\.safetensors: damaged or no safetensors file"):
        read_sharded(index)
    index.write_text("[]")
    with pytest.raises(ConfigError, match="no index of safetensors files"):
        read_sharded(index)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "empty; known are"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x89PNG....", "starts with"),
        (b"\x0a\x7f\x0a\x01a", "no MindSpore checkpoint .byte 2: 127 bytes announced, 3 there"),
        (b"\x0a\xff\xff", "no MindSpore checkpoint"),
        (b"\x0a\x03\x0a\x01a", "a value without a tensor"),
        (b"PK\x03\x04rest", "no PyTorch checkpoint"),
        (b"\x10\0\0\0\0\0\0\0{" + b" " * 15, "no safetensors file"),
    ],
)
def test_files_that_are_not_weights(content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ConfigError, match=fault) as caught:
        open_contents(tmp_path / "x.ckpt")
    assert str(caught.value).startswith(str(tmp_path / "x.ckpt")) and "\n" not in str(caught.value)


def test_truncated_files(tmp_path: Path) -> None:
    sources = {name: tmp_path / f"whole_{name}" for name in ("mindspore", "safetensors")}
    write_mindspore(sources["mindspore"], ARRAYS, {})
    save_file(ARRAYS, sources["safetensors"])
    sources |= {name: GOLDEN / f"torch_{name}.ckpt" for name in ("zip", "legacy")}
    for name, source in sources.items():
        (tmp_path / name).write_bytes(source.read_bytes()[:-40])
        with pytest.raises(ConfigError, match="damaged or no"):
            open_contents(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        open_contents(tmp_path / "absent")
