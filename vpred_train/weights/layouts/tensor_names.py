"""Renames tensors from Stability's names to MindONE's and diffusers'.

The rules are regular expressions, applied in order. The way back is the inverse of the same rules over the names of a
model (`inverse`), so the two directions cannot disagree.
"""

import re
from collections.abc import Callable, Iterable

from vpred_train.config.model import ModelConfig
from vpred_train.weights.layouts.tensor_shapes import TEXT, UNET, VAE

Rules = tuple[tuple[str, str], ...]

NORMS = r"((?:_norm|\.norm[123]?|\.norm_out|\.ln_[12]|\.ln_final|^model\.diffusion_model\.out\.0)\.)"
MINDONE: Rules = (
    (r"^cond_stage_model\.model\.", "cond_stage_model.transformer."),
    (r"\.token_embedding\.weight$", ".embedding_table"),
    (r"\.transformer\.resblocks\.", ".transformer_layer.resblocks."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.attn.in_proj.\1"),
    (r"\.attn\.out_proj\.", ".attn.attn.out_proj."),
    (r"\.mlp\.(c_fc|c_proj)\.", r".\1."),
    (r"\.(in|out)_layers\.0\.", r".\1_layers_norm."),
    (r"\.in_layers\.2\.", ".in_layers_conv.conv."),
    (r"\.out_layers\.3\.", ".out_layers_conv.conv."),
    (r"\.(skip_connection|op|input_blocks\.0\.0|output_blocks\.\d+\.\d+\.conv)\.", r".\1.conv."),
    (r"^model\.diffusion_model\.out\.2\.", "model.diffusion_model.out.2.conv."),
    (NORMS + "weight$", r"\1gamma"),
    (NORMS + "bias$", r"\1beta"),
)
DIFFUSERS_UNET: Rules = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.", "conv_out."),
    (r"^middle_block\.0\.", "mid_block.resnets.0."),
    (r"^middle_block\.1\.", "mid_block.attentions.0."),
    (r"^middle_block\.2\.", "mid_block.resnets.1."),
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time_emb_proj."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".conv_shortcut."),
)
DIFFUSERS_VAE: Rules = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
DIFFUSERS_VAE_BEFORE_0_17: Rules = (
    (r"(\.mid_block\.attentions\.0\.)to_q\.", r"\1query."),
    (r"(\.mid_block\.attentions\.0\.)to_k\.", r"\1key."),
    (r"(\.mid_block\.attentions\.0\.)to_v\.", r"\1value."),
    (r"(\.mid_block\.attentions\.0\.)to_out\.0\.", r"\1proj_attn."),
)
DIFFUSERS_TEXT: Rules = (
    (r"^token_embedding\.weight$", "embeddings.token_embedding.weight"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"^ln_final\.", "final_layer_norm."),
)
TEXT_MODEL = "text_encoder/text_model."  # transformers before version 5; later versions leave out "text_model."


def mindone_name(name: str) -> str:
    """Return the name in MindONE's .ckpt."""
    return _renamed(name, MINDONE)


def ema_name(name: str) -> str:
    """Return the name of a UNet tensor's moving average in Stability's files; it drops every dot below the network."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def diffusers_names(name: str, model: ModelConfig) -> tuple[str, ...]:
    """Return folder/name of the tensors in a diffusers folder whose concatenation on axis 0 is tensor `name`.

    This is one tensor; for the text encoder's input projection it is the three of query, key and value.
    """
    if name.startswith(TEXT):
        inner = _renamed(name.removeprefix(TEXT), DIFFUSERS_TEXT)
        if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", inner):
            return tuple(f"{TEXT_MODEL}{match[1]}.self_attn.{part}_proj.{match[2]}" for part in "qkv")
        return (f"{TEXT_MODEL}{inner}",)
    if name.startswith(VAE) and model.vae:
        highest = len(model.vae.channel_multipliers) - 1
        return (f"vae/{_renamed(_up_block(name.removeprefix(VAE), highest), DIFFUSERS_VAE)}",)
    inner = _renamed(name.removeprefix(UNET), DIFFUSERS_UNET)
    return (f"unet/{_unet_block(inner, model.unet.res_blocks)}",)


def older_diffusers_name(name: str) -> str:
    """Return the name that diffusers before 0.17 gave to tensor `name` of a folder; most are the same."""
    return _renamed(name, DIFFUSERS_VAE_BEFORE_0_17) if name.startswith("vae/") else name


def inverse(names: Iterable[str], rename: Callable[[str], str]) -> dict[str, str]:
    """Map each new name to its old name. Raises ValueError: when two names become the same."""
    found: dict[str, str] = {}
    for name in names:
        if found.setdefault(rename(name), name) != name:
            raise ValueError(f"{name} and {found[rename(name)]} both become {rename(name)}")
    return found


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _unet_block(name: str, res_blocks: int) -> str:
    """Rename a block: input_blocks and output_blocks are numbered over all levels, diffusers' within each level.

    A level has `res_blocks` + 1 blocks. Going down, the last of them changes the resolution.
    """
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", name)
    if not match:
        return name
    side, number, place, rest = match[1], int(match[2]), int(match[3]), match[4]
    kind = "attentions" if place else "resnets"
    if side == "input":
        level, within = divmod(number - 1, res_blocks + 1)
        if rest.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        return f"down_blocks.{level}.{kind}.{within}.{rest}"
    level, within = divmod(number, res_blocks + 1)
    if rest.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    return f"up_blocks.{level}.{kind}.{within}.{rest}"


def _up_block(name: str, highest: int) -> str:
    """Rename a decoder level: Stability numbers levels as in the encoder, diffusers in the order of use."""
    match = re.fullmatch(r"decoder\.up\.(\d+)\.(block|upsample)\.(.+)", name)
    if not match:
        return name
    part = "resnets" if match[2] == "block" else "upsamplers.0"
    return f"decoder.up_blocks.{highest - int(match[1])}.{part}.{match[3]}"
