"""Pickles of PyTorch's state dicts, written opcode by opcode: what a test wants of them no library writes."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ORDERED = b"ccollections\nOrderedDict\n)R"


def name(dotted: str) -> bytes:
    module, _, own = dotted.rpartition(".")
    return f"c{module}\n{own}\n".encode()


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def many(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def mapping(items: dict[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in items.items()) + b"u"


def tensor(key: str, size: int, shape: tuple[int, ...], strides: tuple[int, ...], kind: str = "FloatStorage") -> bytes:
    storage = many(text("storage"), name(f"torch.{kind}"), text(key), text("cpu"), number(size)) + b"Q"
    sizes, steps = (many(*map(number, each)) for each in (shape, strides))
    return name("torch._utils._rebuild_tensor_v2") + many(storage, number(0), sizes, steps, b"\x89", ORDERED) + b"R"


def parameter(data: bytes) -> bytes:
    return name("torch._utils._rebuild_parameter") + many(data, b"\x88", ORDERED) + b"R"


def write_zip(path: Path, value: bytes, storages: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> None:  # type: ignore[type-arg]
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + value + b".")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())


STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def tensor_of(key: str, array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return tensor(key, array.size, array.shape, strides, STORAGES[array.dtype.name])


def state_dict(path: Path, arrays: dict[str, np.ndarray], under: str = "") -> None:  # type: ignore[type-arg]
    """Write a state dict as torch.save does; `under` is the key of a dict around it."""
    dense = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    items = mapping({text(name): tensor_of(str(key), array) for key, (name, array) in enumerate(dense.items())})
    write_zip(
        path, mapping({text(under): items}) if under else items, {str(k): a for k, a in enumerate(dense.values())}
    )


def module(attributes: dict[str, bytes], kind: str = "__torch__.Module") -> bytes:
    """An object of a TorchScript class."""
    return name(kind) + b")\x81" + mapping({text(each): value for each, value in attributes.items()}) + b"b"


def torchscript(path: Path, arrays: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    """Write tensors as torch.jit.save does: modules in modules."""
    dense = [np.require(array, requirements="C") for array in arrays.values()]
    tree: dict[str, Any] = {"training": b"\x89", "_is_full_backward_hook": b"N"}
    for key, (dotted, array) in enumerate(zip(arrays, dense, strict=True)):
        *parents, own = dotted.split(".")
        level = tree
        for parent in parents:
            level = level.setdefault(parent, {"training": b"\x89"})
        level[own] = tensor_of(str(key), array)

    def written(level: dict[str, Any]) -> bytes:
        return module({each: written(value) if isinstance(value, dict) else value for each, value in level.items()})

    write_zip(path, written(tree), {str(key): array for key, array in enumerate(dense)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/code/__torch__.py", "class Module(Module):\n  pass\n" * 20)
