"""Names inside a checkpoint root, and who writes what.

step_0000001200/                        committed, never changed
    MANIFEST.json                       the record of truth, with its own digest
    model-00000-of-00008.safetensors    whole tensors of one component, one file for each writing rank
    model.safetensors.index.json        Hugging Face style index of the model component
.tmp-step_0000001200-<save_id>/         a save in progress, or what a killed one left
.trash-step_0000001200-<save_id>/       about to be removed
quarantine/step_0000001200-corrupt-.../ steps that failed verification, never deleted by us
"""

import heapq
import re
from collections.abc import Sequence

from checkpoints_mgr.state import TensorSpec

MANIFEST = "MANIFEST.json"
MODEL_INDEX = "model.safetensors.index.json"
QUARANTINE = "quarantine"
TMP_PREFIX = ".tmp-"
TRASH_PREFIX = ".trash-"

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


def share_name(component: str, rank: int, world_size: int) -> str:
    """File of one component's tensors written by one rank."""
    return f"{component}-{rank:05d}-of-{world_size:05d}.safetensors"


def shares(specs: Sequence[TensorSpec], world_size: int) -> list[list[TensorSpec]]:
    """Split whole tensors over the ranks by longest processing time first: result[rank], sorted by name.

    A pure function of the table and the world size, so no rank has to be told its share. The largest load
    is at most 4/3 of the best possible (Graham 1969).
    """
    loads = [(0, rank) for rank in range(world_size)]
    result: list[list[TensorSpec]] = [[] for _ in range(world_size)]
    for spec in sorted(specs, key=lambda spec: (-spec.size_bytes, spec.name)):
        load_bytes, rank = heapq.heappop(loads)
        result[rank].append(spec)
        heapq.heappush(loads, (load_bytes + spec.size_bytes, rank))
    return [sorted(share, key=lambda spec: spec.name) for share in result]
