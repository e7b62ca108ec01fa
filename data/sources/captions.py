"""The captions of an image: what counts as one, and which of several is trained on this time."""

import reprlib

from data.files import encoding_fault
from data.keyed_random import sample_generator

REMEDY = "give a string, or a list of strings of which one is drawn each epoch"


def captions_of(value: object) -> tuple[str, ...]:
    """The captions in a value that somebody else wrote: a string, or a list of several.

    Raises ValueError with what is wrong, to be read behind the name of the column. Nothing is converted: what Python
    prints of a number, of bytes or of a list is no caption.
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
    """Which of an image's `count` captions is taken this time, each as likely as the others.

    The draw has a stream of its own: an image with one caption draws nothing, and no other draw depends on how many
    there are.
    """
    if count == 1:
        return 0
    return int(sample_generator(seed, "caption", epoch, sample_id).integers(count))
