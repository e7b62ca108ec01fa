"""Shows a run's live page while it runs: starts `vpred-launch serve RUN` beside the launcher."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.contract.environment import environment
from launcher.contract.run_dir import RunDir
from launcher.processes.tied import kill_session, own_program, start_tied

logger = logging.getLogger(__name__)

_END_S = 2.0


@contextmanager
def shown(run: RunDir, listen: str | None) -> Iterator[None]:
    """Serve the run's page at `listen` during the block; None serves none. Call this from the main thread.

    It is a process of its own: whatever happens to it, the run goes on.
    """
    if listen is None:
        yield
        return
    argv = [*own_program(sys.executable, "launcher.live.serve"), str(run.root), "--listen", listen]
    process = start_tied(argv, environment(), Path("/"), subprocess.DEVNULL, sys.stderr.fileno())
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_S)
        kill_session(process)
        logger.info("the live page has ended with the run; vpred-launch serve %s shows it again", run.root)
