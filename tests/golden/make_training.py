"""Make training.npz: ten steps of joint training of a small UNet and text tower, by torch 2.13.0 and diffusers 0.42.1.

    pip install torch==2.13.0 diffusers==0.42.1 transformers && python tests/golden/make_training.py

All is float64 but the schedule's table and the timestep features, which diffusers makes in float32. The UNet, the
schedule, v and the moving average are diffusers', the tower's blocks, clipping, AdamW and the rate's warm-up torch's.
Weights come from seeded.py under the names of Stability's networks; tokens are open_clip's (text.npz).
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from make_unet import RES_BLOCKS, stability_name
from seeded import weights

HERE = Path(__file__).parent
STEPS, BATCH, SIDE, LENGTH = 10, 4, 8, 77
WIDTH, HEADS = 24, 2
UNET = dict(
    in_channels=3,
    out_channels=3,
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=(2, 4),  # the number of heads
    cross_attention_dim=WIDTH,
    norm_num_groups=16,
)
RATE, WARMUP_STEPS, BETAS, EPSILON, WEIGHT_DECAY = 1e-3, 3, (0.9, 0.99), 1e-6, 0.1
MAX_GRAD_NORM, EMA_DECAY = 1.0, 0.3  # the norm lies on both sides of it, and so does (1 + n) / (10 + n)
BLOCK = {
    "attn.in_proj_weight": "self_attn.in_proj_weight",
    "attn.in_proj_bias": "self_attn.in_proj_bias",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.c_fc": "linear1",
    "mlp.c_proj": "linear2",
}


class Tower(torch.nn.Module):
    """One causal pre-norm block between embeddings and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = torch.nn.Embedding(49408, WIDTH)
        self.positional_embedding = torch.nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.block = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.ln_final = torch.nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)
        x = self.token_embedding(tokens) + self.positional_embedding
        return self.ln_final(self.block(x, src_mask=mask))


def tower_name(name: str) -> str:
    """The name in open_clip's tower of a tensor of `Tower`."""
    for theirs, ours in BLOCK.items():
        if name.startswith(f"block.{ours}"):
            return f"transformer.resblocks.0.{theirs}{name.removeprefix(f'block.{ours}')}"
    return name


def batches() -> dict[str, np.ndarray]:
    """Images, noise (STEPS, BATCH, 3, SIDE, SIDE), timesteps (STEPS, BATCH), and which of the 500 captions."""
    rng = np.random.default_rng(10)
    timesteps = rng.integers(1000, size=(STEPS, BATCH))
    timesteps[3, :2] = 0, 999
    return dict(
        images=rng.uniform(-1, 1, (STEPS, BATCH, 3, SIDE, SIDE)).astype(np.float32),
        noise=rng.standard_normal((STEPS, BATCH, 3, SIDE, SIDE)).astype(np.float32),
        timesteps=timesteps,
        captions=rng.integers(500, size=(STEPS, BATCH)),
    )


def digests(prefix: str, named: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Of each tensor's way from its start: the length, and the share along a seeded direction; and one tensor whole."""
    names = sorted(named)
    ways = [named[name].numpy() - weights(name, tuple(named[name].shape)) for name in names]
    along = [np.sum(way * weights(f"direction.{name}", way.shape)) for name, way in zip(names, ways, strict=True)]
    lengths = [np.linalg.norm(way) for way in ways]
    kept = named["unet.out.2.weight"].numpy()
    return {f"{prefix}_length": np.array(lengths), f"{prefix}_along": np.array(along), f"{prefix}_out": kept}


def main() -> None:
    unet = UNet2DConditionModel(sample_size=SIDE, layers_per_block=RES_BLOCKS, use_linear_projection=True, **UNET)
    tower, attended = Tower(), {1}
    named = {f"unet.{stability_name(name, attended)}": each for name, each in unet.named_parameters()}
    named |= {f"text_encoder.{tower_name(name)}": each for name, each in tower.named_parameters()}
    for network in (unet, tower):
        network.double().train()
    for name, parameter in named.items():
        parameter.data.copy_(torch.from_numpy(weights(name, tuple(parameter.shape))))
    decays = {name: each.ndim > 1 and "embedding" not in name for name, each in named.items()}
    groups = [
        {"params": [each for name, each in named.items() if decays[name]], "weight_decay": WEIGHT_DECAY},
        {"params": [each for name, each in named.items() if not decays[name]], "weight_decay": 0.0},
    ]
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
    average = EMAModel(parameters, decay=EMA_DECAY, update_after_step=-1)  # so that n counts from 1
    schedule = DDPMScheduler(
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    data, tokens = batches(), np.load(HERE / "text.npz")["tokens"].astype(np.int64)
    losses, norms = [], []
    for step in range(STEPS):
        x, noise = (torch.from_numpy(data[key][step]).double() for key in ("images", "noise"))
        t = torch.from_numpy(data["timesteps"][step])
        context = tower(torch.from_numpy(tokens[data["captions"][step]]))
        prediction = unet(schedule.add_noise(x, noise, t), t, context).sample
        loss = torch.nn.functional.mse_loss(prediction, schedule.get_velocity(x, noise, t))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item())
        optimizer.step()
        warmup.step()
        average.step(parameters)
        losses.append(loss.item())
    averaged = dict(zip(named, average.shadow_params, strict=True))
    golden = digests("weights", {name: each.detach() for name, each in named.items()}) | digests("average", averaged)
    print("losses", losses, "norms", norms, sep="\n")
    np.savez_compressed(
        HERE / "training.npz", **data, losses=losses, norms=norms, names=np.array(sorted(named)), **golden
    )


if __name__ == "__main__":
    main()
