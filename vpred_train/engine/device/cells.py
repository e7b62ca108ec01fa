"""Builds the graphs of the device engine: one step, its two halves for accumulation, and the display of an average.

Buckets pass through them as tuples of flat tensors. One map over such a tuple compiles several times faster than a cell
for each bucket. Every parameter is a member of the cell that uses it: a graph read from the cache gives others memory
of their own, without an error.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from vpred_train.config.optimizer import OptimizerConfig, component_of
from vpred_train.distributed.device_collective import REDUCE_SCATTER, AllGather, AllReduce
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.engine.device.buckets import Bucket, LocalParts
from vpred_train.engine.device.rules import RULES
from vpred_train.engine.objective import DiffusionLoss

MODEL = "model"  # component of the weights

flat_ = ops.MultitypeFuncGraph("flat")
set_ = ops.MultitypeFuncGraph("set")
square_ = ops.MultitypeFuncGraph("square")
average_ = ops.MultitypeFuncGraph("average")
choose_ = ops.MultitypeFuncGraph("choose")
add_ = ops.MultitypeFuncGraph("add")
assign, concat, reshape, select = ops.Assign(), ops.Concat(0), ops.Reshape(), ops.Select()
split = ops.auto_generate.SplitWithSize()  # ops.split makes a slice of each piece, and the compiler recurses over them


@flat_.register("Tensor")
def _flat(value):  # type: ignore[no-untyped-def]
    return reshape(value, (-1,))


@set_.register("Tensor", "Tensor")
def _set(parameter, piece):  # type: ignore[no-untyped-def]
    return assign(parameter, reshape(piece, parameter.shape))


@square_.register("Tensor")
def _square(value):  # type: ignore[no-untyped-def]
    return reshape(ops.square(value).sum(), (1,))


@average_.register("Tensor", "Tensor", "Tensor", "Tensor")
def _average(finite, share, average, weights):  # type: ignore[no-untyped-def]
    new = select(finite, average + share * (weights - average), average)
    assign(average, new)
    return new


@choose_.register("Tensor", "Tensor", "Tensor")
def _choose(chosen, yes, no):  # type: ignore[no-untyped-def]
    return select(chosen, yes, no)


@add_.register("Tensor", "Tensor", "Tensor")
def _add(first, total, value):  # type: ignore[no-untyped-def]
    # A choice, since `total` may hold NaN of a skipped step, which a product with 0 would keep.
    new = select(first, value, total + value)
    assign(total, new)
    return new


def zeros(name: str, size: int) -> Parameter:
    return Parameter(Tensor(np.zeros(size, np.float32)), name=name, requires_grad=False)


class Arrays(nn.Cell):
    """Holds this rank's part of each bucket, for the weights, every moment and every average.

    Each component of a checkpoint is an attribute of its name: a tuple of (n,) float32 parameters.
    """

    def __init__(self, local: LocalParts, optimizer: OptimizerConfig, averages: Sequence[str]) -> None:
        super().__init__()
        self.moment_names, self.average_names = optimizer.moment_names, tuple(averages)
        self.components = (MODEL, *self.moment_names, *map(component_of, averages))
        sizes = [part.stop - part.start for part in local.slices]
        for component in self.components:
            parameters = [zeros(f"{component}.{number}", size) for number, size in enumerate(sizes)]
            setattr(self, component, ParameterTuple(parameters))

    def of(self, component: str) -> ParameterTuple:
        return getattr(self, component)

    @property
    def moments(self) -> tuple[ParameterTuple, ...]:
        return tuple(map(self.of, self.moment_names))

    @property
    def averages(self) -> tuple[ParameterTuple, ...]:
        return tuple(self.of(component_of(name)) for name in self.average_names)


class Flatten(nn.Cell):
    """Joins gradients, in the order of the buckets' tensors, to one padded flat tensor for each bucket."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        super().__init__()
        self.ranges = tuple(pairwise(accumulate((len(bucket.spans) for bucket in buckets), initial=0)))
        paddings = [sum(bucket.lengths[len(bucket.spans) :]) for bucket in buckets]
        self.paddings = tuple((Tensor(np.zeros(size, np.float32)),) if size else () for size in paddings)
        self.map, self.count = ops.HyperMap(), len(buckets)

    def construct(self, gradients: Any) -> tuple[Tensor, ...]:
        flat = self.map(flat_, gradients)
        buckets: Any = ()
        for index in range(self.count):
            start, stop = self.ranges[index]
            buckets += (concat(flat[start:stop] + self.paddings[index]),)
        return buckets


