"""CLIP's published token numbers, cleaning, padding and truncation."""

import numpy as np
import pytest

from vpred_train.text import tokenizer as tokenizer_module
from vpred_train.text.tokenizer import Tokenizer, merge_pair


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(77)


@pytest.mark.parametrize(
    ("caption", "numbers"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("hello world!", [3306, 1002, 256]),
        ("  A  Photo\nof a CAT ", [320, 1125, 539, 320, 2368]),
        ("a diagram", [320, 22697]),
        ("a dog", [320, 1929]),
        ("", []),
    ],
)
def test_published_numbers(tokenizer: Tokenizer, caption: str, numbers: list[int]) -> None:
    row = tokenizer([caption])[0]
    assert row.tolist() == [49406, *numbers, 49407] + [0] * (75 - len(numbers))
    assert row.dtype == np.int32


def test_cleaning_undoes_html_and_mojibake(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("salt &amp;amp; pepper") == tokenizer.encode("salt & pepper")
    assert tokenizer.encode("âœ” done") == tokenizer.encode("✔ done")


def test_every_text_can_be_encoded_and_decoded_by_bytes(tokenizer: Tokenizer) -> None:
    from vpred_train.text.tokenizer import byte_symbols

    bytes_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    tokens = {number: token for token, number in tokenizer.numbers.items()}
    for text in ("crème brûlée", "寿司", "🍓strawberry", "naïve façade 12"):
        joined = "".join(tokens[number] for number in tokenizer.encode(text)).replace("</w>", "")
        assert bytes(bytes_of[symbol] for symbol in joined).decode() == text.replace(" ", "")


def test_truncation_keeps_the_end_token(tokenizer: Tokenizer) -> None:
    row = tokenizer(["cat " * 200])[0]
    assert row.tolist() == [49406] + [2368] * 75 + [49407]
    assert Tokenizer(4)(["a photo of a cat"]).tolist() == [[49406, 320, 1125, 49407]]


def test_padding_with_the_end_token() -> None:
    assert Tokenizer(6, "end")(["a cat", ""]).tolist() == [[49406, 320, 2368, *[49407] * 3], [49406, *[49407] * 5]]


def test_merging_is_left_to_right() -> None:
    assert merge_pair(["a", "a", "a", "b"], ("a", "a")) == ["aa", "a", "b"]


def test_the_words_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is forgotten is found again; words that are too long are never kept."""
    monkeypatch.setattr(tokenizer_module, "MOST_WORDS", 10)
    tokenizer, fresh = Tokenizer(77), Tokenizer(77)
    words = [f"{first}{second}" for first in "abcdefg" for second in "hijklmn"]
    for word in [*words, *words]:
        assert tokenizer.encode_word(f"{word}zz") == fresh.encode_word(f"{word}zz")
        assert len(tokenizer.words) <= 10
    assert tokenizer.encode("<start_of_text>") == [tokenizer.start]
    before = len(tokenizer.words)
    assert tokenizer.encode_word("a" * 65) == tokenizer.encode_word("a" * 65)
    assert len(tokenizer.words) == before
