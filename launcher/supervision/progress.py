"""Shows progress from rank status records: one bar for all ranks on a terminal, else a line every 10 s."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NoReturn, Protocol, TextIO, cast

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from launcher.contract.run_dir import Phase, RankStatus

_LINE_EVERY_S = 10.0
_BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_WORDS: dict[Phase, str] = {
    "starting": "starting",
    "compiling": "compiling the step",
    "training": "training",
    "validating": "validating",
    "checkpointing": "saving a checkpoint",
    "sampling": "sampling",
    "done": "done",
}


class Progress(Protocol):
    """Shows where the ranks are."""

    def update(self, statuses: Mapping[int, RankStatus]) -> None: ...

    def line(self, text: str) -> None:
        """Print `text` on a separate line, above the bar if there is one."""

    def close(self) -> None: ...


class BarProgress:
    """Shows a tqdm bar. It appears with the first training step; earlier phases are lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[NoReturn] | None = None
        self._phase: Phase | None = None
        self._log_above_the_bar = ExitStack()

    def update(self, statuses: Mapping[int, RankStatus]) -> None:
        if not statuses:
            return
        lead = statuses[min(statuses)]
        if self._bar is None and lead.phase == "training":
            self._bar = tqdm(
                total=lead.total_steps,
                initial=lead.step,
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
                bar_format=_BAR_FORMAT,
            )
            self._log_above_the_bar.enter_context(logging_redirect_tqdm([logging.getLogger("launcher")]))
        if lead.phase != self._phase:
            self._phase = lead.phase
            if self._bar is None:
                print(f"{_WORDS[lead.phase]} ...", file=self._stream, flush=True)
            else:
                self._bar.set_description_str(_WORDS[lead.phase], refresh=False)
        if self._bar is not None:
            self._bar.set_postfix_str(_figures(lead, statuses), refresh=False)
            self._bar.update(lead.step - self._bar.n)
            self._bar.refresh()

    def line(self, text: str) -> None:
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        self._log_above_the_bar.close()
        if self._bar is not None:
            self._bar.close()


class LineProgress:
    """Prints a line at each new phase and every 10 s: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase: Phase | None = None
        self._next_line_s = 0.0
        self._started: tuple[float, int] | None = None

    def update(self, statuses: Mapping[int, RankStatus]) -> None:
        if not statuses:
            return
        lead = statuses[min(statuses)]
        now_s = time.monotonic()
        if self._started is None and lead.phase == "training":
            self._started = (now_s, lead.step)
        news = lead.phase != self._phase and lead.phase != "checkpointing"
        if not news and now_s < self._next_line_s:
            return
        self._phase = lead.phase
        self._next_line_s = now_s + _LINE_EVERY_S
        line = f"{_WORDS[lead.phase]}: step {lead.step}/{lead.total_steps}"
        parts = [line, _figures(lead, statuses), self._time_left(lead, now_s)]
        self.line(", ".join(part for part in parts if part))

    def line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()

    def _time_left(self, lead: RankStatus, now_s: float) -> str:
        if self._started is None or lead.phase != "training" or lead.step <= self._started[1]:
            return ""
        seconds_per_step = (now_s - self._started[0]) / (lead.step - self._started[1])
        return f"{seconds_per_step * (lead.total_steps - lead.step):.0f} s left"


class Unheard:
    """Wraps a stream whose reader may go (`| tee`, a closed terminal). Output is then lost, and the run goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        # Send all further output, and what is still in the buffer, to /dev/null.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def unheard() -> Iterator[None]:
    """Let standard output and error break in the block without ending it."""
    with redirect_stdout(cast(TextIO, Unheard(sys.stdout))), redirect_stderr(cast(TextIO, Unheard(sys.stderr))):
        yield


def make_progress(stream: TextIO) -> Progress:
    """Make a bar when `stream` is a terminal with room for one, else lines."""
    # Pseudo-terminals of containers may have 0 columns or rows, where tqdm would show nothing at all.
    if stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 0:
        return BarProgress(stream)
    return LineProgress(stream)


def _figures(lead: RankStatus, statuses: Mapping[int, RankStatus]) -> str:
    rates = [status.images_per_second for status in statuses.values() if status.images_per_second is not None]
    loss = [] if lead.loss is None else [f"loss {lead.loss:.4f}"]
    return ", ".join([*loss, *([f"{sum(rates):.1f} img/s"] if rates else [])])
