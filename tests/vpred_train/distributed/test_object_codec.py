"""What ranks send each other arrives as it was sent, and what cannot be sent is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vpred_train.distributed.object_codec import pack, unpack


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(1 << 70), 0.1, float("inf"), "", 'ü "\n\0', [], {}, [1, [2.5, None]], {"a": {"b": ["c"]}}],
)
def test_what_json_holds_arrives_unchanged(value: Any) -> None:
    found = unpack(pack(value))
    assert found == value
    assert type(found) is type(value)


def test_tuples_arrive_as_lists() -> None:
    assert unpack(pack((1, {"a": (2, 3)}))) == [1, {"a": [2, 3]}]


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i1", "u8", "?", "c8"])
def test_arrays_arrive_bit_for_bit(dtype: str) -> None:
    rng = np.random.default_rng(0)
    sent = [rng.integers(0, 2, shape).astype(dtype) for shape in ((), (0, 3), (5,), (2, 3, 4))]
    sent += [np.arange(12).reshape(3, 4).astype(dtype).T, np.array([0.0, -0.0]).astype(dtype)]
    found = unpack(pack({"arrays": sent, "last": sent[2]}))
    for have, want in zip([*found["arrays"], found["last"]], [*sent, sent[2]], strict=True):
        assert (have.dtype, have.shape, have.tobytes()) == (want.dtype, want.shape, want.tobytes())
        assert have.flags.writeable


def test_nan_keeps_its_bits() -> None:
    sent = np.array([np.nan, -np.inf], np.float32)
    assert unpack(pack(sent)).tobytes() == sent.tobytes()
    assert np.isnan(unpack(pack(float("nan"))))


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, Path("a"), np.array([None]), np.array(["x"]), np.float32(1)])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot send"):
        pack([value])
