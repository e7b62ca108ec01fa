"""Trains the autoencoder of the small base model on the images of fetch.py. It resumes where it was stopped.

    python tests/small_base/autoencoder.py FOLDER --steps 30000

It writes FOLDER/autoencoder.safetensors, with the network under Stability's names, and prints the PSNR of images that
it does not train on. The loss is that of Rombach et al. 2022 (arXiv 2112.10752, section G) without its discriminator
and its perceptual part: the absolute error of pixels and of their differences, and a small KL divergence.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from vpred_train import runtime

runtime.start_single()

from mindspore import Tensor, nn, ops  # noqa: E402

from vpred_train.config.model import VaeConfig  # noqa: E402
from vpred_train.models.autoencoder_kl import AutoencoderKL  # noqa: E402

SIDE = 64
BATCH = 16
PEAK_RATE = 1e-3
WARM_UP_STEPS = 200
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 0.5
HELD_OUT = 64
CONFIG = VaeConfig(channels=32, channel_multipliers=(1, 2, 2), res_blocks=1, norm_groups=8)
PREFIX = "first_stage_model."

Images = NDArray[np.uint8]


def read_images(folder: Path) -> Images:
    """Return all images of both sets (n, SIDE, SIDE, 3), in the order of a fixed permutation."""
    paths = sorted(folder.glob("fluent/*.png")) + sorted(folder.glob("noto/*.png"))
    order = np.random.default_rng(0).permutation(len(paths))
    images = [Image.open(paths[index]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for index in order]
    return np.stack([np.asarray(image) for image in images])


def network_input(images: Images) -> NDArray[np.float32]:
    """Return images (b, H, W, 3) as (b, 3, H, W) float32 in [-1, 1]."""
    return (images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)


def batch_of(images: Images, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw a batch, half of it mirrored, and the noise of its latents; both depend on the step alone."""
    rng = np.random.default_rng([1, step])
    chosen = images[rng.integers(len(images), size=BATCH)]
    chosen[: BATCH // 2] = chosen[: BATCH // 2, :, ::-1]
    latent = SIDE // CONFIG.downsampling
    noise = rng.standard_normal((BATCH, CONFIG.latent_channels, latent, latent)).astype(np.float32)
    return network_input(chosen), noise


class Loss(nn.Cell):
    """Computes the loss of a batch (B, 3, H, W) with the noise (B, C, h, w) of its latents."""

    def __init__(self, network: AutoencoderKL) -> None:
        super().__init__()
        self.network = network

    def construct(self, images: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = self.network.posterior(self.network.encode(images))
        error = self.network.decode(mean + ops.exp(0.5 * log_variance) * noise) - images
        across = ops.abs(error[:, :, :, 1:] - error[:, :, :, :-1]).mean()
        down = ops.abs(error[:, :, 1:] - error[:, :, :-1]).mean()
        kl = 0.5 * (mean * mean + ops.exp(log_variance) - 1.0 - log_variance).sum() / images.shape[0]
        return ops.abs(error).mean() + EDGE_WEIGHT * (across + down) + KL_WEIGHT * kl


def learning_rates(steps: int) -> list[float]:
    """Return each step's rate: a linear rise, then half a cosine to 0."""
    rise = [(step + 1) / WARM_UP_STEPS for step in range(WARM_UP_STEPS)]
    fall = [0.5 + 0.5 * math.cos(math.pi * step / (steps - WARM_UP_STEPS)) for step in range(steps - WARM_UP_STEPS)]
    return [PEAK_RATE * each for each in rise + fall]


def reconstruct(network: AutoencoderKL, images: Images) -> tuple[Images, NDArray[np.float32]]:
    """Return the reconstructions (n, H, W, 3) of the posterior's means, and those means (n, C, h, w)."""
    decoded, means = [], []
    for start in range(0, len(images), BATCH):
        mean, _ = network.posterior(network.encode(Tensor(network_input(images[start : start + BATCH]))))
        pixels = (network.decode(mean).asnumpy() + 1) * 127.5
        decoded.append(np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
        means.append(mean.asnumpy())
    return np.concatenate(decoded), np.concatenate(means)


def psnr_db(ours: Images, real: Images) -> float:
    """Return the mean over images of 10 log10(255^2 / mean squared error)."""
    squared = np.square(ours.astype(np.float64) - real).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(squared, 1e-9))).mean())


def sheet(pairs: list[Images], path: Path) -> None:
    """Write rows of images, doubled, so that a person can compare them."""
    rows = [np.concatenate(list(images[:16]), axis=1) for images in pairs]
    Image.fromarray(np.concatenate(rows)).resize((16 * SIDE * 2, len(rows) * SIDE * 2), 0).save(path)


class State:
    """Holds all that a resume needs: the network, Adam's moments and its step."""

    def __init__(self, steps: int) -> None:
        self.network = AutoencoderKL(CONFIG, np.random.default_rng(0))
        self.optimizer = nn.Adam(self.network.trainable_params(), learning_rates(steps), beta2=0.99)
        self.step = nn.TrainOneStepCell(Loss(self.network), self.optimizer)

    def parameters(self) -> dict[str, Any]:
        own = {f"network.{name}": each for name, each in self.network.parameters_and_names()}
        return own | {f"optimizer.{name}": each for name, each in self.optimizer.parameters_and_names()}

    def save(self, path: Path) -> None:
        aside = path.with_suffix(".tmp")
        save_file({name: each.asnumpy() for name, each in self.parameters().items()}, aside)
        aside.rename(path)

    def load(self, path: Path) -> None:
        for name, value in load_file(path).items():
            self.parameters()[name].set_data(Tensor(value))


def main() -> None:
    """Train to `--steps`, then write the network and its scores."""
    parser = argparse.ArgumentParser(description="train the small base model's autoencoder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=30000)
    parser.add_argument("--save-every", type=int, default=500)
    options = parser.parse_args()
    folder: Path = options.folder
    images = read_images(folder)
    held_out, images = images[:HELD_OUT], images[HELD_OUT:]
    state = State(options.steps)
    state_file = folder / "autoencoder_state.safetensors"
    if state_file.exists():
        state.load(state_file)
    done = int(state.optimizer.global_step.asnumpy()[0])
    began_s = time.monotonic()
    for step in range(done, options.steps):
        value = state.step(*(Tensor(each) for each in batch_of(images, step)))
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            state.save(state_file)
            ours, _ = reconstruct(state.network, held_out)
            sheet([held_out, ours], folder / "autoencoder.png")
            speed = (step + 1 - done) * BATCH / (time.monotonic() - began_s)
            loss, psnr = float(value.asnumpy()), psnr_db(ours, held_out)
            print(f"step {step + 1}: loss {loss:.4f}, held-out PSNR {psnr:.2f} dB, {speed:.1f} img/s", flush=True)
    ours, _ = reconstruct(state.network, held_out)
    _, means = reconstruct(state.network, images)
    record = CONFIG.model_copy(update={"scale": round(float(1 / means.std()), 5)})
    tensors = {f"{PREFIX}{name}": each.asnumpy() for name, each in state.network.parameters_and_names()}
    save_file(tensors, folder / "autoencoder.safetensors", {"vae": record.model_dump_json()})
    print(json.dumps({"psnr_db": psnr_db(ours, held_out), "scale": record.scale, "steps": options.steps}))


if __name__ == "__main__":
    main()
