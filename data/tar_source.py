"""WebDataset shards: *.tar whose members 000017.jpg and 000017.txt (or .json with a caption) make a sample."""

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.errors import DataError
from data.rows import Row

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
CAPTIONS = ("caption", "text")  # keys of a .json
SHARDS_AT_ONCE = 8  # waits for disks more than it computes


def tar_shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def tar_rows(folder: Path, shards: list[Path]) -> list[Row]:
    """All samples, in the order of shards and members. Raises DataError for a file that is no plain tar."""
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        return [row for rows in pool.map(_shard_rows, shards) for row in rows]


def _shard_rows(shard: Path) -> list[Row]:
    # WebDataset's grouping: neighbours in the file with one name up to the first dot of the base name.
    rows: list[Row] = []
    key, group = "", dict[str, tarfile.TarInfo]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if f"{folder}/{stem}" != key:
                    rows += _group_rows(tar, shard, group)
                    key, group = f"{folder}/{stem}", {}
                if suffix.lower() in group:
                    rows.append(Row("", f"{shard.name}:{member.name}", "", fault="its name comes twice in a row"))
                    continue
                group[suffix.lower()] = member
            rows += _group_rows(tar, shard, group)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shard}: no whole plain tar ({error}); write it again, not compressed") from None
    return rows


def _group_rows(tar: tarfile.TarFile, shard: Path, group: dict[str, tarfile.TarInfo]) -> list[Row]:
    if not group:
        return []
    image = next((group[suffix] for suffix in IMAGES if suffix in group), None)
    first = image or next(iter(group.values()))
    origin = f"{shard.name}:{first.name}"
    if image is None:
        return [Row("", origin, "", fault=f"no image beside it (known: {', '.join(IMAGES)})")]
    row = Row(None, origin, shard.name, image.offset_data, image.size)
    try:
        row.caption = _caption(tar, group)
    except ValueError as error:
        row.blame(f"its caption cannot be read ({error})")
        return [row]
    if row.caption is None:
        row.blame("no caption: give a .txt, or a .json with text or caption")
    else:
        row.check_caption("its caption")
    return [row]


def _caption(tar: tarfile.TarFile, group: dict[str, tarfile.TarInfo]) -> object:
    """The .txt, else what the .json has as a caption; None when there is neither. Raises ValueError."""
    if "txt" in group:
        return _content(tar, group["txt"]).decode("utf-8-sig").strip()
    record = json.loads(_content(tar, group["json"])) if "json" in group else {}
    found = (record[key] for key in CAPTIONS if isinstance(record, dict) and record.get(key) is not None)
    return next(found, None)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""
