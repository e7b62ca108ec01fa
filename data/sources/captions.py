"""Decides what counts as a caption of an image, and which of several captions an epoch takes."""

import reprlib

from data.files import encoding_fault
from data.keyed_random import sample_generator

REMEDY = "give a string, or a list of strings of which one is drawn each epoch"


def captions_of(value: object) -> tuple[str, ...]:
    """Return the captions in a value from a table: a string, or a list of several.

    Nothing is converted, since what Python prints for a number, bytes or a list is no caption.
    Raises ValueError: when the value holds no valid captions. Its message continues the column's name.
    """
    if not isinstance(value, list):
        return (_caption(value),)
    if not value:
        raise ValueError(f"is an empty list; {REMEDY}")
    found = []
    for number, each in enumerate(value, 1):
        try:
            found.append(_caption(each))
        except ValueError as error:
            raise ValueError(f"has {len(value)} captions, of which number {number} {error}") from None
    return tuple(found)


def _caption(value: object) -> str:
    if not isinstance(value, str):
        found = "null" if value is None else f"of type {type(value).__name__} ({reprlib.repr(value)})"
        raise ValueError(f"is {found}; {REMEDY}")
    if not value.strip():
        raise ValueError("is empty")
    if "\0" in value:
        raise ValueError("holds a NUL byte, so it is not text")
    if fault := encoding_fault(value):
        raise ValueError(f"is {fault}")
    return value


def drawn_caption(count: int, seed: int, epoch: int, sample_id: int) -> int:
    """Return which of an image's `count` captions this epoch takes; all are equally likely.

    The draw has a separate stream. An image with one caption draws nothing, and no other draw depends on `count`.
    """
    if count == 1:
        return 0
    return int(sample_generator(seed, "caption", epoch, sample_id).integers(count))
