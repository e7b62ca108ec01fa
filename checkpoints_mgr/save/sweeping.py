"""Removes, on a leader, the leftovers of dead saves and the steps that retention gives up."""

import logging
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.layout import MANIFEST, TMP_PREFIX, TRASH_PREFIX, step_name, trash_name
from checkpoints_mgr.disk.owner import is_alive
from checkpoints_mgr.disk.verified import Sound
from checkpoints_mgr.policy import Kept, Retention
from checkpoints_mgr.save.writing import discard

logger = logging.getLogger(__name__)

ABANDONED_AFTER_S = 3600.0  # another host's save that has not grown for this long counts as dead


def sweep(root: Path, own_tmp: Path) -> None:
    """Remove the directories of dead saves and of interrupted removals. A failure is only logged.

    own_tmp: the current save's directory, just made, so that its time is the file server's current time.
    """
    for name in leftovers(root, storage.modified_s(own_tmp)):
        if name == own_tmp.name:
            continue
        logger.info("removing %s, left by an interrupted save", root / name)
        discard(root / name)


def file_server_s(root: Path) -> float:
    """Return the file server's current time. By a local clock that is ahead, another host's save would seem dead."""
    made = root / trash_name(0, secrets.token_hex(16))
    storage.make_dir(made)
    now_s = storage.modified_s(made)
    discard(made)
    return now_s


def leftovers(root: Path, now_s: float) -> list[str]:
    """Return the names in a root that no process works on any more.

    now_s: Unix time in seconds by the file server's clock.
    """
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
        return False  # the directory changes during the check
    return now_s - grown_s > ABANDONED_AFTER_S


def given_up(retention: Retention, sound_of_node: Mapping[str, Sequence[Sound]]) -> list[int]:
    """Return the steps that retention gives up.

    sound_of_node: the steps of which each node holds a sound part; node "" when all disks are shared.
    A step counts if all of its nodes hold it. A step that some nodes lack is given up when it is older than the newest
    `retention.last` steps that count.
    """
    holders: dict[tuple[int, str], list[str]] = defaultdict(list)
    pinned = {each.step for steps in sound_of_node.values() for each in steps if each.pinned}
    for node, steps in sound_of_node.items():
        for each in steps:
            holders[each.step, each.save_id].append(node)
    every = [each for steps in sound_of_node.values() for each in steps]
    whole = {each.step: each for each in every if set(each.nodes) <= set(holders[each.step, each.save_id])}
    expired = set(retention.expired([Kept(step, step in pinned, each.metrics) for step, each in whole.items()]))
    newest = sorted(whole, reverse=True)[: retention.last]
    if len(newest) == retention.last:
        expired |= {each.step for each in every if each.step < newest[-1]} - whole.keys() - pinned
    return sorted(expired)


def given_up_here(retention: Retention, sound: Sequence[Sound]) -> list[int]:
    """Do as `given_up` for a process that sees this node's disks alone.

    The newest step that spans several nodes is kept and not counted: a killed save may have left it on some nodes
    only. All older ones are on all nodes.
    """
    newest = max((each.step for each in sound if len(each.nodes) > 1), default=None)
    kept = [Kept(each.step, each.pinned, each.metrics) for each in sound if each.step != newest]
    return retention.expired(kept)


def retire(root: Path, steps: Sequence[int], save_id: str) -> list[Path]:
    """Rename steps that no process reads out of the way, and return the directories left to discard.

    After the rename, a half-removed step cannot be mistaken for a checkpoint. A failure is only logged.
    """
    trash = []
    try:
        for step in steps:
            with storage.locked(root / step_name(step) / MANIFEST, exclusive=True) as unread:
                if not unread:
                    logger.warning("%s is kept for now: a process reads it", root / step_name(step))
                    continue
                storage.rename(root / step_name(step), root / trash_name(step, save_id))
            trash.append(root / trash_name(step, save_id))
        if trash:
            storage.sync_dir(root)
    except OSError as error:
        logger.warning("cannot remove old checkpoints in %s: %s", root, error)
    return trash
