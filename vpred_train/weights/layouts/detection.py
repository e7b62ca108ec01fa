"""Classifies a list of tensors: its layout, tensors without a use, and models that only look like SD2."""

import re
from collections.abc import Collection, Mapping

from vpred_train.config.model import ModelConfig
from vpred_train.weights.formats.stored_tensor import StoredTensor
from vpred_train.weights.layouts.tensor_names import diffusers_names, ema_name, mindone_name, older_diffusers_name
from vpred_train.weights.layouts.tensor_shapes import UNET, stability_shapes

LAYOUTS = ("mindone", "stability", "diffusers")

# Published files also hold schedule buffers, optimiser states and other tensors that no model needs.
UNUSED = re.compile(
    r"(sqrt_|log_)?(one_minus_)?(alphas_cumprod(_prev)?|recip_alphas_cumprod|recipm1_alphas_cumprod)|betas|logvar"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|scale_factor|(model_)?(log_)?sigmas|first_stage_model\.loss\..+"
    r"|v_pred|ztsnr|denoiser\.(log_)?sigmas|embedding_manager\..+"
    r"|((first_stage_model\.)?model_ema\.)?(num_updates|decay)|cond_stage_model\..*(logit_scale|text_projection|attn_mask|position_ids)"
    r"|text_encoder/.*(logit_scale|text_projection(\.weight)?|position_ids)"
    r"|(adam_[mv]|moment[12]|moments|accum\w*|grad\w*)\..+|global_step|scale_sense|learning_rate|updates|epoch_num"
    r"|cur_step|loss_scale|beta[12]_power|current_iterator_step|last_overflow_iterator_step|current_step|\w*good_step\w*"
)
TEXT_BLOCK = re.compile(r"(?:cond_stage_model\..*\.resblocks|text_encoder/.*encoder\.layers)\.(\d+)\.")
LORA_NAME = re.compile(r"(^|[._])lora([._]|_(up|down|[AB])\b)")
FOREIGN_NAMES = (
    (LORA_NAME, "LoRA", "give full weights here, and this file with --lora or to `vpred-weights merge`"),
    (r"^control_model\.|controlnet_|(^|\.)input_hint_block\.|^zero_convs\.", "ControlNet", "give the SD 2.x weights"),
    (r"^conditioner\.embedders\.|^text_encoder_2/|add_embedding\.", "SDXL", "give SD 2.x weights"),
    (r"label_emb\.|class_embedding\.", "unCLIP", "give plain SD 2.x weights"),
    (r"^cond_stage_model\.transformer\.text_model\.", "SD1", "give SD 2.x weights"),
)
FOREIGN_CONTEXTS = {768: "SD1", 2048: "SDXL"}  # channels of the text features
FOREIGN_INPUTS = {5: "an SD2 depth", 7: "an SD2 upscaling", 9: "an inpainting"}  # channels that the UNet takes


def possible_names(layout: str, model: ModelConfig) -> dict[str, list[tuple[str, ...]]]:
    """Map each Stability name to the names that `layout` may use.

    Each alternative is one tensor, or several to concatenate.
    """
    names = stability_shapes(model)
    if layout == "stability":
        return {name: [(name,)] for name in names}
    if layout == "mindone":
        return {name: [(mindone_name(name),)] for name in names}
    found = {}
    for name in names:
        newer = diffusers_names(name, model)
        found[name] = list(dict.fromkeys((newer, tuple(older_diffusers_name(each) for each in newer))))
    return found


def ema_names(layout: str, model: ModelConfig) -> dict[str, str]:
    """Map each Stability name to the name of its moving average; diffusers folders hold only one set of weights."""
    if layout == "stability":
        return {name: ema_name(name) for name in stability_shapes(model) if name.startswith(UNET)}
    if layout == "mindone":
        return {name: f"ema.{mindone_name(name)}" for name in stability_shapes(model)}
    return {}


def layout_scores(names: Collection[str], model: ModelConfig) -> dict[str, int]:
    """Map each layout to the number of the model's tensors whose name in that layout is among `names`."""
    return {
        layout: sum(
            any(all(part in names for part in alternative) for alternative in alternatives)
            for alternatives in possible_names(layout, model).values()
        )
        for layout in LAYOUTS
    }


def is_unused(name: str, model: ModelConfig) -> bool:
    """Return whether `name` is known to be useless. This includes text blocks behind the last that SD2 evaluates."""
    block = TEXT_BLOCK.match(name)
    return UNUSED.fullmatch(name) is not None or (block is not None and int(block[1]) >= model.text_encoder.layers)


def foreign_kind(tensors: Mapping[str, StoredTensor], model: ModelConfig) -> str:
    """Say which model other than SD2 the tensors are, with a remedy; empty when nothing contradicts SD2."""
    for pattern, kind, remedy in FOREIGN_NAMES:
        example = next((name for name in tensors if re.search(pattern, name)), None)
        if example:
            return f"holds {kind} weights ({example}), not a full SD 2.x model; {remedy}"
    for name, tensor in tensors.items():
        if name.endswith("attn2.to_k.weight"):
            context = tensor.shape[-1] if tensor.shape else 0
            if context in FOREIGN_CONTEXTS and context != model.unet.context_channels:
                kind = FOREIGN_CONTEXTS[context]
                return f"holds {kind} weights (text features of {context} channels); give SD 2.x weights"
        if name.endswith(
            (f"{UNET}input_blocks.0.0.weight", f"{UNET}input_blocks.0.0.conv.weight", "unet/conv_in.weight")
        ):
            inputs = tensor.shape[1] if len(tensor.shape) == 4 else 0
            if inputs in FOREIGN_INPUTS and inputs != model.unet.in_channels:
                return f"holds {FOREIGN_INPUTS[inputs]} model ({inputs} input channels); give plain SD 2.x weights"
    return ""
