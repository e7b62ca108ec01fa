"""Compares by digest the arrays that must be equal on all ranks. If ranks have drifted apart, nothing is saved."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.errors import DriftError
from checkpoints_mgr.votes import together


def check_alike(comm: Communicator, what: str, whole: Mapping[str, NDArray[Any]]) -> None:
    """Compare the ranks' arrays. Collective: each rank passes its local arrays under the same names.

    what: the beginning of the error message.
    Raises DriftError, the same on all ranks: when some ranks' bytes differ from the majority's. It names these ranks
    and the first tensor that differs.
    """
    if comm.world_size == 1:
        return
    digests = together(comm, what, lambda: digest_of(whole))
    most = digests.index(Counter(digests).most_common(1)[0][0])
    others = [rank for rank, digest in enumerate(digests) if digest != digests[most]]
    if not others:
        return
    each = together(comm, what, lambda: [digest_of({name: whole[name]}) for name in sorted(whole)])
    differing = [
        name
        for name, *found in zip(sorted(whole), *each, strict=True)
        if any(found[rank] != found[most] for rank in others)
    ]
    raise DriftError(
        f"{what}: rank {', '.join(map(str, others))} differs from rank {most} in {differing[0]} and "
        f"{len(differing) - 1} more of {len(whole)} tensors, which all ranks must hold alike; look at the memory, "
        "the processor and the libraries of its host"
    )


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the xxh3-128 (hexadecimal) of the arrays' bytes in C order, sorted by name."""
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
