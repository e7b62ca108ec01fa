"""List what the newest checkpoint of a run holds; any number of ranks may have written it.

python read_checkpoint.py RUN_DIR/checkpoints
"""

import sys
from pathlib import Path

import numpy as np

from checkpoints_mgr import Checkpoint


def main(root: Path) -> None:
    checkpoint = Checkpoint.open(max(root.glob("step_*")))  # CheckpointError says what is wrong with it
    manifest = checkpoint.manifest
    print(f"step {manifest.step}, written by {manifest.world_size} ranks, {manifest.progress['samples_seen']} samples")
    for component in manifest.components:
        for name in checkpoint.names(component):
            values = checkpoint.read(component, name)  # the whole tensor; every byte that is read is verified
            rms = np.sqrt(np.mean(np.square(values, dtype=np.float64)))
            print(f"{component}/{name}: {values.dtype} {values.shape}, RMS {rms:.3g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
