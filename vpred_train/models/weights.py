"""Weights into networks and out of them, under Stability's names."""

from collections.abc import Mapping, Sequence
from functools import partial

from mindspore import Tensor

from vpred_train.diffusion.schedule import FloatArray
from vpred_train.models.networks import FlatSpace, Networks
from vpred_train.weights.shapes import COMPONENTS, stability_name
from vpred_train.weights.stored import Float32, LazyTensors


def views_to_export(space: FlatSpace, values: FloatArray) -> dict[str, Float32]:
    """`values` (space.size,) as tensors under Stability's names that share its memory."""
    return {stability_name(name): tensor for name, tensor in space.views(values).items()}


def set_weights(networks: Networks, tensors: Mapping[str, Float32], parts: Sequence[str] = tuple(COMPONENTS)) -> None:
    """Fill the networks named in `parts`; the tensors are asked for one at a time, so that few are in memory twice."""
    for name, parameter in networks.parameters_and_names():
        if name.startswith(tuple(f"{part}." for part in parts)):
            parameter.set_data(Tensor.from_numpy(tensors[stability_name(name)]))


def get_weights(networks: Networks) -> LazyTensors:
    """All tensors of the networks, copied one at a time when asked for."""
    return LazyTensors(
        {stability_name(name): partial(parameter.asnumpy) for name, parameter in networks.parameters_and_names()}
    )
