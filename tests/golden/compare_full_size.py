"""The UNet at SD2's full size, 866 million seeded weights, against diffusers: errors, time and memory.

python tests/golden/make_unet.py full.npz              (where diffusers is installed)
python tests/golden/compare_full_size.py full.npz      (where this project is installed; 8 GB of memory)
"""

import resource
import sys
import time

import numpy as np
from seeded import weights

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.identity import Identity
from vpred_train import runtime


def main(path: str) -> None:
    golden = np.load(path)
    runtime.start(ACCELERATORS["cpu"], Identity(0, 1, 0, 1, "localhost", "none"), 0, None)
    from mindspore import Tensor

    from vpred_train.config import UNetConfig
    from vpred_train.models.networks import FlatSpace
    from vpred_train.models.unet import UNet

    started = time.perf_counter()
    unet = UNet(UNetConfig(), np.random.default_rng(0), ACCELERATORS["cpu"].convolution)
    built = time.perf_counter()
    space = FlatSpace(unet)
    assert sorted(span.name for span in space.spans) == golden["names"].tolist()
    for parameter, span in zip(space.parameters, space.spans, strict=True):
        parameter.set_data(Tensor(weights(span.name, span.shape)))
    loaded = time.perf_counter()
    inputs = [Tensor(golden[name]) for name in ("z", "timesteps", "context")]
    found = unet(*inputs).asnumpy()
    compiled = time.perf_counter()
    found = unet(*inputs).asnumpy()
    ended = time.perf_counter()
    expected = golden["prediction"].astype(np.float64)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{space.size:,} parameters, {len(space.spans)} tensors, latents {found.shape}")
    print(f"largest difference {error:.2e} of the largest value")
    print(f"built in {built - started:.1f} s, weights made and set in {loaded - built:.1f} s")
    print(f"first call with compilation {compiled - loaded:.1f} s, second {ended - compiled:.1f} s")
    print(f"peak resident memory {peak_gib:.1f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
