"""What rank 0 removes: what dead saves left, and the steps that retention gives up."""

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


def given_up(retention: Retention, sound_of_node: Mapping[str, Sequence[Sound]]) -> list[int]:
    """The steps that retention gives up, of those that each node holds a sound part of ("": all disks are shared).

    A step counts if all of its nodes hold it. One that some of them lack is given up when it is older than the newest
    that count, as many as retention keeps.
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
    """The same by somebody who sees this place alone. Of several nodes' steps the newest is kept and not counted: a
    save that was killed may have left it on some nodes alone, and all older ones are on all."""
    newest = max((each.step for each in sound if len(each.nodes) > 1), default=None)
    kept = [Kept(each.step, each.pinned, each.metrics) for each in sound if each.step != newest]
    return retention.expired(kept)


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
