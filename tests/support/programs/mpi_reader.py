"""One of several ranks under mpirun, each as if on a host of its own: restore the newest step of the root given.

Rank 0 prints what each found: a digest of all tensors, and the bytes that it read itself.
"""

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from checkpoints_mgr import CheckpointManager, State
from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.reading import open_step
from vpred_train.distributed.collectives import Mpi

read_into, read_bytes = storage.Reader.read_into, []


def counting(reader: storage.Reader, buffers: Sequence[memoryview], offset: int) -> int:
    read_bytes.append(read_into(reader, buffers, offset))
    return read_bytes[-1]


def main() -> None:
    root = Path(sys.argv[1])
    (step,) = root.glob("step_*")
    collective = Mpi(timeout_s=60.0)
    socket.gethostname = lambda: f"host{collective.rank}"  # type: ignore[method-assign]
    storage.Reader.read_into = counting  # type: ignore[assignment, method-assign]
    template = State(
        {name: np.zeros(placed.spec.shape, np.float32) for name, placed in open_step(step).tensors.items()}, {}
    )
    restored = CheckpointManager(root, collective).restore(template)
    assert restored is not None
    digest = xxhash.xxh3_128_hexdigest(b"".join(array.tobytes() for _, array in sorted(restored.state.whole.items())))
    found = collective.allgather_object({"digest": digest, "read_bytes": sum(read_bytes)})
    if collective.rank == 0:
        print(json.dumps(found))
    collective.close()


if __name__ == "__main__":
    main()
