"""Damaged images and shards, none of which may do more than be blamed.

    PYTHONPATH=.:tests .venv/bin/python -m support.images.fuzz_readers COUNT [SEED]

For each image: no exception and no process; the size that is indexed is that of the pixels, drafted or not.
"""

import random
import re
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from data import DataError, open_source
from data.images.decode import FORMATS, decode_sized
from data.sources.rows import Place
from data.sources.scan import look
from data.sources.tar_format import tar_rows
from support.images.image_files import ORIENTATIONS, WRITERS, encoded, noise, oriented, png_chunk

STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"}
started: list[str] = []
watching = False


def watch(event: str, arguments: object) -> None:
    """An audit hook, which cannot be taken back."""
    if watching and event in STARTS:
        started.append(f"{event}{arguments}")


sys.addaudithook(watch)


@contextmanager
def no_process() -> Iterator[None]:
    """Fails when a process is started meanwhile."""
    global watching
    watching = True
    try:
        yield
    finally:
        watching = False
    assert started == []


def whole_images() -> list[bytes]:
    """Small ones of every format, in the variants that take other paths through their readers."""
    image = noise(40, 24)
    grey, palette, clear = image.convert("L"), image.convert("P"), image.convert("RGBA")
    found = [encoded(image, kind) for kind in FORMATS]
    found += [oriented(image, kind, name) for kind in ("JPEG", "PNG", "WEBP", "TIFF") for name in ORIENTATIONS]
    found += [encoded(each, kind) for each in (grey, palette, clear) for kind in ("PNG", "TIFF", "GIF", "WEBP")]
    found += [
        encoded(image, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
    ]
    found += [encoded(image, "JPEG", progressive=True), encoded(image.convert("CMYK"), "JPEG")]
    found += [
        encoded(image, kind, save_all=True, append_images=[noise(40, 24, 1)]) for kind in ("GIF", "PNG", "WEBP", "AVIF")
    ]
    found += [encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) << 8), kind) for kind in ("PNG", "TIFF")]
    texts = png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * 99)) + png_chunk(
        b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    )
    png = encoded(image, "PNG")
    return [*found, png[:33] + texts + png[33:]]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes and numbers changed, cut out, doubled; the checksums of a PNG put right, so that more is read of it."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(found))
        what = rng.randrange(6)
        if what < 2:
            found[place] = rng.randrange(256)
        elif what == 2:
            number = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 0xFFFF, 65500))
            found[place : place + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif what == 3:
            del found[place : place + rng.choice((1, 2, 50))]
        elif what == 4:
            found[place:place] = found[place : place + rng.choice((1, 4, 50))]
        else:
            found[place] ^= 1 << rng.randrange(8)
        found = found or bytearray(b"x")
    return with_checksums(bytes(found)) if rng.random() < 0.5 else bytes(found)


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the right checksums; other files as they are."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    made, place = [content[:8]], 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        made.append(png_chunk(content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return b"".join(made)


def try_image(content: bytes) -> str:
    """What was found wrong with it, "" when nothing was. Fails unless header and pixels agree."""
    found = look(lambda path, offset, length: content, Place(Path("image"), 0, -1))
    if found.fault:
        assert (found.width, found.height) == (0, 0)
        return found.fault
    whole, size = decode_sized(content)
    assert whole.size == size == (found.width, found.height)
    assert whole.mode == "RGB"
    for edge in (1, 5, 16):
        draft, size = decode_sized(content, at_least=(edge, edge))
        assert size == whole.size
        assert draft.width <= whole.width
    return ""


def try_folder(images: dict[str, bytes], layout: str) -> None:
    """A folder of them: each is a sample with the size of its pixels, or a bad row."""
    with tempfile.TemporaryDirectory() as name:
        WRITERS[layout](Path(name), images)
        source = open_source(Path(name), "tell")
        expected = [not try_image(content) for content in images.values()]
        assert (len(source), len(source.bad)) == (sum(expected), len(images) - sum(expected))
        good = [content for content, sound in zip(images.values(), expected, strict=True) if sound]
        assert source.sizes(np.arange(len(good))).tolist() == [list(decode_sized(content)[1]) for content in good]


def try_shard(content: bytes, folder: Path) -> str:
    """ "read", or why it was refused."""
    (folder / "a.tar").write_bytes(content)
    try:
        tar_rows(folder, [folder / "a.tar"])
    except DataError as error:
        return kind_of(str(error))
    return "read"


def kind_of(reason: str) -> str:
    """What is said within parentheses, without numbers."""
    return re.sub(r"[ :]*\d.*|\).*", "", reason.partition("(")[2])[:30]


def whole_shard(folder: Path) -> bytes:
    write = WRITERS["webdataset"]
    write(folder, {f"{'long' * 40 * (number % 2)}{number}.png": encoded(noise(8, 8), "PNG") for number in range(4)})
    return (folder / "a.tar").read_bytes()


def fuzz(count: int, seed: int) -> Counter[str]:
    """`count` images, a tenth as many shards, and folders of 64 of the images in each layout; what became of them."""
    rng = random.Random(seed)  # noqa: S311
    whole = whole_images()
    assert [try_image(content) for content in whole] == [""] * len(whole)
    images = [damaged(rng.choice(whole), rng) for _ in range(count)]
    found = Counter(kind_of(try_image(content)) or "read" for content in images)
    for number, layout in enumerate(WRITERS):
        for start in range(number * 64, count, 64 * len(WRITERS)):
            try_folder({f"{place}.png": content for place, content in enumerate(images[start : start + 64])}, layout)
    with tempfile.TemporaryDirectory() as name:
        shard = whole_shard(Path(name))
        found.update(f"shard: {try_shard(damaged(shard, rng), Path(name))}" for _ in range(count // 10))
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with no_process():
        for reason, times in fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0).most_common():
            print(f"{times:7} {reason}")
