"""The profiler's hook, with a stand-in that takes the arguments of MindSpore's profiler and follows its schedule."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mindspore import profiler

from support.step_results import RESULT
from vpred_train.training.hooks import profile
from vpred_train.training.hooks.profile import ProfileHook


class Recorder:
    """Stands in for mindspore.profiler.profile: notes which steps MindSpore's schedule lets it record."""

    signature = inspect.signature(profiler.profile.__init__)
    made: "Recorder"

    def __init__(self, **settings: Any) -> None:
        self.signature.bind(self, **settings)
        self.settings, self.step_number, self.stopped = settings, 0, 0
        self.actions = [self.settings["schedule"](0).name]
        Recorder.made = self

    def step(self) -> None:
        assert not self.stopped
        self.step_number += 1
        self.actions.append(self.settings["schedule"](self.step_number).name)

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProfileHook:
    monkeypatch.setattr(profiler, "profile", Recorder)
    return ProfileHook(tmp_path / "rank_0", 3)


def train(hook: ProfileHook, steps: int) -> None:
    for step in range(1, steps + 1):
        hook.on_step(replace(RESULT, step=step))


def test_the_steps_asked_for_are_recorded_after_those_that_compile(
    hook: ProfileHook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train(hook, 30)
    hook.close()
    assert Recorder.made.actions[:14] == ["NONE"] * 10 + ["WARM_UP", "RECORD", "RECORD", "RECORD_AND_SAVE"]
    assert set(Recorder.made.actions[14:]) == {"NONE"}
    assert Recorder.made.stopped == 1
    assert f"profile of 3 steps up to step 14: {hook.folder}" in caplog.text


def test_a_run_that_ends_before_is_reported(hook: ProfileHook, caplog: pytest.LogCaptureFixture) -> None:
    train(hook, 12)
    hook.close()
    assert Recorder.made.stopped == 1
    assert "ended after 12 steps, before the 14 that a profile of 3 takes" in caplog.text


def test_device_and_host_are_recorded_into_the_folder(hook: ProfileHook, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Recorder.made.settings
    assert set(settings["activities"]) == {profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU}
    assert settings["experimental_config"].profiler_level is profiler.ProfilerLevel.Level1
    folders = []
    monkeypatch.setattr(profiler, "tensorboard_trace_handler", lambda folder: folders.append(folder))
    ProfileHook(hook.folder, 1)
    assert folders == [str(hook.folder)]
    assert profile.SKIPPED_STEPS == 10
