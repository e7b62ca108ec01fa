"""Declares the compiled operations to MindSpore: their shapes and gradients. All tensors are float32."""

from collections.abc import Callable
from typing import Any

from mindspore import dtype as mstype
from mindspore import ops

from vpred_train.kernels.library import loaded

Shape = list[int]


def operation(
    name: str, out_shape: Callable[..., Any], outputs: int, bprop: Callable[..., Any] | None = None, **settings: Any
) -> Any:
    """Wrap the function `vpred_{name}` of the library.

    out_shape: takes the inputs' shapes and may depend only on them and `settings`, because MindSpore treats operations
    with the same name and settings as identical.
    outputs: number of results.
    """

    def out_dtype(*dtypes: Any) -> Any:
        return mstype.float32 if outputs == 1 else (mstype.float32,) * outputs

    custom = ops.Custom(f"{loaded()}:vpred_{name}", out_shape, out_dtype, func_type="aot", bprop=bprop)
    for setting, value in settings.items():
        custom.add_prim_attr(setting, value)
    return custom


def convolution(kernel: int | tuple[int, int], stride: int, at_end: bool) -> Any:
    """Return the convolution: x (B, C, H, W), weight, bias -> (B, out, H / stride, W / stride).

    kernel: its side, or its height and width.
    at_end: pad kernel // 2 only below and on the right, not on all sides.
    """
    name = "convolution_at_end" if at_end else "convolution"
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)

    def length(pixels: int, side: int) -> int:
        return (pixels + side // 2 * (1 if at_end else 2) - side) // stride + 1

    def y_shape(x: Shape, weight: Shape, bias: Shape) -> Shape:
        return [x[0], weight[0], length(x[2], sides[0]), length(x[3], sides[1])]

    def dx_shape(dy: Shape, weight: Shape, x: Shape) -> Shape:
        return x

    def dweight_shape(dy: Shape, x: Shape, weight: Shape) -> tuple[Shape, Shape]:
        return weight, weight[:1]

    backward_x = operation(f"{name}_backward_x", dx_shape, 1)
    backward_weight = operation(f"{name}_backward_weight", dweight_shape, 2)

    def bprop(x: Any, weight: Any, bias: Any, y: Any, dy: Any) -> tuple[Any, ...]:
        dweight, dbias = backward_weight(dy, x, weight)
        return backward_x(dy, weight, x), dweight, dbias

    return operation(name, y_shape, 1, bprop, kernel=kernel, stride=stride)


def linear(biased: bool) -> Any:
    """Return the linear map: x (..., in), weight (out, in), if `biased` bias (out,) -> x weight^T + bias (..., out)."""

    def y_shape(x: Shape, weight: Shape, *bias: Shape) -> Shape:
        return [*x[:-1], weight[0]]

    def dx_shape(dy: Shape, weight: Shape) -> Shape:
        return [*dy[:-1], weight[1]]

    def dweight_shape(dy: Shape, x: Shape) -> Shape:
        return [dy[-1], x[-1]]

    def dbias_shape(dy: Shape) -> Shape:
        return dy[-1:]

    backward_x = operation("linear_backward_x", dx_shape, 1)
    backward_weight = operation("linear_backward_weight", dweight_shape, 1)
    backward_bias = operation("linear_backward_bias", dbias_shape, 1)

    def bprop(x: Any, weight: Any, y: Any, dy: Any) -> tuple[Any, ...]:
        return backward_x(dy, weight), backward_weight(dy, x)

    def biased_bprop(x: Any, weight: Any, bias: Any, y: Any, dy: Any) -> tuple[Any, ...]:
        return backward_x(dy, weight), backward_weight(dy, x), backward_bias(dy)

    if biased:
        return operation("linear_biased", y_shape, 1, biased_bprop)
    return operation("linear", y_shape, 1, bprop)


def group_norm(groups: int, silu: bool) -> Any:
    """Return group normalisation, with SiLU if `silu`.

    x (B, C, H, W), weight (C,), bias (C,), eps (1,) -> y, mean (B, groups), 1 / standard deviation (B, groups).
    """
    name = "group_norm_silu" if silu else "group_norm"

    def shapes(x: Shape, weight: Shape, bias: Shape, eps: Shape) -> tuple[Shape, ...]:
        return x, [x[0], groups], [x[0], groups]

    def backward_shapes(dy: Shape, x: Shape, *others: Shape) -> tuple[Shape, ...]:
        return x, [x[0], x[1]], [x[0], x[1]]

    backward = operation(f"{name}_backward", backward_shapes, 3)

    def bprop(x: Any, weight: Any, bias: Any, eps: Any, out: Any, dout: Any) -> tuple[Any, ...]:
        dx, dweight, dbias = backward(dout[0], x, weight, bias, out[1], out[2])
        return dx, dweight.sum(0), dbias.sum(0), ops.zeros_like(eps)

    return operation(name, shapes, 3, bprop, groups=groups)


def layer_norm() -> Any:
    """Return layer normalisation.

    x (..., C), weight (C,), bias (C,), eps (1,) -> y, mean (...), 1 / standard deviation (...).
    """

    def shapes(x: Shape, weight: Shape, bias: Shape, eps: Shape) -> tuple[Shape, ...]:
        return x, x[:-1], x[:-1]

    def backward_shapes(dy: Shape, x: Shape, weight: Shape, mean: Shape, rstd: Shape) -> tuple[Shape, ...]:
        return x, weight, weight

    backward = operation("layer_norm_backward", backward_shapes, 3)

    def bprop(x: Any, weight: Any, bias: Any, eps: Any, out: Any, dout: Any) -> tuple[Any, ...]:
        dx, dweight, dbias = backward(dout[0], x, weight, out[1], out[2])
        return dx, dweight, dbias, ops.zeros_like(eps)

    return operation("layer_norm", shapes, 3, bprop)


def geglu() -> Any:
    """Return GEGLU: x (..., 2 C), values and gates -> values * gelu(gates) (..., C)."""

    def y_shape(x: Shape) -> Shape:
        return [*x[:-1], x[-1] // 2]

    def dx_shape(dy: Shape, x: Shape) -> Shape:
        return x

    backward = operation("geglu_backward", dx_shape, 1)

    def bprop(x: Any, y: Any, dy: Any) -> tuple[Any, ...]:
        return (backward(dy, x),)

    return operation("geglu", y_shape, 1, bprop)


def doubled() -> Any:
    """Return the operation that repeats each pixel four times: (B, C, H, W) -> (B, C, 2 H, 2 W)."""

    def y_shape(x: Shape) -> Shape:
        return [*x[:2], 2 * x[2], 2 * x[3]]

    def dx_shape(dy: Shape) -> Shape:
        return [*dy[:2], dy[2] // 2, dy[3] // 2]

    backward = operation("doubled_backward", dx_shape, 1)

    def bprop(x: Any, y: Any, dy: Any) -> tuple[Any, ...]:
        return (backward(dy),)

    return operation("doubled", y_shape, 1, bprop)


def attention(heads: int) -> Any:
    """Return attention: q (B, N, heads d), k and v (B, M, heads d) -> y like q, and log-sum-exps (B, heads, N)."""

    def shapes(q: Shape, k: Shape, v: Shape) -> tuple[Shape, ...]:
        return q, [q[0], heads, q[1]]

    def backward_shapes(dy: Shape, q: Shape, k: Shape, v: Shape, *others: Shape) -> tuple[Shape, ...]:
        return q, k, v

    backward = operation("attention_backward", backward_shapes, 3)

    def bprop(q: Any, k: Any, v: Any, out: Any, dout: Any) -> tuple[Any, ...]:
        return backward(dout[0], q, k, v, out[0], out[1])

    return operation("attention", shapes, 2, bprop, heads=heads)
