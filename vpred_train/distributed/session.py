"""Makes this process a rank of a job, from its identity to its exit code, and ends all ranks when one fails."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.contract.accelerators import Accelerator
from launcher.contract.exit_codes import ExitCode
from launcher.contract.identity import Identity
from monitoring import configure_logging
from vpred_train import runtime
from vpred_train.distributed.collectives import TIMEOUT_S, Collective, make_collective
from vpred_train.errors import is_users

logger = logging.getLogger(__name__)


class RankSession:
    """Holds what this rank is, and meets the others. `rank_session` makes it."""

    def __init__(self, identity: Identity, accelerator: Accelerator) -> None:
        self.identity, self.accelerator = identity, accelerator
        self.collective: Collective | None = None

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0, which prints what all ranks would print alike."""
        return self.identity.rank == 0

    def start(
        self, device_id: int | None = None, rank_table: Path | None = None, timeout_s: float = TIMEOUT_S
    ) -> Collective:
        """Set MindSpore up, and meet the other ranks. From here on an error of one rank ends all of them.

        device_id: number under which this process knows its device (default: the local rank)
        timeout_s: ends this process when the others do not answer
        Raises ConfigError: when another number of ranks has met than the environment declares.
        """
        identity, accelerator = self.identity, self.accelerator
        runtime.start(accelerator, identity, identity.local_rank if device_id is None else device_id, rank_table)
        kind = accelerator.collective_under(identity.launcher)
        self.collective = make_collective(kind, identity.world_size, timeout_s)
        return self.collective


@contextmanager
def rank_session(accelerator: Accelerator, own_log: bool = False) -> Iterator[RankSession]:
    """Be the rank that the environment says this process is, inside the `with` block.

    Before `start`, all ranks find the same mistakes of the user. After it, an error ends all ranks: with 2 and one line
    for a mistake of the user, with 1 and a traceback for any other.

    own_log: this rank's stderr is a file of its own, so that it logs with times, and prints its mistakes itself.
        Otherwise ranks share a terminal, and rank 0 alone prints mistakes that all find.
    """
    session = RankSession(runtime.identify(), accelerator)
    if own_log:
        configure_logging(session.identity.rank, logging.INFO)
    try:
        yield session
        if session.collective is not None:
            session.collective.close()
    except BaseException as error:  # includes SystemExit
        if session.collective is not None:
            _end_all(session.collective, session.identity, error)
        if is_users(error) and not (own_log or session.is_first):
            sys.exit(ExitCode.BAD_CONFIG)
        raise


def _end_all(collective: Collective, identity: Identity, error: BaseException) -> None:
    """Report the error, and end every rank. Otherwise they would wait forever: MPI's finalisation is a collective."""
    if is_users(error):
        with suppress(OSError):  # its log may be on a full disk
            print(error, file=sys.stderr, flush=True)
        collective.abort(ExitCode.BAD_CONFIG)
    if isinstance(error, KeyboardInterrupt):
        collective.abort(128 + signal.SIGINT)
    logger.error("rank %d on %s failed", identity.rank, identity.hostname, exc_info=error)
    collective.abort(ExitCode.FAILED)
