"""Make flops.npz: the operations of one image as torch.utils.flop_counter counts them (torch 2.13.0, diffusers 0.42.1,
transformers 5.23.0) while autograd runs forward and backward on tensors without memory.

    pip install torch==2.13.0 diffusers==0.42.1 transformers && python tests/golden/make_flops.py
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from make_unet import RES_BLOCKS, SD2, SMALL
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

LORA_RANK = 4


class LowRank(torch.nn.Module):
    """A frozen linear layer and the factors beside it."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Linear(base.in_features, LORA_RANK, bias=False)
        self.up = torch.nn.Linear(LORA_RANK, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def counted(run) -> list[int]:
    """Forward and backward of `run`, whose result is differentiated if anything in it learns."""
    counter = FlopCounterMode(display=False)
    with counter:
        result = run()
        forward = counter.get_total_flops()
        if result.requires_grad:
            result.sum().backward()
    return [forward, counter.get_total_flops() - forward]


def unet_flops(config: dict, side: int, tokens: int, mode: str) -> list[int]:
    """`mode`: whole (the UNet learns), text (so does what gives it the text), text_only, or lora."""
    model = UNet2DConditionModel(sample_size=side, layers_per_block=RES_BLOCKS, use_linear_projection=True, **config)
    model.set_attn_processor(AttnProcessor())  # its products are plain ones, which the counter knows
    if mode in ("lora", "text_only"):
        model.requires_grad_(False)
    if mode == "lora":
        for name, layer in list(model.named_modules()):
            if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, LowRank(layer))
    context = torch.zeros(1, tokens, config["cross_attention_dim"], requires_grad=mode.startswith("text"))
    return counted(lambda: model(torch.zeros(1, 4, side, side), torch.zeros(1), context).sample)


def text_flops(layers: int, learns: bool) -> list[int]:
    """SD2's text tower, cut to `layers`."""
    config = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=layers,
        vocab_size=49408, attn_implementation="eager",
    )  # fmt: skip
    model = CLIPTextModel(config).requires_grad_(learns)
    return counted(lambda: model(torch.zeros(1, 77, dtype=torch.int64)).last_hidden_state)


def vae_flops(side: int) -> list[int]:
    """The encoder of SD2's autoencoder."""
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
    }
    model = AutoencoderKL(latent_channels=4, layers_per_block=2, **blocks).requires_grad_(False)
    model.encoder.mid_block.attentions[0].set_processor(AttnProcessor())
    return counted(lambda: model.encode(torch.zeros(1, 3, side, side)).latent_dist.mean)


def main() -> None:
    with torch.device("meta"):
        found = {
            "sd2_whole_64": unet_flops(SD2, 64, 77, "whole"),
            "sd2_lora_64": unet_flops(SD2, 64, 77, "lora"),
            "sd2_vae_512": vae_flops(512),
            "sd2_text_23": text_flops(23, False),
            "sd2_text_2_learning": text_flops(2, True),
            **{f"small_{mode}_9": unet_flops(SMALL, 9, 7, mode) for mode in ("whole", "text", "text_only", "lora")},
        }
    for name, (forward, backward) in found.items():
        print(f"{name}: {forward:,} forward, {backward:,} backward")
    np.savez(Path(__file__).with_name("flops.npz"), **found)


if __name__ == "__main__":
    main()
