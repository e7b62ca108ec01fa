"""Files of weights as others write them, odd or hostile: read, or refused in one line, in little time and memory."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.contract.config import ConfigError
from support.pickles import ORDERED, many, mapping, name, number, parameter, tensor, text, write_zip
from support.weights_files import assert_same, float32s
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.safetensors_file import read_safetensors, read_sharded
from vpred_train.weights.layouts.weight_source import weights_digest

TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
VALUES = np.arange(6, dtype=np.float32)
MATRIX = tensor("0", 6, (2, 3), (3, 1))


def test_parameters_and_lightnings_callbacks(tmp_path: Path) -> None:
    """A state dict of a whole checkpoint: parameters rather than tensors, and states under classes, with numpy's."""
    score = many(name("numpy.dtype") + many(text("f8"), b"\x89", b"\x88") + b"R" + many(number(3)) + b"b", text("x"))
    scalar = name("numpy.core.multiarray.scalar") + score + b"R"
    callbacks = mapping(
        {
            name("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"): mapping({text("best"): scalar}),
            name("lightning.pytorch.callbacks.early_stopping.EarlyStopping"): b"}",
            text("LearningRateMonitor{}"): name("_codecs.encode") + many(text("a"), text("latin1")) + b"R",
        }
    )
    stateful = name("torch._utils._rebuild_parameter_with_state") + many(MATRIX, b"\x89", ORDERED, b"}") + b"R"
    state = mapping({text("a"): parameter(MATRIX), text("b"): stateful})
    whole = mapping({text("callbacks"): callbacks, text("state_dict"): state})
    write_zip(tmp_path / "x.ckpt", whole, {"0": VALUES})
    assert_same(float32s(tmp_path / "x.ckpt"), {"a": VALUES.reshape(2, 3), "b": VALUES.reshape(2, 3)})


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (parameter(number(1)), "a call of torch._utils._rebuild_parameter, which loading could run"),
        (name("pytorch_lightning.callbacks.x.Y") + b")R", "a call of pytorch_lightning.callbacks.x.Y"),
        (name("pytorch_lightning.callbacks.x.Y") + b")\x81", "opcode NEWOBJ"),
        (name("pytorch_lightning.trainer.Trainer"), "asks for pytorch_lightning.trainer.Trainer"),
        (name("numpy.load"), "asks for numpy.load"),
        (mapping({many(number(1)): b"N"}), "a tuple as a key"),
        (mapping({text("a"): tensor("0", 6, (2, 4), (3, 1))}), r"shape \(2, 4\) reaches beyond its storage of 6"),
        (mapping({text("a"): tensor("0", 6, (2, -3), (3, 1))}), "no size"),
        (mapping({text("a"): tensor("0", 6, (60_000, 60_000), (0, 0))}), "repeats its storage of 6 too often"),
        (mapping({text("a"): tensor("0", 6, (1,) * 40, (1,) * 40)}), "40 axes"),
        (mapping({text("a"): tensor("0", 6, (2, 3), (3,))}), "2 axes and 1 strides"),
        (mapping({text("a"): tensor("9", 6, (2, 3), (3, 1))}), "no storage 9"),
        (mapping({text("a"): tensor("0", 7, (2, 3), (3, 1))}), "holds 24 bytes, 28 announced"),
        (mapping({text("a"): tensor("0", 6, (2, 3), (3, 1), "Float8Storage")}), "asks for torch.Float8Storage"),
        (b"]", "holds a list, not a state dict"),
        (b"\x8a\xff", "damaged"),
        (b"\x8e" + (1 << 62).to_bytes(8, "little"), "damaged"),
    ],
)
def test_pickles_that_are_not_what_torch_writes(stream: bytes, fault: str, tmp_path: Path) -> None:
    write_zip(tmp_path / "x.ckpt", stream, {"0": VALUES})
    with pytest.raises(ConfigError, match=fault) as caught:
        open_contents(tmp_path / "x.ckpt")
    assert str(caught.value).startswith(f"{tmp_path / 'x.ckpt'}: ") and "\n" not in str(caught.value)


def test_a_tuple_of_tuples_takes_no_time_and_no_room(tmp_path: Path) -> None:
    """Sixty times a tuple of the last one twice: to hash or to print it takes 2^60 steps."""
    nested = b")" + b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(60))
    for stream in (b"}" + nested + b"Ns", nested + b"Q", nested + b")R", name("torch.FloatStorage") + nested + b"R"):
        write_zip(tmp_path / "x.ckpt", stream, {})
        with pytest.raises(ConfigError, match=r"x\.ckpt: (damaged|refused)"):
            open_contents(tmp_path / "x.ckpt")


