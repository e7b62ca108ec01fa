"""Names inside a checkpoint root.

step_0000001200/                                    committed, never changed
    MANIFEST.json                                   the record of truth, with its own digest
    model-00000-of-00008.safetensors                one component's tensors, or ranges of them, that one rank wrote
    model.safetensors.index.json                    Hugging Face style index of the model component
step_0000001200.keep                                an empty file that pins the step: retention leaves it alone
.verified.json                                      which steps' bytes were compared with their digests, see verified.py
.tmp-step_0000001200-<save_id>@<owner>/             a save in progress, or what a killed one left
.trash-step_0000001200-<save_id>/                   about to be removed
quarantine/step_0000001200-corrupt-.../             steps that failed verification, never deleted by us
"""

import re
from collections.abc import Sequence

MANIFEST = "MANIFEST.json"
MODEL_INDEX = "model.safetensors.index.json"
QUARANTINE = "quarantine"
VERIFIED = ".verified.json"
TMP_PREFIX = ".tmp-"
TRASH_PREFIX = ".trash-"
PIN_SUFFIX = ".keep"

_STEP = re.compile(r"step_(\d{10,})")


def step_name(step: int) -> str:
    """Directory name of a committed step."""
    return f"step_{step:010d}"


def step_of(name: str) -> int | None:
    """The step of a committed directory's name; None for any other name."""
    match = _STEP.fullmatch(name)
    if match is None or step_name(int(match[1])) != name:
        return None
    return int(match[1])


def steps_in(names: Sequence[str]) -> list[int]:
    """Committed steps among the names of a root, newest first."""
    return sorted((step for step in map(step_of, names) if step is not None), reverse=True)


def tmp_name(step: int, save_id: str, owner: str) -> str:
    """Directory of a save in progress; its owner is told by the name, which comes into being with it at once."""
    return f"{TMP_PREFIX}{step_name(step)}-{save_id}@{owner}"


def trash_name(step: int, save_id: str) -> str:
    """Directory of a step that is being removed."""
    return f"{TRASH_PREFIX}{step_name(step)}-{save_id}"


def share_name(component: str, rank: int, world_size: int) -> str:
    """File of one component's tensors written by one rank."""
    return f"{component}-{rank:05d}-of-{world_size:05d}.safetensors"
