"""Layers with the operations that the table of accelerators names for Ascend.

Some of them exist for Ascend alone. In their place stand functions of the same signature, made of operations for CPU.
So what is tested of them is which is called, and with which arguments.
"""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, mint, nn, ops
from mindspore import dtype as mstype

from launcher.contract.accelerators import ACCELERATORS
from vpred_train.kernels import implementations, library
from vpred_train.models.attention import Attention
from vpred_train.models.indexing import INDEXING
from vpred_train.models.layers import Conv2d, GroupNorm, LayerNorm, Linear

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def as_on_ascend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers that are built in the test take Ascend's operations."""
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(implementations, "_chosen", ACCELERATORS["ascend"].operations)
    yield


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# Parameters of the real functions, so that the stand-ins take what these take.
def conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> Any:
    return ops.conv2d(input, weight, bias, stride, "pad", padding, dilation, groups)


def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Any:
    y = input.reshape((-1, *normalized_shape))
    y = y - y.mean(-1, keep_dims=True)
    y = y / ops.sqrt((y * y).mean(-1, keep_dims=True) + eps)
    return (y * weight + bias).reshape(input.shape)


def refuses(*arguments: Any, **settings: Any) -> Any:
    raise ValueError("flash attention was called")


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(each.name, each.default) for each in inspect.signature(function).parameters.values()]


def test_the_stand_ins_have_the_signatures_of_the_wheel() -> None:
    assert parameters(conv2d) == parameters(mint.nn.functional.conv2d)
    assert parameters(layer_norm) == parameters(mint.nn.functional.layer_norm)
    names = [name for name, _ in parameters(ops.flash_attention_score)]
    assert names[:4] == ["query", "key", "value", "head_num"]
    assert dict(parameters(ops.flash_attention_score))["input_layout"] == "BSH"
    assert "scalar_value" in names


def reference_convolution(x: np.ndarray, cell: Conv2d, stride: int, before: int, after: int) -> np.ndarray:
    """Sum over windows in float64, padded by `before` above and on the left, by `after` below and on the right."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (before, after), (before, after)))
    weight = cell.weight.asnumpy().astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bcijkl,ockl->boij", windows, weight) + cell.bias.asnumpy()[:, None, None]


@pytest.mark.parametrize(("kernel", "stride", "pad_end"), [(1, 1, False), (3, 1, False), (3, 2, False), (3, 2, True)])
def test_convolution_by_mint(kernel: int, stride: int, pad_end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mint.nn.functional, "conv2d", conv2d)
    x = normal(2, 3, 6, 8)
    cell = Conv2d(RNG, 3, 4, kernel, stride=stride, pad_end=pad_end)
    before = 0 if pad_end else kernel // 2
    expected = reference_convolution(x, cell, stride, before, kernel // 2)
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_by_mint(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 whatever the dtype of the input."""
    monkeypatch.setattr(mint.nn.functional, "layer_norm", layer_norm)
    cell, x = LayerNorm(6, eps=1e-2), normal(2, 5, 6)
    weight, bias = normal(6), normal(6)
    cell.weight.set_data(Tensor(weight))
    cell.bias.set_data(Tensor(bias))
    x_64 = x.astype(np.float64)
    deviation = np.sqrt(x_64.var(-1, keepdims=True) + 1e-2)
    expected = (x_64 - x_64.mean(-1, keepdims=True)) / deviation * weight + bias
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, rtol=1e-5, atol=1e-5)
    half = cell(Tensor(x.astype(np.float16)))
    assert half.dtype == mstype.float16
    np.testing.assert_allclose(half.asnumpy(), expected, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_by_mint_and_its_gradients(bias: bool) -> None:
    cell, x, slope = Linear(RNG, 5, 3, bias), normal(2, 4, 5), normal(2, 4, 3)
    weight = cell.weight.asnumpy().astype(np.float64)
    expected = x @ weight.T + (cell.bias.asnumpy() if bias else 0)
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, rtol=1e-5, atol=1e-5)
    learning = tuple(cell.trainable_params())

    def projected(x: Tensor) -> Tensor:
        return (cell(x) * Tensor(slope)).sum()

    dx, found = ops.grad(projected, 0, learning)(Tensor(x))
    np.testing.assert_allclose(dx.asnumpy(), slope @ weight, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[0].asnumpy(), np.einsum("bni,bnj->ij", slope, x), rtol=1e-5, atol=1e-5)
    if bias:
        np.testing.assert_allclose(found[1].asnumpy(), slope.sum((0, 1)), rtol=1e-5, atol=1e-5)


