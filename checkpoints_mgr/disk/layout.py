"""Defines the names inside a checkpoint root.

step_0000001200/                                    committed, never changed
    MANIFEST.json                                   the record of truth, with its own digest
    model-00000-of-00008.safetensors                one component's tensors, or ranges of them, that one rank wrote
    model.safetensors.index.json                    Hugging Face style index of a replicated model
step_0000001200.keep                                an empty file that pins the step: retention leaves it alone
.verified.json                                      steps whose bytes were compared with their digests, see verified.py
.tmp-step_0000001200-<save_id>@<owner>/             a save in progress, or the leftover of a killed one
.trash-step_0000001200-<save_id>/                   about to be removed
quarantine/step_0000001200-corrupt-.../             steps that failed verification; this package never deletes them
"""

import re
from collections.abc import Sequence

MANIFEST = "MANIFEST.json"
MODEL = "model"  # component of the weights
MODEL_INDEX = "model.safetensors.index.json"
QUARANTINE = "quarantine"
VERIFIED = ".verified.json"
TMP_PREFIX = ".tmp-"
TRASH_PREFIX = ".trash-"
PIN_SUFFIX = ".keep"

_STEP = re.compile(r"step_(\d{10,})")


def step_name(step: int) -> str:
    """Return the directory name of a committed step."""
    return f"step_{step:010d}"


def step_of(name: str) -> int | None:
    """Return the step that a committed directory's name states; None for any other name."""
    match = _STEP.fullmatch(name)
    if match is None or step_name(int(match[1])) != name:
        return None
    return int(match[1])


def steps_in(names: Sequence[str]) -> list[int]:
    """Return the committed steps among the names of a root, newest first."""
    return sorted((step for step in map(step_of, names) if step is not None), reverse=True)


def tmp_name(step: int, save_id: str, owner: str) -> str:
    """Return the directory name of a save in progress. The name states the owner, so both appear in one operation."""
    return f"{TMP_PREFIX}{step_name(step)}-{save_id}@{owner}"


def trash_name(step: int, save_id: str) -> str:
    """Return the directory name of a step that is being removed."""
    return f"{TRASH_PREFIX}{step_name(step)}-{save_id}"


def share_name(component: str, rank: int, world_size: int) -> str:
    """Return the name of the file in which one rank stores its tensors of one component."""
    return f"{component}-{rank:05d}-of-{world_size:05d}.safetensors"
