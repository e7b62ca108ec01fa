"""The other side of sampling.py: diffusers' StableDiffusionPipeline, sampling on request.

Arguments: folder of the model, pixels on a side, steps, guidance scale, threads. Each line of standard input is JSON:
prompts, seeds, and the file (.npy) for the images, (n, 3, H, W) float32 in [-1, 1]. The answer is the seconds taken.
"""

import json
import sys
import time

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline


def main(folder: str, pixels: str, steps: str, guidance_scale: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    # Ours visits as many timesteps and ends at x, that is at sigma zero.
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    side = int(pixels) // pipeline.vae_scale_factor
    shape = (pipeline.unet.config.in_channels, side, side)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        noise = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in request["seeds"]]
        images = pipeline(
            request["prompts"],
            height=int(pixels),
            width=int(pixels),
            num_inference_steps=int(steps),
            guidance_scale=float(guidance_scale),
            latents=torch.from_numpy(np.stack(noise)),
            output_type="np",
        ).images
        seconds = time.perf_counter() - started
        np.save(request["images"], images.transpose(0, 3, 1, 2) * 2 - 1)
        print(seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
