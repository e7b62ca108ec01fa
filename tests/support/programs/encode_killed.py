"""`vpred-data encode`, of which rank 1 is killed when it comes to its fifth entry. Run under mpirun by
test_cached_training.py, with the arguments of the command. Shards have two entries, so that some are there by then."""

import os
import signal
from typing import Any

import numpy as np

from data import CacheWriter
from vpred_train import runtime
from vpred_train.commands.data import main
from vpred_train.latent_cache import encode

PER_SHARD, FATAL = 2, 5


class MortalWriter(CacheWriter):
    """Counts the entries of all writers of the process."""

    added = 0

    def add(self, key: np.void, value: Any) -> None:
        self.shard_bytes = PER_SHARD * value.nbytes
        MortalWriter.added += 1
        if MortalWriter.added == FATAL and runtime.identify().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().add(key, value)


if __name__ == "__main__":
    encode.CacheWriter = MortalWriter  # type: ignore[misc]
    main()
