"""The kinds of numbers that recipes hold. Within these bounds, far beyond use, none overflows where it is used."""

from typing import Annotated

from pydantic import AfterValidator, Field


def fits_float32(value: float) -> float:
    """`value` unless it would be 0 or infinite as a float32 and is neither itself. Raises ValueError."""
    if 0 < value < 1e-30 or 1e30 < value < float("inf"):
        raise ValueError("must be within 1e-30 to 1e30, as it is used in float32")
    return value


Seed = Annotated[int, Field(ge=0, lt=1 << 64)]  # a key of Philox is 64 bits (data/keyed_random.py)
ImageSeed = Annotated[int, Field(ge=0, lt=1 << 63)]  # of the first image: the others count up from it
Samples = Annotated[int, Field(gt=0, le=1 << 53)]  # of the run's clock, or steps; whole in float64 too
Positive = Annotated[int, Field(gt=0, le=1 << 20)]  # widths, batches, repetitions: what memory is asked for
AboveZero = Annotated[float, Field(gt=0), AfterValidator(fits_float32)]
NotNegative = Annotated[float, Field(ge=0), AfterValidator(fits_float32)]
AboveZeroOrInfinite = Annotated[float, Field(gt=0, allow_inf_nan=True), AfterValidator(fits_float32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