class Spread(nn.Cell):
    """Sets the networks' parameters from all ranks' parts of the buckets."""

    def __init__(self, space: FlatSpace, local: LocalParts) -> None:
        super().__init__()
        parameters = dict(zip(space.shapes, space.parameters, strict=True))
        targets = [ParameterTuple([parameters[span.name] for span in bucket.spans]) for bucket in local.buckets]
        for index, target in enumerate(targets):
            setattr(self, f"bucket_{index}", target)
        self.targets = tuple(targets)
        self.lengths = tuple(bucket.lengths for bucket in local.buckets)
        self.counts = tuple(len(bucket.spans) for bucket in local.buckets)
        self.count, self.sharded = len(targets), local.ranks > 1
        self.gather: Any = AllGather() if self.sharded else None
        self.map = ops.HyperMap()

    def construct(self, parts: Any) -> None:
        for index in range(self.count):
            bucket = self.gather(parts[index]) if self.sharded else parts[index]
            if len(self.lengths[index]) == 1:  # MindSpore may read the input of a split into one piece too early
                _set(self.targets[index][0], bucket)
            else:
                pieces = split(bucket, self.lengths[index], 0)
                self.map(set_, self.targets[index], pieces[: self.counts[index]])


class Update(nn.Cell):
    """Reduces the buckets' gradients over the ranks, votes, clips, updates this rank's parts, and sets the networks.

    A skipped step assigns what the arrays held before, so that no bit of them changes.

    Inputs: gradients, this rank's full buckets, of the scaled loss; loss (1,) float32, scaled;
    numbers (n,) float32: 1 / divisor of the gradient, largest norm, the rule's numbers, each average's share of the new
    weights.
    Returns (2 world_size + 2,) float32: each rank's loss and squared gradient norm before the collective, then the norm
    of the global batch's gradient, and 1 for an update or 0 for a skipped step.
    """

    def __init__(
        self, arrays: Arrays, space: FlatSpace, local: LocalParts, optimizer: OptimizerConfig, world_size: int,
        backend: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.arrays, self.spread, self.rule = arrays, Spread(space, local), RULES[optimizer.name](optimizer)
        self.model, self.moments, self.averages = arrays.of(MODEL), arrays.moments, arrays.averages
        self.decaying = sum(bucket.decays for bucket in local.buckets)  # these come first
        self.count, self.average_count = len(local.buckets), len(arrays.averages)
        self.several = world_size > 1
        if self.several:
            self.reduce: Any = REDUCE_SCATTER[backend]() if local.ranks > 1 else AllReduce()
            self.sum, self.gather = AllReduce(), AllGather()
        self.copies = Tensor([1 / (world_size // local.ranks)], mstype.float32)
        self.map, self.one = ops.HyperMap(), Tensor([1.0], mstype.float32)
        self.without_decay = Tensor([self.rule.without_decay], mstype.float32)

    def construct(self, gradients: Any, loss: Tensor, numbers: Tensor) -> Tensor:
        numbers = split(numbers, (1,) * numbers.shape[0], 0)
        square = self.square_sum(gradients)
        votes = concat((loss, square))
        if self.several:
            votes = self.gather(votes)
            reduced: Any = ()
            for bucket in gradients:
                reduced += (self.reduce(bucket),)
            gradients = reduced
            # The sum over the ranks is the same on each of them, so that all clip alike.
            square = self.sum(self.square_sum(gradients)) * self.copies
        norm = ops.sqrt(square) * numbers[0]
        finite = ops.isfinite(concat((votes, norm))).all().reshape((1,))
        factor = ops.minimum(numbers[1] / (norm + 1e-6), self.one) * numbers[0]
        weights = self.update(finite, factor, gradients, numbers[2 : len(numbers) - self.average_count])
        for index in range(self.average_count):
            share = numbers[len(numbers) - self.average_count + index]
            self.map(ops.partial(average_, finite, share), self.averages[index], weights)
        self.spread(weights)
        return concat((votes, norm, finite.astype(mstype.float32)))

    def square_sum(self, buckets: Any) -> Tensor:
        return concat(self.map(square_, buckets)).sum().reshape((1,))

    def update(self, finite: Tensor, factor: Tensor, gradients: Any, numbers: Any) -> tuple[Tensor, ...]:
        stop = self.decaying
        moments: Any = ()
        other_moments: Any = ()
        for moment in self.moments:
            moments += (moment[:stop],)
            other_moments += (moment[stop:],)
        weights = ()
        if stop > 0:
            weights = self.rule(finite, factor, numbers, gradients[:stop], self.model[:stop], moments)
        if stop < self.count:
            numbers = numbers[:-1] + (self.without_decay,)  # noqa: RUF005 MindSpore's parser knows no starred items
            weights += self.rule(finite, factor, numbers, gradients[stop:], self.model[stop:], other_moments)
        return weights


class Backward(nn.Cell):
    """Maps the arguments of DiffusionLoss to the loss (1,) and the gradient's buckets."""

    def __init__(self, loss: DiffusionLoss, space: FlatSpace, buckets: Sequence[Bucket]) -> None:
        super().__init__()
        self.loss, self.flatten = loss, Flatten(buckets)
        parameters = dict(zip(space.shapes, space.parameters, strict=True))
        ordered = [parameters[span.name] for bucket in buckets for span in bucket.spans]
        self.loss_and_gradients = ops.value_and_grad(loss, None, ParameterTuple(ordered))

    def construct(
        self, z_t: Tensor, target: Tensor, weight: Tensor, timesteps: Tensor, text: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss, gradients = self.loss_and_gradients(z_t, target, weight, timesteps, text)
        return loss.reshape((1,)), self.flatten(gradients)


class WholeStep(nn.Cell):
    """Makes an optimiser step as one graph."""

    def __init__(self, backward: Backward, update: Update) -> None:
        super().__init__()
        self.backward, self.update = backward, update

    def construct(
        self, z_t: Tensor, target: Tensor, weight: Tensor, timesteps: Tensor, text: Tensor, numbers: Tensor
    ) -> Tensor:
        loss, gradients = self.backward(z_t, target, weight, timesteps, text)
        return self.update(gradients, loss, numbers)


class Sums(nn.Cell):
    """Holds the sums of loss and gradient over the micro-batches of a step."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        super().__init__()
        self.loss = zeros("sum_loss", 1)
        self.gradients = ParameterTuple([zeros(f"sum.{number}", each.size) for number, each in enumerate(buckets)])


class Accumulate(nn.Cell):
    """Adds loss and gradient of a micro-batch to the sums. `first` (1,) bool starts them."""

    def __init__(self, backward: Backward, sums: Sums) -> None:
        super().__init__()
        self.backward, self.sums, self.map = backward, sums, ops.HyperMap()

    def construct(
        self, z_t: Tensor, target: Tensor, weight: Tensor, timesteps: Tensor, text: Tensor, first: Tensor
    ) -> Tensor:
        loss, gradients = self.backward(z_t, target, weight, timesteps, text)
        self.map(ops.partial(add_, first), self.sums.gradients, gradients)
        return _add(first, self.sums.loss, loss)


class Apply(nn.Cell):
    """Makes an optimiser step from the sums over `parts` micro-batches."""

    def __init__(self, update: Update, sums: Sums, parts: int) -> None:
        super().__init__()
        self.update, self.sums, self.parts = update, sums, parts

    def construct(self, numbers: Tensor) -> Tensor:
        return self.update(self.sums.gradients, self.sums.loss / self.parts, numbers)


class Show(nn.Cell):
    """Sets the networks' parameters from one component.

    chosen: (averages,) bool, true for the average to show; the weights when none is
    """

    def __init__(self, arrays: Arrays, spread: Spread) -> None:
        super().__init__()
        self.arrays, self.spread, self.map = arrays, spread, ops.HyperMap()
        self.model, self.averages, self.count = arrays.of(MODEL), arrays.averages, len(arrays.averages)

    def construct(self, chosen: Tensor) -> Tensor:
        flags = split(chosen, (1,) * chosen.shape[0], 0)
        parts = self.model
        for index in range(self.count):
            parts = self.map(ops.partial(choose_, flags[index]), self.averages[index], parts)
        self.spread(parts)
        return chosen