def flash_attention_score(
    query: Any, key: Any, value: Any, head_num: Any, *others: Any, scalar_value: Any = 1.0, input_layout: Any = "BSH"
) -> Any:
    """As documented, for BSH without a mask."""
    batch, tokens, inner = query.shape
    width = inner // head_num
    q, k, v = (each.reshape(batch, -1, head_num, width).transpose(0, 2, 1, 3) for each in (query, key, value))
    weights = ops.softmax((ops.matmul(q, k.transpose(0, 1, 3, 2)) * scalar_value).astype(mstype.float32), -1)
    return ops.matmul(weights.astype(v.dtype), v).transpose(0, 2, 1, 3).reshape(batch, tokens, inner)


def attention_in_float64(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    q, k, v = (each.astype(np.float64).reshape(*each.shape[:2], heads, -1) for each in (q, k, v))
    logits = np.einsum("bnhc,bmhc->bhnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhnm,bmhc->bnhc", weights, v)
    return y.reshape(*y.shape[:2], -1)


def test_attention_by_flash_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """77 keys, which are no multiple of 16, and the unscaled query with its scale."""
    monkeypatch.setattr(ops, "flash_attention_score", flash_attention_score)
    q, k, v = normal(2, 9, 64), normal(2, 77, 64), normal(2, 77, 64)
    found = Attention(2, 32)(*(Tensor(each.astype(np.float16)) for each in (q, k, v)))
    assert found.dtype == mstype.float16
    np.testing.assert_allclose(found.asnumpy(), attention_in_float64(q, k, v, 2), atol=4e-3)


def test_flash_is_called_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "flash_attention_score", refuses)
    x = Tensor(normal(1, 4, 64).astype(np.float16))
    with pytest.raises((ValueError, RuntimeError), match="flash attention was called"):
        Attention(2, 32)(x, x, x)


@pytest.mark.parametrize(
    ("head_channels", "dtype", "mask"),
    [(32, np.float32, False), (32, np.float16, True), (24, np.float16, False), (512, np.float16, False)],
    ids=["float32", "mask", "no multiple of 16", "wide"],
)
def test_attention_is_composed_where_flash_cannot_be(
    head_channels: int, dtype: Any, mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "flash_attention_score", refuses)
    q, k, v = (normal(1, 4, 2 * head_channels) for _ in range(3))
    inputs = [Tensor(each.astype(dtype)) for each in (q, k, v)]
    found = Attention(2, head_channels)(*inputs, *([Tensor(np.zeros((4, 4), np.float32))] if mask else []))
    np.testing.assert_allclose(found.asnumpy(), attention_in_float64(q, k, v, 2), atol=4e-3)


def test_flash_has_the_composed_path_as_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = replace(ACCELERATORS["ascend"].operations, attention="composed")
    monkeypatch.setattr(implementations, "_chosen", composed)
    monkeypatch.setattr(ops, "flash_attention_score", refuses)
    x = Tensor(normal(1, 4, 64).astype(np.float16))
    assert Attention(2, 32)(x, x, x).shape == (1, 4, 64)


class Rows(nn.Cell):
    """Looks up in a graph: outside of one, MindSpore has no kernel for mint's function on CPU."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.rows = INDEXING[name].rows

    def construct(self, numbers: Tensor, table: Tensor) -> Tensor:
        return self.rows(numbers, table)


@pytest.mark.parametrize("name", INDEXING)
def test_cuts_and_means_against_numpy(name: str) -> None:
    cut, x = INDEXING[name], normal(2, 5, 4, 7)
    for part, expected in zip(cut.split(Tensor(x), 2, 1), np.split(x, [2, 4], 1), strict=True):
        np.testing.assert_array_equal(part.asnumpy(), expected)
    for part, expected in zip(cut.chunk(Tensor(x), 2, 2), np.split(x, 2, 2), strict=True):
        np.testing.assert_array_equal(part.asnumpy(), expected)
    np.testing.assert_array_equal(cut.crop(Tensor(x), 3, 6).asnumpy(), x[:, :, :3, :6])
    np.testing.assert_allclose(cut.mean(Tensor(x), (1, 2, 3)).asnumpy(), x.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cut.mean(Tensor(x)).asnumpy(), x.mean(), rtol=1e-5, atol=1e-6)
    numbers, table = np.array([[3, 0], [1, 3]], np.int32), normal(4, 6)
    np.testing.assert_array_equal(Rows(name)(Tensor(numbers), Tensor(table)).asnumpy(), table[numbers])


def test_group_norm_is_mindspores() -> None:
    assert not GroupNorm(2, 4).as_batch_norm
