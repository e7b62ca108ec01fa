"""Make lora.safetensors and lora.npz: LoRA as diffusers 0.42.1 with peft 0.21.2 saves it, and what it adds to weights.

    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 && python tests/golden/make_lora.py

The networks are those of `TINY` in tests/support/weights_files.py; alpha is not the rank.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from seeded import weights
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).parent
UNET = UNet2DConditionModel(
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=(1, 2),
    cross_attention_dim=8,
    norm_num_groups=4,
    use_linear_projection=True,
)
TEXT = CLIPTextModel(
    CLIPTextConfig(
        hidden_size=8, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8
    )
)
TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
}

changes, layers, settings = {}, {}, {}
for network, model in (("unet", UNET), ("text_encoder", TEXT)):
    config = LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS[network])
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.from_numpy(weights(name, tuple(parameter.shape)))
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            changes[f"{network}.{name}"] = module.get_delta_weight("default").detach().numpy()
    layers[f"{network}_lora_layers"] = {
        name.replace(".default.", "."): each for name, each in model.state_dict().items() if ".lora_" in name
    }
    settings[f"{network}_lora_adapter_metadata"] = config.to_dict()
StableDiffusionPipeline.save_lora_weights(HERE, weight_name="lora.safetensors", **layers, **settings)
np.savez_compressed(HERE / "lora.npz", **changes)
