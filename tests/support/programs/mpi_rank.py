"""One rank under mpirun: save step 20, then step 30 with the fault of CKPT_FAILPOINTS. Arguments: the root."""

import os
import sys
from pathlib import Path

import numpy as np

from checkpoints_mgr import CheckpointManager, FlatShard, Segment, State
from checkpoints_mgr.disk import storage
from support.checkpoints.failpoints import Fault
from vpred_train.distributed.collectives import Mpi


def main() -> None:
    comm = Mpi(60.0)
    manager = CheckpointManager(Path(sys.argv[1]), comm)
    for step in (20, 30):
        shard = FlatShard(np.full(5000, step + comm.rank, np.float32), {"w": (5000 * comm.world_size,)}, [
            Segment("w", 5000 * comm.rank, 5000 * (comm.rank + 1), 0)
        ])  # fmt: skip
        state = State({"model/w": np.full((50, 100), step, np.float32)}, {"step": step}, {"adam_m": shard})
        if step == 30:
            storage.set_failpoint(Fault(os.environ["CKPT_FAILPOINTS"], comm.rank))
        manager.start_save(step, state)
        manager.wait()


if __name__ == "__main__":
    main()
