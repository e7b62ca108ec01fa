"""A network at SD2's full size, with seeded weights, against diffusers or open_clip: errors, time and memory.

python tests/golden/make_unet.py full.npz          (or make_vae.py, make_text.py; where their packages are)
python tests/golden/compare_full_size.py full.npz  (where this project is installed; 13 GiB of memory for the UNet)
"""

import resource
import sys
import time
from typing import Any

import numpy as np
from seeded import weights

from vpred_train import runtime


def network_of(golden: Any) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """The network that the file is about, and the names of its inputs and outputs there."""
    from mindspore import Tensor, nn

    from vpred_train.config.model import TextEncoderConfig, UNetConfig, VaeConfig
    from vpred_train.models.autoencoder_kl import AutoencoderKL
    from vpred_train.models.text_encoder import TextEncoder
    from vpred_train.models.unet import UNet

    class Autoencoder(nn.Cell):
        """Both halves in one graph."""

        def __init__(self, autoencoder: AutoencoderKL) -> None:
            super().__init__(auto_prefix=False)
            self.autoencoder = autoencoder

        def construct(self, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
            return self.autoencoder.encode(images), self.autoencoder.decode(latents)

    rng = np.random.default_rng(0)
    if "prediction" in golden:
        return UNet(UNetConfig(), rng), ("z", "timesteps", "context"), ("prediction",)
    if "moments" in golden:
        return Autoencoder(AutoencoderKL(VaeConfig(), rng)), ("images", "latents"), ("moments", "decoded")
    return TextEncoder(TextEncoderConfig(), rng), ("tokens",), ("features",)


def main(path: str) -> None:
    golden = np.load(path)
    runtime.start_single()
    from mindspore import Tensor

    from vpred_train.distributed.flat_space import FlatSpace

    started = time.perf_counter()
    network, inputs, outputs = network_of(golden)
    built = time.perf_counter()
    space = FlatSpace(network)
    names = [span.name.removeprefix("autoencoder.") for span in space.spans]
    if "names" in golden:
        assert sorted(names) == golden["names"].tolist()
    for name, parameter, span in zip(names, space.parameters, space.spans, strict=True):
        parameter.set_data(Tensor(weights(name, span.shape)))
    loaded = time.perf_counter()
    arguments = [Tensor(golden[name]) for name in inputs]
    network(*arguments)
    compiled = time.perf_counter()
    answer = network(*arguments)
    found = [tensor.asnumpy() for tensor in (answer if isinstance(answer, tuple) else (answer,))]
    ended = time.perf_counter()
    print(f"{space.size:,} parameters, {len(space.spans)} tensors")
    for name, array in zip(outputs, found, strict=True):
        expected = golden[name].astype(np.float64)
        error = np.abs(array - expected).max() / np.abs(expected).max()
        print(f"{name} {array.shape}: largest difference {error:.2e} of the largest value")
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"built in {built - started:.1f} s, weights made and set in {loaded - built:.1f} s")
    print(f"first call with compilation {compiled - loaded:.1f} s, second {ended - compiled:.1f} s")
    print(f"peak resident memory {peak_gib:.1f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
