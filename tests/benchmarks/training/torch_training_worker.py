"""The other side of training_step.py: diffusers' UNet, torch's AdamW and diffusers' EMA, training on request.

Arguments: folder of the model, file of the batch (.npz: z, noise, alpha, sigma, timesteps, context), threads, learning
rate. Each line of standard input is a number of steps; the answer is JSON: the seconds taken, the losses, and the
process's peak memory in bytes.
"""

import json
import resource
import sys
import time

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel


def main(folder: str, batch_file: str, threads: str, learning_rate: str) -> None:
    torch.set_num_threads(int(threads))
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=float(learning_rate), weight_decay=0.0)
    ema = EMAModel(unet.parameters(), decay=0.9999)
    batch = {name: torch.from_numpy(values) for name, values in np.load(batch_file).items()}
    z_t = batch["alpha"] * batch["z"] + batch["sigma"] * batch["noise"]
    target = batch["alpha"] * batch["noise"] - batch["sigma"] * batch["z"]
    print("ready", flush=True)
    for line in sys.stdin:
        losses = []
        started = time.perf_counter()
        for _ in range(int(line)):
            prediction = unet(z_t, batch["timesteps"], batch["context"]).sample
            loss = torch.nn.functional.mse_loss(prediction, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            losses.append(loss.item())
        seconds = time.perf_counter() - started
        peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak_bytes}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
