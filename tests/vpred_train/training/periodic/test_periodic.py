"""When periodic actions are due, in which order they act, and what a run that stops leaves out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vpred_train.config.train import TrainConfig
from vpred_train.training.hooks.hook import Hook, Hooks
from vpred_train.training.periodic.periodic import Boundary, Observer


def at(samples_seen: int, **keys: Any) -> Boundary:
    return Boundary(samples_seen // 4, samples_seen, 4, **keys)


@pytest.mark.parametrize(
    ("samples_seen", "every", "due"), [(4, 4, True), (4, 5, False), (8, 5, True), (12, 7, False), (12, 2, True)]
)
def test_a_boundary_is_due_when_its_step_passed_a_multiple(samples_seen: int, every: int, due: bool) -> None:
    assert at(samples_seen).is_due(every) == due
    assert at(samples_seen, finished=True).is_due(every)


class Phases(Hook):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def on_phase(self, phase: str, step: int, samples_seen: int) -> None:
        self.seen.append((phase, step, samples_seen))


class Looks(Observer):
    def __init__(self) -> None:
        super().__init__(every_samples=8)
        self.samples: list[int] = []

    def observe(self, now: Boundary, hooks: Hook) -> None:
        self.samples.append(now.samples_seen)


def test_an_observer_looks_first_at_intervals_and_at_the_end() -> None:
    looks, phases = Looks(), Phases()
    looks.before_first_step(at(0), phases)
    for now in (at(4), at(8), at(12), at(16), at(20, finished=True)):
        looks.after_step(now, phases)
    assert looks.samples == [0, 8, 16, 20]
    assert phases.seen == [("validating", seen // 4, seen) for seen in looks.samples]


def test_an_observer_does_not_delay_a_run_that_stops() -> None:
    looks = Looks()
    looks.after_step(at(8, stopping=True), Hook())
    looks.after_step(at(8, stopping=True, finished=True), Hook())
    assert looks.samples == []


def test_snapshots_are_written_also_when_the_run_stops(train_config: TrainConfig, tmp_path: Path) -> None:
    from vpred_train.ema.snapshots import find_snapshots
    from vpred_train.training.periodic.snapshots import EmaSnapshots

    space = SimpleNamespace(views=lambda values: {"unet.out.2.bias": values})
    state: Any = SimpleNamespace(space=space, full=lambda name: np.full(3, float(name.removeprefix("power_")), "f4"))
    snapshots = EmaSnapshots(train_config, state, tmp_path / "kept", every_samples=8, writes=True)
    other_rank = EmaSnapshots(train_config, state, tmp_path / "none", every_samples=8, writes=False)
    for now in (at(4), at(8, stopping=True), at(12)):
        snapshots.after_step(now, Hook())
        other_rank.after_step(now, Hook())
    found = find_snapshots(tmp_path / "kept")
    assert [(each.samples_seen, each.sigma_rel) for each in found] == [(8, 0.05), (8, 0.1)]
    assert not (tmp_path / "none").exists()


def test_hooks_pass_every_event_on_in_order() -> None:
    """Every event of `Hook`, so that a new one cannot be forgotten."""
    calls: list[tuple[str, int, tuple[Any, ...]]] = []

    def recorder(number: int) -> Any:
        class Recorder(Hook):
            def __getattribute__(self, name: str) -> Any:
                return lambda *arguments: calls.append((name, number, arguments))

        return Recorder()

    hooks = Hooks(recorder(1))
    hooks.add(recorder(2))
    events = {
        "on_phase": 3,
        "on_step": 1,
        "on_pause": 2,
        "on_checkpoint": 1,
        "on_checkpoint_failed": 1,
        "on_validation": 3,
    }
    assert events.keys() == {name for name in vars(Hook) if name.startswith("on_")}
    for name, count in events.items():
        getattr(hooks, name)(*range(count))
    assert calls == [(name, number, tuple(range(count))) for name, count in events.items() for number in (1, 2)]
