"""Pickles of PyTorch's state dicts, written opcode by opcode: what a test wants of them no library writes."""

import zipfile
from pathlib import Path

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
