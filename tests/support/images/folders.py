"""Folders that hold the same three captioned images in each format."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = ("a red boat", "ein grünes Haus, am See", '"quoted" 三')


def images() -> list[bytes]:
    rng = np.random.default_rng(1)
    found = []
    for number in range(3):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (10 + number, 20, 3), np.uint8)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_csv(folder: Path) -> None:
    quoted = ('"' + text.replace('"', '""') + '"' for text in CAPTIONS)
    lines = [f"{number}.png,{text}" for number, text in enumerate(quoted)]
    (folder / "img_txt.csv").write_text("\n".join(["dir,text", *lines]), encoding="utf-8")
    for number, content in enumerate(images()):
        (folder / f"{number}.png").write_bytes(content)


def write_jsonl(folder: Path) -> None:
    (folder / "sub").mkdir()
    for number, content in enumerate(images()):
        (folder / "sub" / f"{number}.png").write_bytes(content)
    lines = [
        json.dumps({"file_name": f"sub/{number}.png", "text" if number else "caption": text})
        for number, text in enumerate(CAPTIONS)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")


def write_tars(folder: Path) -> None:
    first, second, third = images()
    with tarfile.open(folder / "shard-0000.tar", "w") as tar:
        add(tar, "0.txt", CAPTIONS[0].encode())
        add(tar, "0.png", first)
        add(tar, "1.png", second)
        add(tar, "1.json", json.dumps({"caption": CAPTIONS[1], "width": 5}).encode())
    with tarfile.open(folder / "shard-0001.tar", "w") as tar:
        add(tar, "a.b/2.png", third)
        add(tar, "a.b/2.txt", CAPTIONS[2].encode())


def write_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    column = [{"bytes": content, "path": None} for content in images()]
    table = pyarrow.table({"image": column, "text": list(CAPTIONS)})
    parquet.write_table(table, folder / "train.parquet", row_group_size=2)


FORMATS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "csv": (write_csv, ["img_txt.csv:2", "img_txt.csv:3", "img_txt.csv:4"]),
    "jsonl": (write_jsonl, ["metadata.jsonl:1", "metadata.jsonl:2", "metadata.jsonl:3"]),
    "webdataset": (write_tars, ["shard-0000.tar:0.png", "shard-0000.tar:1.png", "shard-0001.tar:a.b/2.png"]),
    "parquet": (write_parquet, ["train.parquet:0", "train.parquet:1", "train.parquet:2"]),
}
