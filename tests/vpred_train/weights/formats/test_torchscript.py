"""TorchScript archives: read as torch reads them, and nothing in them is ever called."""

from pathlib import Path

import numpy as np
import pytest

from launcher.contract.config import ConfigError
from support import GOLDEN
from support.pickles import mapping, module, name, number, tensor, text, torchscript, write_zip
from vpred_train.weights.formats.containers import open_contents

VALUES = np.arange(6, dtype=np.float32)
MATRIX = tensor("0", 6, (2, 3), (3, 1))


def test_a_file_of_torch_is_read_under_the_names_of_its_state_dict() -> None:
    """Scripted and traced modules, float32 and half, buffers, lists and compressed code (make_networks.py)."""
    contents = open_contents(GOLDEN / "torchscript.pt")
    expected = np.load(GOLDEN / "torchscript.npz")
    assert contents.container == "torchscript"
    assert set(contents.tensors) == set(expected)
    for each, tensor_found in contents.tensors.items():
        assert tensor_found.dtype == expected[each].dtype.name
        np.testing.assert_array_equal(tensor_found.plain(), expected[each])
    assert {tensor_found.dtype for tensor_found in contents.tensors.values()} == {"float32", "float16", "int64"}


def test_the_tests_writer_makes_the_same_structure(tmp_path: Path) -> None:
    arrays = {
        "a.b.weight": VALUES.reshape(2, 3),
        "a.b.bias": VALUES.astype(np.float16),
        "scale": np.float32(3).reshape(()),
    }
    torchscript(tmp_path / "x.pt", arrays)
    contents = open_contents(tmp_path / "x.pt")
    assert contents.container == "torchscript" and set(contents.tensors) == set(arrays)
    assert all(np.array_equal(contents.tensors[each].plain(), array) for each, array in arrays.items())


def called(function: str, argument: bytes) -> bytes:
    return name(function) + b"(" + argument + b"tR"


def test_typed_lists_are_values(tmp_path: Path) -> None:
    sizes = called("torch.jit._pickle.build_intlist", b"](" + number(1) + number(2) + b"e")
    tagged = called("torch.jit._pickle.restore_type_tag", b"}" + text("Dict[str, int]"))
    write_zip(tmp_path / "x.pt", module({"weight": MATRIX, "sizes": sizes, "tagged": tagged}), {"0": VALUES})
    contents = open_contents(tmp_path / "x.pt")
    assert list(contents.tensors) == ["weight"]


ENDLESS = name("__torch__.Module") + b")\x81q\x01" + mapping({text("self"): b"h\x01"}) + b"b"


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (module({"weight": MATRIX}, "os.system"), "asks for os.system"),
        (module({"weight": MATRIX}, "posix.system"), "asks for posix.system"),
        (module({"weight": MATRIX}, "__torch__os.system"), "asks for __torch__os.system"),
        (module({"weight": MATRIX}, "__torch__"), "asks for .__torch__"),
        (module({"weight": MATRIX}, "torch.FloatStorage"), "opcode NEWOBJ of torch.FloatStorage"),
        (module({"weight": MATRIX}, "collections.OrderedDict"), "opcode NEWOBJ of collections.OrderedDict"),
        (module({"weight": MATRIX}, "torch._utils._rebuild_tensor_v2"), "opcode NEWOBJ of torch._utils._rebuild"),
        (name("__torch__.Module") + text("ls") + b"\x85\x81", "opcode NEWOBJ of __torch__.Module"),
        (text("os.system") + b")\x81", "opcode NEWOBJ of str"),
        (name("__torch__.Module") + b")R", "a call of __torch__.Module"),
        (name("__torch__.os.system") + text("ls") + b"\x85R", "a call of __torch__.os.system"),
        (name("torch.jit._pickle.unknown"), "asks for torch.jit._pickle.unknown"),
        (called("torch.jit._pickle.build_intlist", b""), "a call of torch.jit._pickle.build_intlist"),
        (MATRIX + b"}b", "BUILD on an object that is not an OrderedDict"),
        (name("__torch__.Module") + b")\x81" + MATRIX + b"b", "a module whose state is not a dict"),
        (name("__torch__.Module") + b")\x81" + mapping({number(1): MATRIX}) + b"b", "whose state is not a dict"),
        (module({"weight": tensor("0", 6, (2, 4), (3, 1))}), "reaches beyond its storage"),
        (ENDLESS, "modules with more than"),
    ],
)  # fmt: skip
def test_hostile_archives_are_refused_in_one_line(stream: bytes, fault: str, tmp_path: Path) -> None:
    write_zip(tmp_path / "x.pt", stream, {"0": VALUES})
    with pytest.raises(ConfigError, match=fault) as caught:
        open_contents(tmp_path / "x.pt")
    assert str(caught.value).startswith(f"{tmp_path / 'x.pt'}: ") and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_shared_modules_without_end_are_refused_soon(tmp_path: Path) -> None:
    """Thirty times a module that holds the last one twice has 2^30 paths."""
    stream = module({"weight": MATRIX})
    for level in range(30):
        stream = module({"a": stream + b"q" + bytes([level]), "b": b"h" + bytes([level])})
    write_zip(tmp_path / "x.pt", stream, {"0": VALUES})
    with pytest.raises(ConfigError, match="modules with more than 1,000,000 attributes"):
        open_contents(tmp_path / "x.pt")
