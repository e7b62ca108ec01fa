"""Treats a network's trainable parameters as one flat float32 space."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import nn

from vpred_train.arrays import FloatArray
from vpred_train.distributed.spans import Span
from vpred_train.host_copies import to_device, to_host


class FlatSpace:
    """Represents the trainable parameters of a network, in a fixed order, as one 1-D float32 space.

    parts: members of the network whose parameters are taken, e.g. ("unet",); empty means all
    """

    def __init__(self, network: nn.Cell, parts: Sequence[str] = ()) -> None:
        prefixes = tuple(f"{part}." for part in parts) or ("",)
        named = [
            (name, item)
            for name, item in network.parameters_and_names()
            if item.requires_grad and name.startswith(prefixes)
        ]
        self.parameters = [parameter for _, parameter in named]
        stops = np.cumsum([parameter.size for parameter in self.parameters]).tolist()
        self.spans = tuple(
            Span(name, tuple(parameter.shape), stop - parameter.size, stop)
            for (name, parameter), stop in zip(named, stops, strict=True)
        )
        self.shapes = {span.name: span.shape for span in self.spans}
        self.size = stops[-1]

    def read(self) -> FloatArray:
        """Return a copy of the parameters' values, (size,) float32."""
        return np.concatenate([to_host(parameter).reshape(-1) for parameter in self.parameters])

    def flatten(self) -> FloatArray:
        """Move the parameters' values one by one into one array, (size,) float32, and return it.

        On a device that computes in host memory the parameters then share this array, so that it is the only copy.
        """
        values = np.empty(self.size, np.float32)
        for parameter, view in zip(self.parameters, self.views(values).values(), strict=True):
            np.copyto(view, to_host(parameter))
            parameter.set_data(to_device(view))
        return values

    def write(self, values: FloatArray) -> None:
        """Set the parameters from `values` (size,) float32."""
        for parameter, span in zip(self.parameters, self.spans, strict=True):
            parameter.set_data(to_device(values[span.start : span.stop].reshape(span.shape)))

    def views(self, values: FloatArray) -> dict[str, np.ndarray[Any, Any]]:
        """Return `values` (size,) as named tensors that share its memory."""
        return {span.name: values[span.start : span.stop].reshape(span.shape) for span in self.spans}
