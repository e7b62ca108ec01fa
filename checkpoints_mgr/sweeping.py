"""What rank 0 removes: what dead saves left, and the steps that retention gives up."""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from checkpoints_mgr import storage
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.layout import MANIFEST, PIN_SUFFIX, TMP_PREFIX, TRASH_PREFIX, step_name, steps_in, trash_name
from checkpoints_mgr.owner import is_alive
from checkpoints_mgr.policy import Kept, Retention
from checkpoints_mgr.reading import open_step
from checkpoints_mgr.writing import discard

logger = logging.getLogger(__name__)

ABANDONED_AFTER_S = 3600.0  # a save of another host that has not grown for so long is taken for dead


def sweep(root: Path, own_tmp: Path) -> None:
    """Remove the directories of dead saves and of interrupted removals; a failure is logged only.

    own_tmp: just made, so that its time is the file server's now.
    """
    for name in leftovers(root, storage.modified_s(own_tmp)):
        if name == own_tmp.name:
            continue
        logger.info("removing %s, left by an interrupted save", root / name)
        discard(root / name)


def file_server_s(root: Path) -> float:
    """What the file server takes for now: by a clock that is ahead, another host's save would be taken for dead."""
    made = root / trash_name(0, secrets.token_hex(16))
    storage.make_dir(made)
    now_s = storage.modified_s(made)
    discard(made)
    return now_s


def leftovers(root: Path, now_s: float) -> list[str]:
    """Names in a root that nobody works on any more. now_s: by the clock of the file server."""
    names = storage.list_names(root)
    return [
        name
        for name in names
        if name.startswith(TRASH_PREFIX) or (name.startswith(TMP_PREFIX) and _is_dead(root / name, now_s))
    ]


def _is_dead(tmp: Path, now_s: float) -> bool:
    alive = is_alive(tmp.name.rpartition("@")[2])
    if alive is not None:
        return not alive
    try:
        grown_s = max(storage.modified_s(path) for path in [tmp, *(tmp / name for name in storage.list_names(tmp))])
    except OSError:
        return False  # it changes while we look
    return now_s - grown_s > ABANDONED_AFTER_S


def expired_steps(root: Path, retention: Retention) -> list[int]:
    """The steps that retention gives up, oldest first. OSError."""
    names = storage.list_names(root)
    pinned = {name.removesuffix(PIN_SUFFIX) for name in names if name.endswith(PIN_SUFFIX)}
    kept = [Kept(step, step_name(step) in pinned) for step in steps_in(names)]
    return retention.expired([_judged(root, each) for each in kept] if retention.best else kept)


def retire(root: Path, steps: Sequence[int], save_id: str) -> list[Path]:
    """Take steps that nobody reads out of the root by a rename, so that no half-removed one is ever taken for a
    checkpoint; returns what is left to discard. A failure is logged only."""
    trash = []
    try:
        for step in steps:
            with storage.locked(root / step_name(step) / MANIFEST, exclusive=True) as unread:
                if not unread:
                    logger.warning("%s stays for now: it is being read", root / step_name(step))
                    continue
                storage.rename(root / step_name(step), root / trash_name(step, save_id))
            trash.append(root / trash_name(step, save_id))
        if trash:
            storage.sync_dir(root)
    except OSError as error:
        logger.warning("cannot remove old checkpoints in %s: %s", root, error)
    return trash


def _judged(root: Path, kept: Kept) -> Kept:
    """With its metrics; a step that cannot be read now stays, as it may be the best."""
    directory = root / step_name(kept.step)
    try:
        return replace(kept, metrics=open_step(directory).metrics)
    except CorruptCheckpointError as error:
        logger.warning("cannot tell how good %s is: %s", directory, error)
        return kept
    except (OSError, CheckpointError) as error:
        logger.warning("%s stays, nobody can tell how good it is: %s", directory, error)
        return replace(kept, pinned=True)
