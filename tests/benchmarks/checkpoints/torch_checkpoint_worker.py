"""torch.distributed.checkpoint on as many ranks, for checkpoint.py: FOLDER MEGABYTES REPEATS RANKS -> JSON of seconds.

Each rank saves tensors of its own, so that the bytes are shared out as evenly as ours; once with its files fsynced (it
fsyncs no directory), once without.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing

TENSORS = 200


def work(rank: int, folder: Path, megabytes: int, repeats: int, ranks: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29571", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    numel = megabytes * 10**6 // 4 // TENSORS // ranks
    state = {f"rank{rank}.{number}": torch.randn(numel) for number in range(TENSORS)}
    times: dict[str, list[float]] = {"torch_s": [], "torch_fsync_s": []}
    for _ in range(repeats):
        for name, flush in (("torch_s", False), ("torch_fsync_s", True)):
            target = folder / name
            os.sync()
            dist.barrier()
            started_s = time.perf_counter()
            dcp.save(state, storage_writer=dcp.FileSystemWriter(target, sync_files=flush))
            dist.barrier()
            times[name].append(time.perf_counter() - started_s)
            if rank == 0:
                shutil.rmtree(target)
    if rank == 0:
        print(json.dumps(times), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    arguments = (Path(sys.argv[1]), *map(int, sys.argv[2:5]))
    torch.multiprocessing.spawn(work, arguments, nprocs=arguments[3])
