"""Records some steps with MindSpore's profiler, for MindStudio Insight. It never ran: there was no NPU."""

import logging
from pathlib import Path

from vpred_train.engine.step_result import StepResult
from vpred_train.training.hooks.hook import Hook

logger = logging.getLogger(__name__)

SKIPPED_STEPS = 10  # the first ones compile, and fill caches and memory pools
WARM_UP_STEPS = 1  # the profiler runs, and its own start is not recorded


class ProfileHook(Hook):
    """Records `steps` steps of this rank after SKIPPED_STEPS + WARM_UP_STEPS others, and analyses them into `folder`.

    The analysis holds up the step that follows.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        from mindspore import profiler

        self.folder, self.steps, self.done = folder, steps, 0
        self.profile = profiler.profile(
            activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU],
            schedule=profiler.schedule(wait=0, warmup=WARM_UP_STEPS, active=steps, repeat=1, skip_first=SKIPPED_STEPS),
            on_trace_ready=profiler.tensorboard_trace_handler(str(folder)),
            profile_memory=True,
            experimental_config=profiler._ExperimentalConfig(profiler_level=profiler.ProfilerLevel.Level1),
        )

    @property
    def wanted(self) -> int:
        """Return the number of steps until the last one is recorded."""
        return SKIPPED_STEPS + WARM_UP_STEPS + self.steps

    def on_step(self, result: StepResult) -> None:
        if self.done == self.wanted:
            return
        self.done += 1
        self.profile.step()
        if self.done == self.wanted:
            self.profile.stop()
            logger.info("profile of %d steps up to step %d: %s", self.steps, result.step, self.folder)

    def close(self) -> None:
        """Stop a recording that the end of the run has cut short."""
        if self.done < self.wanted:
            self.profile.stop()
            logger.warning(
                "the run ended after %d steps, before the %d that a profile of %d takes",
                self.done,
                self.wanted,
                self.steps,
            )