def test_archives_that_are_not_what_torch_writes(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.ckpt", mapping({text("a"): MATRIX}), {"0": VALUES}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigError, match=r"is compressed, which torch\.save never does"):
        open_contents(tmp_path / "x.ckpt")
    write_zip(tmp_path / "x.ckpt", mapping({text("a"): MATRIX}), {"0": VALUES})
    content = bytearray((tmp_path / "x.ckpt").read_bytes())
    for flag_at in (content.index(b"PK\x01\x02") + 8, content.index(b"PK\x03\x04") + 6):
        content[flag_at] |= 1
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ConfigError, match="is encrypted or patched"):
        open_contents(tmp_path / "x.ckpt")


def write_header(path: Path, header: Any, data: bytes = b"", announced: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(encoded) if announced is None else announced
    path.write_bytes(size.to_bytes(8, "little") + encoded + data)
    return path


def entry(start: int, stop: int, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_odd_headers_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for header in (
        {"__metadata__": None, "a": entry(0, 4)},
        {"a": entry(0, 4) | {"more": 1}},
        {"texts": entry(0, 4)},  # the name of a field of ours
        {"__metadata__": {}, "a": entry(0, 4)},
    ):
        contents = open_contents(write_header(path, header, b"\0\0\x80\x3f"))
        assert contents.texts == {}
        assert [tensor.float32().tolist() for tensor in contents.tensors.values()] == [[1.0]]
    later = {"b": entry(4, 8), "a": entry(0, 4), "none": entry(8, 8, (0,)), "huge": entry(8, 8, (1 << 40, 0))}
    assert set(open_contents(write_header(path, later, b"\0" * 8)).tensors) == {"a", "b", "none", "huge"}


@pytest.mark.parametrize(
    ("header", "data", "announced"),
    [
        ({"a": entry(-4, 0)}, 4, None),
        ({"a": entry(4, 0)}, 4, None),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, None),
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, None),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, None),
        ({"a": entry(0, 8, (2,))}, 4, None),
        ({"a": entry(0, 1 << 63)}, 4, None),
        ({"a": entry(0, 1 << 64)}, 4, None),
        ({"a": entry(0, 0, (1 << 62, 4))}, 0, None),
        ({"a": entry(0, 4, (-1,))}, 4, None),
        ({"a": entry(0, 4, (1.0,))}, 4, None),
        ({"a": entry(0, 4, (1,) * 33)}, 4, None),
        ({"a": entry(0, 4)}, 8, None),
        ({"a": entry(0, 4)}, 4, 1 << 62),
        ({"a": entry(0, 4)}, 4, 100_000),
        ({"a": entry(0, 4)}, 4, 2),
        ({"a": [1]}, 4, None),
        ({"__metadata__": [1]}, 0, None),
        ({"__metadata__": {"a": 1}}, 0, None),
        ({"a\nb": entry(0, 8)}, 4, None),
        (b'{"a":' + b"[" * 100_000, 0, None),
        (TWICE, 4, None),
    ],
)  # fmt: skip
def test_headers_that_are_refused(header: Any, data: int, announced: int | None, tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.safetensors", header, b"\0" * data, announced)
    with pytest.raises(ConfigError, match=r"x\.safetensors: .*; copy it again") as caught:
        open_contents(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """Instead of waiting for a writer, or reading for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path, kind in ((tmp_path / "pipe", "pipe"), (tmp_path / "zero", "device"), (tmp_path, "folder")):
        for read in (open_contents, read_safetensors):
            with pytest.raises(ConfigError, match=f"is a {kind}, not a regular file; give a file"):
                read(path)
    for path, kind in ((tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device")):
        with pytest.raises(ConfigError, match=f"is a {kind}, not a regular file"):
            weights_digest(path)
    index = tmp_path / "x.safetensors.index.json"
    for shard, fault in (
        ("../pipe", "pipe: is a pipe"),
        ("..", "is a folder"),
        ("", "is a folder"),
        ("a\0b", "is no path"),
    ):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(ConfigError, match=fault):
            read_sharded(index)


def test_types_that_numpy_lacks_are_named(tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.safetensors", {"a": entry(0, 1, (1,), "F8_E5M2")}, b"\0")
    (tensor_found,) = open_contents(path).tensors.values()
    with pytest.raises(ConfigError, match="a needed tensor is F8_E5M2; give a file with floating-point weights"):
        tensor_found.float32()
    with pytest.raises(ConfigError, match="holds a tensor of type F8_E5M2, which has no reader here"):
        tensor_found.plain()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\x0a\x04\x12\x02\x12\x00", "a number where bytes should be"),  # without a name
        (b"\x0a\x31\x0a\x01a\x12\x2c\x0a\x28" + b"\x01" * 40 + b"\x12\x00", "more than 32 axes"),
        (b"\x0a\x0b\x0a\x01a\x12\x06\x12\x04Int4", "unknown type 'Int4'"),
    ],
)
def test_odd_mindspore_files(content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ConfigError, match=f"no MindSpore checkpoint .*{fault}"):
        open_contents(tmp_path / "x.ckpt")
