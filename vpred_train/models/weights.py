"""Copies weights into networks and out of them, under Stability's names."""

from collections.abc import Mapping, Sequence
from functools import partial

from mindspore import Tensor

from vpred_train.arrays import FloatArray
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.host_copies import to_host
from vpred_train.models.networks import Networks
from vpred_train.weights.formats.stored_tensor import Float32, LazyTensors
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS, stability_name


def set_weights(networks: Networks, tensors: Mapping[str, Float32], parts: Sequence[str] = tuple(COMPONENTS)) -> None:
    """Fill the networks named in `parts`; the tensors are fetched one at a time, so that few are in memory twice."""
    for name, parameter in networks.parameters_and_names():
        if name.startswith(tuple(f"{part}." for part in parts)):
            parameter.set_data(Tensor.from_numpy(tensors[stability_name(name)]))


def get_weights(networks: Networks) -> LazyTensors:
    """Return all tensors of the networks; each is copied when it is fetched."""
    return LazyTensors(
        {stability_name(name): partial(to_host, parameter) for name, parameter in networks.parameters_and_names()}
    )


def stability_views(space: FlatSpace, values: FloatArray) -> dict[str, Float32]:
    """Return `values` (space.size,) float32 as tensors under Stability's names. They share its memory."""
    return {stability_name(name): tensor for name, tensor in space.views(values).items()}
