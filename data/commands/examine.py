"""Examines a data set: sizes, shapes, duplicates, captions, and the parts of captions that are cut off."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from data.files import printable
from data.sources.scan import in_parallel
from data.sources.source import Folder

ASPECTS = (0, 1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2, float("inf"))  # width / height, from tall to wide
ASPECT_NAMES = ("below 1:2", "1:2 to 2:3", "2:3 to 4:5", "about 1:1", "5:4 to 3:2", "3:2 to 2:1", "above 2:1")
CAPTIONS_PER_TASK = 8192


class Tokenizer(Protocol):
    """Measures captions."""

    context_length: int

    def encode(self, text: str) -> list[int]:
        """Return the text's tokens, without start and end."""

    def cut_off(self, text: str) -> str:
        """Return the end of `text` that no network sees."""


@dataclass(frozen=True)
class Cut:
    """Describes a caption that is too long.

    tokens: its length in tokens, with start and end.
    lost: the end that no network sees.
    """

    origin: str
    tokens: int
    lost: str


@dataclass(frozen=True)
class Tokens:
    """Holds caption lengths in tokens, with start and end.

    context_length: number of tokens that fit.
    cut: captions that do not fit.
    """

    context_length: int
    mean: float
    longest: int
    cut: list[Cut]


@dataclass(frozen=True)
class Findings:
    """Holds all that a check finds in one folder.

    small: (origin, width, height) in pixels of images with a side below `smallest_allowed_side_px`.
    duplicates: groups of origins whose images are the same bytes.
    bad: (origin, reason) of bad rows.
    """

    path: str
    format: str
    rows: int
    images: int
    captions: int
    distinct_captions: int
    smallest_side_px: int
    median_short_side_px: int
    largest_short_side_px: int
    aspect_ratios: dict[str, int]
    smallest_allowed_side_px: int
    small: list[tuple[str, int, int]]
    duplicates: list[list[str]]
    mean_caption_words: float
    longest_caption_words: int
    tokens: Tokens | None
    bad: list[tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs to print."""
        copies = sum(len(group) - 1 for group in self.duplicates)
        found = [
            ("path", f"{self.path} ({self.format})"),
            ("images", f"{self.images} of {self.rows} rows"),
            ("bad rows", str(len(self.bad))),
            (
                "short side px",
                f"{self.smallest_side_px} to {self.largest_short_side_px}, median {self.median_short_side_px}",
            ),
            (f"below {self.smallest_allowed_side_px} px", str(len(self.small))),
            ("width : height", ", ".join(f"{name} ({count})" for name, count in self.aspect_ratios.items() if count)),
            ("duplicate images", str(copies)),
            ("captions", str(self.captions)),
            ("distinct captions", str(self.distinct_captions)),
            ("caption words", f"mean {self.mean_caption_words}, longest {self.longest_caption_words}"),
        ]
        if self.tokens:
            tokens = self.tokens
            found += [
                ("caption tokens", f"mean {tokens.mean}, longest {tokens.longest}, with start and end"),
                (f"captions cut at {tokens.context_length}", str(len(tokens.cut))),
            ]
        return found


def examine(source: Folder, smallest_allowed_side_px: int, make_tokenizer: Callable[[], Tokenizer] | None) -> Findings:
    """Examine a folder's index. Only counting tokens takes time, when there is a tokenizer.

    If no row is good, sides and lengths are 0.
    """
    index = source.index
    every = np.arange(len(source))
    origins = [origin for origin, bad in zip(index.strings("origin"), index.is_bad, strict=True) if not bad]
    texts = [text.decode() for text in source.caption_bytes(every)]
    per_image = source.caption_counts(every).tolist()
    captioned = [origin for origin, count in zip(origins, per_image, strict=True) for _ in range(count)]
    height, width = source.sizes(every).T
    short = np.minimum(width, height)
    words = [len(text.split()) for text in texts]
    shapes = np.clip(np.digitize(width / height, ASPECTS) - 1, 0, len(ASPECT_NAMES) - 1)
    counts = Counter(shapes.tolist())
    return Findings(
        path=printable(str(source.path)),
        format=index.format,
        rows=len(index),
        images=len(source),
        captions=len(texts),
        distinct_captions=len(set(texts)),
        smallest_side_px=int(short.min()) if len(short) else 0,
        median_short_side_px=int(np.median(short)) if len(short) else 0,
        largest_short_side_px=int(short.max(initial=0)),
        aspect_ratios={name: counts[number] for number, name in enumerate(ASPECT_NAMES)},
        smallest_allowed_side_px=smallest_allowed_side_px,
        small=[
            (origins[row], int(width[row]), int(height[row]))
            for row in np.flatnonzero(short < smallest_allowed_side_px)
        ],
        duplicates=same_content(source, origins),
        mean_caption_words=round(sum(words) / max(1, len(words)), 1),
        longest_caption_words=max(words, default=0),
        tokens=count_tokens(texts, captioned, make_tokenizer) if make_tokenizer and texts else None,
        bad=source.bad,
    )


def same_content(source: Folder, origins: Sequence[str]) -> list[list[str]]:
    """Return groups of origins whose image files are equal."""
    groups = defaultdict(list)
    for content_hash, origin in zip(map(bytes, source.content_hashes(np.arange(len(source)))), origins, strict=True):
        groups[content_hash].append(origin)
    return [group for group in groups.values() if len(group) > 1]


def count_tokens(texts: Sequence[str], origins: Sequence[str], make_tokenizer: Callable[[], Tokenizer]) -> Tokens:
    """Measure the captions and find those that do not fit. origins: the origin of each caption."""
    distinct = list(dict.fromkeys(texts))
    measured = in_parallel(partial(_measure, make_tokenizer), distinct, CAPTIONS_PER_TASK, "counting tokens")
    by_text = dict(zip(distinct, measured, strict=True))
    lengths = [by_text[text][0] for text in texts]
    cut = [Cut(origin, *by_text[text]) for origin, text in zip(origins, texts, strict=True) if by_text[text][1]]
    mean = round(sum(lengths) / len(lengths), 1)
    return Tokens(make_tokenizer().context_length, mean, max(lengths), cut)


def _measure(make_tokenizer: Callable[[], Tokenizer], texts: Sequence[str]) -> list[tuple[int, str]]:
    """Return (tokens with start and end, the end that is lost) of each text."""
    tokenizer = make_tokenizer()
    lengths = [len(tokenizer.encode(text)) + 2 for text in texts]
    return [
        (length, tokenizer.cut_off(text) if length > tokenizer.context_length else "")
        for length, text in zip(lengths, texts, strict=True)
    ]
