"""Implements CLIP's byte-pair encoding with open_clip's cleaning and padding, as SD2's text encoder was trained."""

import gzip
import html
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Literal

import ftfy
import numpy as np
import regex
from numpy.typing import NDArray

PATTERN = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
MOST_WORDS, MOST_LETTERS = 1 << 16, 64  # limits of the word cache: words, and letters of a word; about 30 MB
MERGES = 49152 - 256 - 2  # the published file holds more lines than the published vocabulary uses


@cache
def byte_symbols() -> dict[int, str]:
    """Map each byte to one printable character: GPT-2's reversible map (Radford et al. 2019, section 2.2)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols.update({byte: chr(256 + index) for index, byte in enumerate(rest)})
    return symbols


class Tokenizer:
    """Converts captions to token numbers. Threads can share it: only its word cache changes."""

    def __init__(self, context_length: int, padding: Literal["zero", "end"] = "zero") -> None:
        packed = resources.files("vpred_train.text").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
        lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : MERGES + 1]
        merges = [tuple(line.split()) for line in lines]
        symbols = list(byte_symbols().values())
        vocabulary = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(merge) for merge in merges]
        vocabulary += ["<start_of_text>", "<end_of_text>"]
        self.numbers = {token: number for number, token in enumerate(vocabulary)}
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.start = self.numbers["<start_of_text>"]
        self.end = self.numbers["<end_of_text>"]
        self.context_length = context_length
        self.padding = self.end if padding == "end" else 0
        self.special = {"<start_of_text>": [self.start], "<end_of_text>": [self.end]}
        self.words: dict[str, list[int]] = dict(self.special)

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of `text` without start, end or padding."""
        cleaned = html.unescape(html.unescape(ftfy.fix_text(text)))
        cleaned = " ".join(cleaned.split()).strip().lower()
        return [number for word in PATTERN.findall(cleaned) for number in self.encode_word(word)]

    def cut_off(self, text: str) -> str:
        """Return the end of `text` that does not fit, as the encoder would have seen it; empty when all fits."""
        symbols = {number: token for token, number in self.numbers.items()}
        cut = "".join(symbols[number] for number in self.encode(text)[self.context_length - 2 :])
        bytes_of = {symbol: byte for byte, symbol in byte_symbols().items()}
        words = cut.replace("</w>", " ").split(" ")
        return " ".join(bytes(bytes_of[symbol] for symbol in word).decode("utf-8", "replace") for word in words).strip()

    def encode_word(self, word: str) -> list[int]:
        """Merge the byte pairs of one word, lowest rank first (Sennrich et al. 2016, arXiv 1508.07909)."""
        words = self.words  # another thread may replace it by an empty one
        if word in words:
            return words[word]
        pieces = [byte_symbols()[byte] for byte in word.encode("utf-8")]
        pieces[-1] += "</w>"
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            pieces = merge_pair(pieces, best)
        numbers = [self.numbers[piece] for piece in pieces]
        if len(word) <= MOST_LETTERS:
            if len(words) >= MOST_WORDS:
                words = self.words = dict(self.special)
            words[word] = numbers
        return numbers

    def __call__(self, captions: tuple[str, ...] | list[str]) -> NDArray[np.int32]:
        """Return (len(captions), context_length) int32: start, tokens, end, padding. Truncation keeps the end token."""
        batch = np.full((len(captions), self.context_length), self.padding, np.int32)
        for row, caption in zip(batch, captions, strict=True):
            tokens = [self.start, *self.encode(caption)[: self.context_length - 2], self.end]
            row[: len(tokens)] = tokens
        return batch


def merge_pair(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every adjacent occurrence of `pair`, left to right."""
    merged: list[str] = []
    index = 0
    while index < len(pieces):
        if tuple(pieces[index : index + 2]) == pair:
            merged.append(pieces[index] + pieces[index + 1])
            index += 2
        else:
            merged.append(pieces[index])
            index += 1
    return merged
