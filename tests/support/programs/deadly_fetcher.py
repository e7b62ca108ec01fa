"""A fetcher that ends its process, or is stuck; as a program: a rank whose workers are stuck, until it is killed."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data import ArraySpec, DataConfig, Loader, make_order, open_source
from data.loading.fetcher import Arrays


@dataclass(frozen=True)
class DeadlyFetcher:
    """SIGKILL while sample 2 is made; with `stuck` every sample takes for ever."""

    stuck: bool = False

    def specs(self, size: tuple[int, int]) -> dict[str, ArraySpec]:
        return {"pid": ArraySpec((), "int64")}

    def fetch(self, sample_id: int, epoch: int, size: tuple[int, int], into: Arrays) -> None:
        while self.stuck:
            time.sleep(60)
        if sample_id == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        into["pid"][...] = os.getpid()

    def collate(self, arrays: Arrays) -> Arrays:
        return arrays


def main() -> None:
    from support.programs.deadly_fetcher import DeadlyFetcher  # by the name under which the workers find it

    source = open_source(Path(sys.argv[1]))
    config = DataConfig(path=source.path, resolution=8, workers=2)
    order = make_order(source, config, 3, 7)
    with Loader(source, DeadlyFetcher(stuck=True), config, order, rank=0, world_size=1, start_samples_seen=0) as loader:
        time.sleep(1)  # until the workers are at it
        print("ready", flush=True)
        next(loader)


if __name__ == "__main__":
    main()
