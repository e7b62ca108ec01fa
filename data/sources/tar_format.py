"""Reads WebDataset shards: *.tar whose members 000017.jpg and 000017.txt (or .json with a caption) make a sample."""

import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from data.errors import DataError
from data.files import decode_text, open_file, printable, reason_of
from data.images.decode import SUFFIXES
from data.sources.jsonl_format import caption_of, parse_object
from data.sources.rows import Row

CAPTIONS = ("caption", "text")  # keys of a .json
SHARDS_AT_ONCE = 8  # threads, which wait for disks more than they compute
END_MARK_BYTES = 2 * tarfile.BLOCKSIZE  # zeros
CHUNK_BYTES = 1 << 20


def tar_rows(folder: Path, shards: list[Path]) -> list[Row]:
    """Return all samples, in the order of shards and members. Raises DataError: when a file is no plain tar."""
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        return [row for rows in pool.map(_shard_rows, shards) for row in rows]


def _shard_rows(shard: Path) -> list[Row]:
    # WebDataset groups adjacent members whose names agree up to the first dot of the base name.
    rows: list[Row] = []
    key, group = "", dict[str, tarfile.TarInfo]()
    try:
        with open_file(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar):
                origin = f"{shard.name}:{member.name}"
                if not member.isfile() or member.issparse():
                    fault = "is stored as a link, sparse or as a device; write the tar again with plain files"
                    rows.append(Row("", origin, "", fault=fault))
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if f"{folder}/{stem}" != key:
                    rows += _group_rows(tar, shard, group)
                    key, group = f"{folder}/{stem}", {}
                if suffix.lower() in group:
                    rows.append(Row("", origin, "", fault="its name comes twice in a row"))
                    continue
                group[suffix.lower()] = member
            rows += _group_rows(tar, shard, group)
            _check_end(file, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        reason = printable(reason_of(error))
        raise DataError(f"{shard}: is no complete plain tar ({reason}); write it again, uncompressed") from None
    return rows


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield all members except folders and hidden files, such as the ._000.jpg that macOS puts beside 000.jpg."""
    offset = -1
    for member in tar:
        if tar.offset <= offset:  # a negative size would lead back to earlier members, without end
            raise ValueError(f"the size of {member.name} is damaged")
        offset = tar.offset
        hidden = any(part.startswith(".") and part not in (".", "..") for part in member.name.split("/"))
        if not hidden and not member.isdir():
            yield member


def _check_end(file: BinaryIO, end: int) -> None:
    """Check that the end mark of a tar follows its members, which end at byte `end`, and that only zeros follow.

    The check is needed since `tarfile` takes any unreadable header for the end, as in a file that was cut off.
    Raises ValueError: when something else follows.
    """
    file.seek(end)
    mark = file.read(END_MARK_BYTES)
    if mark != bytes(END_MARK_BYTES):
        raise ValueError(f"it has no end mark at byte {end}: it was cut off or is damaged there")
    while chunk := file.read(CHUNK_BYTES):
        if chunk.strip(b"\0"):
            raise ValueError(f"it goes on after its end mark at byte {end}, as joined tars do: unpack each")


def _group_rows(tar: tarfile.TarFile, shard: Path, group: dict[str, tarfile.TarInfo]) -> list[Row]:
    if not group:
        return []
    images = [member for suffix, member in group.items() if suffix in SUFFIXES]
    first = images[0] if images else next(iter(group.values()))
    origin = f"{shard.name}:{first.name}"
    if not images:
        return [Row("", origin, "", fault=f"no image beside it (known: {', '.join(SUFFIXES)})")]
    row = Row(None, origin, shard.name, first.offset_data, first.size)
    if len(images) > 1:
        row.blame(f"{' and '.join(member.name for member in images)} are images of one sample; keep one")
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
    """Return the .txt, or else the caption in the .json; None when there is neither.

    Raises ValueError: when the content cannot be decoded or parsed.
    """
    if "txt" in group:
        return decode_text(_content(tar, group["txt"])).strip()
    return caption_of(parse_object(decode_text(_content(tar, group["json"]))), CAPTIONS) if "json" in group else None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""
