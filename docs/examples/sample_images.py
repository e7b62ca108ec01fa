"""Make images from a file of weights.

python sample_images.py WEIGHTS OUTPUT.png PROMPT [PROMPT ...]
"""

import sys
from pathlib import Path

from vpred_train import open_weights, runtime
from vpred_train.config.sampling import SamplingConfig


def main(weights_path: Path, output: Path, prompts: list[str]) -> None:
    runtime.start_single()  # first: TextToImage imports MindSpore
    from vpred_train import TextToImage
    from vpred_train.sampling.images import contact_sheet

    weights = open_weights(weights_path)
    side = weights.record.resolution if weights.record else 768
    sampling = SamplingConfig(sampler="dpmpp_2m", steps=20, guidance_scale=4.0, batch_size=len(prompts))
    pipeline = TextToImage.from_weights(weights, sampling, height=side, width=side)
    images = pipeline.generate(prompts, seeds=range(len(prompts)))  # (n, 3, H, W) float32 in [-1, 1]
    output.write_bytes(contact_sheet(images))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
