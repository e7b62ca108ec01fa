"""Declares the plain numbers that one training step reports, and measures its parts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vpred_train.distributed.watchdog import CollectiveTimer


@dataclass(frozen=True)
class StepResult:
    """Holds what hooks see of a step.

    loss, grad_norm: of the global batch
    finite: an update was made
    overflow: no update was made, because the gradient overflowed at `loss_scale`; the scale has been lowered
    nonfinite_samples: rank -> its sample ids, for the ranks whose local loss or gradient was not finite
    step_seconds: this rank's time for the step, seconds; the numbers after it are its parts and add up to it
    data_wait_seconds: waiting for the batch
    encode_seconds: making latents, text and noise of the batch
    forward_backward_seconds: loss and gradients, with compilation, and the rest of the host's work
    collective_seconds: waiting for other ranks, and exchanging with them
    update_seconds: optimiser and averages
    graph_seconds: on the device engine, the graph that does all but the first two
    """

    step: int
    samples_seen: int
    loss: float
    grad_norm: float
    learning_rate: float
    finite: bool
    overflow: bool
    loss_scale: float
    nonfinite_samples: dict[int, list[int]]
    step_seconds: float
    data_wait_seconds: float
    encode_seconds: float
    forward_backward_seconds: float
    collective_seconds: float
    update_seconds: float
    graph_seconds: float

    @property
    def own_seconds(self) -> float:
        """Return the time that does not depend on the other ranks, seconds."""
        return self.step_seconds - self.collective_seconds - self.graph_seconds


class StepClock:
    """Measures a step and its parts. Time in collectives inside a part counts as theirs alone.

    timer: that of the rank's collectives
    wait_s: time that the step waited for its batch before it began, seconds
    """

    def __init__(self, timer: CollectiveTimer, wait_s: float) -> None:
        self._timer, self._wait_s = timer, wait_s
        self._begun_s, self._waited_s = time.perf_counter(), timer.total_s
        self._encode_s = self._update_s = self._graph_s = 0.0

    @contextmanager
    def encode(self) -> Iterator[None]:
        """Count the `with` block as making the network's inputs."""
        begun_s = time.perf_counter()
        yield
        self._encode_s += time.perf_counter() - begun_s

    @contextmanager
    def update(self) -> Iterator[None]:
        """Count the `with` block as the update, but for its collectives."""
        begun_s, waited_s = time.perf_counter(), self._timer.total_s
        yield
        self._update_s += time.perf_counter() - begun_s - (self._timer.total_s - waited_s)

    @contextmanager
    def graph(self) -> Iterator[None]:
        """Count the `with` block as the device's graph, though the rank's timer takes it for a collective."""
        begun_s, waited_s = time.perf_counter(), self._timer.total_s
        yield
        self._graph_s += time.perf_counter() - begun_s
        self._waited_s += self._timer.total_s - waited_s

    def seconds(self) -> dict[str, float]:
        """Return the fields of StepResult that are seconds, up to now."""
        step_s = time.perf_counter() - self._begun_s + self._wait_s
        parts = {
            "data_wait_seconds": self._wait_s,
            "encode_seconds": self._encode_s,
            "collective_seconds": self._timer.total_s - self._waited_s,
            "update_seconds": self._update_s,
            "graph_seconds": self._graph_s,
        }
        return {"step_seconds": step_s, **parts, "forward_backward_seconds": max(0.0, step_s - sum(parts.values()))}
