"""Makes the images that the small base model learns: two folders of captioned emoji, in MindONE's layout.

    python tests/small_base/fetch.py FOLDER

FOLDER/fluent has Microsoft's Fluent Emoji in 3D, without those of the demonstration and those that are held out for
its scores. FOLDER/noto has Google's Noto Color Emoji. It needs npm, and apt-get or the file of Debian's package.
Every archive is compared with its digest before anything of it is read.
"""

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE = 128
GLYPH_SIDE = 109  # the only size in which the font has bitmaps
DEMONSTRATION = Path(__file__).parents[2] / "data" / "fluent_emoji"
HELD_OUT = Path(__file__).with_name("held_out.txt")
FONT = "./usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"


@dataclass(frozen=True)
class Archive:
    """A published file: how a package manager fetches it, and the digest that it must have."""

    file: str
    argv: tuple[str, ...]
    sha256: str


FLUENT = Archive(
    "lobehub-fluent-emoji-3d-1.1.0.tgz",
    ("npm", "pack", "--silent", "@lobehub/fluent-emoji-3d@1.1.0"),
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
NAMES = Archive(
    "emojibase-data-17.0.0.tgz",
    ("npm", "pack", "--silent", "emojibase-data@17.0.0"),
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
NOTO = Archive(
    "fonts-noto-color-emoji_2.042-0+deb12u1_all.deb",
    ("apt-get", "download", "--quiet", "fonts-noto-color-emoji=2.042-0+deb12u1"),
    "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
)


def fetched(archive: Archive, folder: Path) -> Path:
    """Return the archive's path in `folder`, fetched if it is not there yet.

    Raises SystemExit: when it has another digest.
    """
    path = folder / archive.file
    if not path.exists():
        subprocess.run(archive.argv, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != archive.sha256:
        raise SystemExit(f"{path}: found sha256 {found}, not {archive.sha256}; remove it and fetch it again")
    return path


def caption_names(archive: Path) -> dict[str, str]:
    """Map code points such as "1f3e1" to a name with up to three tags that it does not contain."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/en/data.json")
        assert member is not None
        entries: list[dict[str, Any]] = json.load(member)
    names = {}
    for entry in entries:
        label: str = entry["label"]
        tags = [tag for tag in entry.get("tags", []) if tag.isascii() and tag.lower() not in label.lower()]
        names[entry["hexcode"].lower()] = ", ".join([label, *tags[:3]])
    return names


def fluent_images(archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield code points and RGBA image of every emoji, 256 x 256."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if path.suffix == ".webp" and (file := tar.extractfile(member)) is not None:
                yield path.stem.removesuffix("-fe0f"), Image.open(io.BytesIO(file.read())).convert("RGBA")


def noto_images(archive: Path, code_points: Sequence[str]) -> Iterator[tuple[str, Image.Image]]:
    """Yield code points and RGBA image, 136 x 128, of the emoji that one character writes."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, stdout=subprocess.PIPE)
    with tarfile.open(fileobj=io.BytesIO(unpacked.stdout)) as tar:
        member = tar.extractfile(FONT)
        assert member is not None
        font = ImageFont.truetype(io.BytesIO(member.read()), GLYPH_SIDE, layout_engine=ImageFont.Layout.BASIC)
    for each in code_points:
        characters = each.removesuffix("-fe0f")
        if "-" in characters:
            continue
        image = Image.new("RGBA", (136, 128))
        ImageDraw.Draw(image).text((0, 0), chr(int(characters, 16)), font=font, embedded_color=True)
        if image.getbbox() is not None:
            yield each, image


def write(folder: Path, style: str, images: Iterator[tuple[str, Image.Image]], names: dict[str, str]) -> int:
    """Write the images of `names` on white, SIDE x SIDE, and img_txt.csv; return their number."""
    folder.mkdir(parents=True)
    rows = []
    for code_points, image in images:
        if code_points not in names:
            continue
        side = max(image.size)
        square = Image.new("RGBA", (side, side), "white")
        square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
        small = square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(folder / f"{code_points}.png", optimize=True)
        rows.append((f"{code_points}.png", f"{style} of {names[code_points]}"))
    with (folder / "img_txt.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("dir", "text"), *sorted(rows)])
    return len(rows)


def left_out() -> set[str]:
    """Return the code points of Fluent emoji that the base model must not see."""
    return {path.stem for path in DEMONSTRATION.glob("*.jpg")} | set(HELD_OUT.read_text().split())


def main() -> None:
    """Fetch the archives into FOLDER/archives, and make FOLDER/fluent and FOLDER/noto."""
    parser = argparse.ArgumentParser(description="make the images that the small base model learns")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    archives = folder / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    names = caption_names(fetched(NAMES, archives))
    of_the_base = {each: name for each, name in names.items() if each not in left_out()}
    fluent = write(folder / "fluent", "a 3D emoji", fluent_images(fetched(FLUENT, archives)), of_the_base)
    glyphs = noto_images(fetched(NOTO, archives), list(names))
    noto = write(folder / "noto", "a flat cartoon emoji", glyphs, names)
    print(f"{folder}: {fluent} Fluent and {noto} Noto emoji")


if __name__ == "__main__":
    sys.exit(main())
