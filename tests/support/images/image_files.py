"""Small real images of every format, turned by EXIF of any kind, and folders that hold them in each layout."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

# (type, count, value) of an EXIF entry; types of TIFF 6.0, section 2. Those in TURNED lie on their side.
ORIENTATIONS: dict[str, tuple[int, int, bytes]] = {
    **{f"short {value}": (3, 1, struct.pack("<H", value)) for value in (*range(10), 255, 65535)},
    "long 6": (4, 1, struct.pack("<I", 6)),
    "two shorts 6": (3, 2, struct.pack("<HH", 6, 6)),
    "no short": (3, 0, b""),
    "byte 6": (1, 1, b"\6"),
    "text 1": (2, 2, b"1\0"),
    "text 6": (2, 2, b"6\0"),
    "undefined 6": (7, 1, b"6"),
    "long -6": (9, 1, struct.pack("<i", -6)),
    "unknown type": (99, 1, b"\6"),
    "value beyond the end": (2, 10**9, struct.pack("<I", 9999)),
}
TURNED = {"short 5", "short 6", "short 7", "short 8", "long 6", "two shorts 6"}
# The formats that hold EXIF as it is given; AVIF's and Pillow's TIFF writer take whole numbers alone.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random RGB pixels."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def oriented(image: Image.Image, kind: str, orientation: str) -> bytes:
    """An image file whose EXIF has that one of ORIENTATIONS."""
    entry = struct.pack("<HHI4s", 0x0112, *ORIENTATIONS[orientation])
    if kind == "TIFF":
        content = encoded(image, kind, tiffinfo={0x0112: 1})
        placeholder = struct.pack("<HHI4s", 0x0112, 3, 1, b"\1")
        assert content.count(placeholder) == 1
        return content.replace(placeholder, entry)
    block = struct.pack("<4sIH", b"II*\0", 8, 1) + entry + bytes(4)
    return encoded(image, kind, exif=b"Exif\0\0" + block)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def add(tar: tarfile.TarFile, name: str, content: bytes, **facts: object) -> None:
    """One member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in facts.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def write_csv(folder: Path, images: Mapping[str, bytes]) -> None:
    write_files(folder, images)
    lines = [f'"{name}",a caption' for name in images]
    (folder / "img_txt.csv").write_text("\n".join(["dir,text", *lines, ""]))


def write_jsonl(folder: Path, images: Mapping[str, bytes]) -> None:
    write_files(folder, images)
    lines = [json.dumps({"file_name": name, "text": "a caption"}) for name in images]
    (folder / "metadata.jsonl").write_text("\n".join([*lines, ""]))


def write_tar(folder: Path, images: Mapping[str, bytes]) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, content in images.items():
            add(tar, name, content)
            add(tar, f"{name.partition('.')[0]}.txt", b"a caption")


def write_parquet(folder: Path, images: Mapping[str, bytes]) -> None:
    import pyarrow
    from pyarrow import parquet

    column = [{"bytes": content, "path": name} for name, content in images.items()]
    parquet.write_table(pyarrow.table({"image": column, "text": ["a caption"] * len(column)}), folder / "a.parquet")


def write_files(folder: Path, images: Mapping[str, bytes]) -> None:
    for name, content in images.items():
        (folder / name).write_bytes(content)


WRITERS: dict[str, Callable[[Path, Mapping[str, bytes]], None]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "webdataset": write_tar,
    "parquet": write_parquet,
}
