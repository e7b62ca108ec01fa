"""The compiled operations against MindSpore's own, forward and backward, at sizes that divide by nothing."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from vpred_train.kernels import library
from vpred_train.models.attention import GEGLU, Attention
from vpred_train.models.layers import Conv2d, Doubled, GroupNorm, LayerNorm, Linear

Make = Callable[[np.random.Generator], nn.Cell]
CASES: dict[str, tuple[Make, list[tuple[int, ...]]]] = {
    "convolution": (lambda rng: Conv2d(rng, 5, 7, 3), [(3, 5, 9, 11)]),
    "convolution of one pixel": (lambda rng: Conv2d(rng, 16, 16, 3), [(1, 16, 1, 1)]),
    "convolution 1 x 1": (lambda rng: Conv2d(rng, 32, 48, 1), [(2, 32, 6, 5)]),
    "convolution of stride 2": (lambda rng: Conv2d(rng, 8, 24, 3, stride=2), [(2, 8, 9, 10)]),
    "convolution padded at the end": (lambda rng: Conv2d(rng, 8, 8, 3, stride=2, pad_end=True), [(2, 8, 8, 10)]),
    "linear": (lambda rng: Linear(rng, 13, 21), [(3, 5, 13)]),
    "linear without bias": (lambda rng: Linear(rng, 32, 9, bias=False), [(17, 32)]),
    "two linear maps of one row": (lambda rng: nn.SequentialCell(Linear(rng, 8, 40), Linear(rng, 40, 8)), [(1, 8)]),
    "group norm": (lambda rng: GroupNorm(3, 21), [(2, 21, 5, 7)]),
    "group norm and SiLU": (lambda rng: GroupNorm(4, 8, 1e-6, silu=True), [(3, 8, 70, 61)]),
    "two strides": (
        lambda rng: nn.SequentialCell(Conv2d(rng, 8, 8, 3), Conv2d(rng, 8, 8, 3, stride=2)),
        [(1, 8, 8, 8)],
    ),
    "two numbers of groups": (lambda rng: nn.SequentialCell(GroupNorm(2, 8), GroupNorm(4, 8)), [(2, 8, 3, 3)]),
    "layer norm": (lambda rng: LayerNorm(33), [(2, 7, 33)]),
    "GEGLU": (lambda rng: GEGLU(rng, 6, 19), [(2, 5, 6)]),
    "doubling": (lambda rng: Doubled(), [(2, 3, 5, 7)]),
    "attention": (lambda rng: Attention(3, 5), [(2, 37, 15)] * 3),
    "attention in parts": (lambda rng: Attention(2, 4), [(1, 130, 8), (1, 2500, 8), (1, 2500, 8)]),
    "attention to a text": (lambda rng: Attention(2, 8), [(2, 50, 16), (2, 7, 16), (2, 7, 16)]),
}


def outputs(make: Make, inputs: list[Tensor], slope: float) -> list[Any]:
    """The result of a layer with fixed weights, then the gradients of sum(sin(slope * result)) in all that it has."""
    cell = make(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(rng.normal(0.2, 0.5, parameter.shape).astype(np.float32)))

    class Projected(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def construct(self, *args: Tensor) -> Tensor:
            return ops.sin(slope * self.cell(*args)).sum()

    weights = tuple(cell.get_parameters())
    positions = tuple(range(len(inputs)))
    gradients = ops.grad(Projected(), positions, weights or None)(*inputs)
    found = gradients if weights else (gradients, ())
    flat = [*(found[0] if isinstance(found[0], tuple) else found[:1]), *found[1]]
    return [tensor.asnumpy() for tensor in (cell(*inputs), *flat)]


def outputs_of(name: str) -> list[Any]:
    make, shapes = CASES[name]
    rng = np.random.default_rng(2)
    return outputs(make, [Tensor(rng.normal(0.1, 1.5, shape).astype(np.float32)) for shape in shapes], 0.7)


@cache
def plain_outputs_of(name: str) -> list[Any]:
    """Once for all numbers of threads."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(library, "_loaded", None)
        return outputs_of(name)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_compiled_equals_plain(name: str, threads: int) -> None:
    before = library.loaded()
    assert library.load(threads), f"not built: {library.BUILD_COMMAND} says why"
    compiled, plain = outputs_of(name), plain_outputs_of(name)
    assert library.loaded() == before
    for ours, right in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_finite_stays_so(name: str) -> None:
    """Divergence must be seen: no operation may turn NaN or infinity into a number."""
    make, shapes = CASES[name]
    cell = make(np.random.default_rng(0))
    for bad in (np.nan, np.inf):
        arrays = [np.full(shape, 0.5, np.float32) for shape in shapes]
        arrays[0].flat[3] = bad
        assert not np.isfinite(cell(*map(Tensor, arrays)).asnumpy()).all()


def test_the_build_is_done_once_and_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    built = library.build()
    assert built == library.library_path() and built.stat().st_mtime_ns == library.build().stat().st_mtime_ns
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "none" / "operations.so")
    monkeypatch.setattr(library, "_loaded", None)
    assert not library.load(1) and library.loaded() is None
    monkeypatch.setattr(library, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(library.BuildError, match=r"no C\+\+ compiler on PATH \(no-such-compiler\).*apt-get install"):
        library.build()
    monkeypatch.setattr(library, "COMPILERS", ("false",))
    with pytest.raises(library.BuildError, match="false failed"):
        library.build()
    assert list((tmp_path / "none").iterdir()) == []


def test_the_portable_library_stands_in_on_processors_that_have_its_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    built = library.build()
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "none.so")
    monkeypatch.setattr(library, "portable_path", lambda: built)
    every = " ".join(library.X86_64_V3)
    for line in ("", "flags : sse4_2", f"flags : {every}".replace("avx2", "avx")):
        monkeypatch.setattr(library, "_processor", lambda line=line: line)
        assert not library.load(1) and library.loaded() is None
    monkeypatch.setattr(library, "_processor", lambda: f"flags\t\t: sse4_2 {every} avx512f")
    assert library.load(1) and library.loaded() == built


def test_a_portable_build_is_another_file_whatever_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for line in ("flags : avx", "flags : avx2"):
        monkeypatch.setattr(library, "_processor", lambda line=line: line)
        found.add((library.library_path(), library.portable_path()))
    assert len({native for native, _ in found}) == 2 and len({portable for _, portable in found}) == 1
    assert "-march=x86-64-v3" in library.PORTABLE_FLAGS and "-march=native" not in library.PORTABLE_FLAGS


def test_the_graph_is_differentiated_through_recompute() -> None:
    """As in training with `recompute`: the same gradients."""
    x = Tensor(np.random.default_rng(3).standard_normal((2, 8, 6, 6)).astype(np.float32))
    gradients = []
    for again in (False, True):
        cell = Conv2d(np.random.default_rng(0), 8, 8, 3)
        if again:
            cell.recompute()
        gradients.append(ms.grad(cell, 0)(x).asnumpy())
    np.testing.assert_array_equal(*gradients)
