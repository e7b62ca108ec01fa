"""Names the factors of a matrix as LoRA files do: Stability's, MindONE's, and diffusers' old and new names."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from vpred_train.config.model import ModelConfig
from vpred_train.weights.layouts.tensor_names import TEXT_MODEL, diffusers_names, mindone_name
from vpred_train.weights.lora.factors import QKV, Target, linear_targets

Role = Literal["down", "up", "alpha"]
Names = dict[Role, str]
PREFIX_5 = TEXT_MODEL.replace("/", ".").replace("text_model.", "")  # transformers 5 leaves out text_model
# peft puts the wrapped model's own name in front, and the adapter's name inside.
PEFT_PREFIX = re.compile(r"^((?:unet|text_encoder)\.)?base_model\.model\.")
PEFT_ADAPTER = re.compile(r"\.(lora_[AB])\.default\.")


class Place(NamedTuple):
    """Says which factor of which matrix a tensor of a LoRA file is."""

    target: Target
    role: Role


def written_names(layout: str, target: Target, model: ModelConfig) -> Names:
    """Return the names of the factors of `target` in `layout`, as its newest programs write them."""
    if layout == "diffusers":
        return _peft(_diffusers_module(target, model))
    name = target.weight if layout == "stability" else mindone_name(target.weight)
    module = re.sub(r"[._]weight$", "", name)
    return _lora(f"{module}.{target.part}" if target.part else module)


def known_names(model: ModelConfig) -> dict[str, Place]:
    """Map every name that a known program gives to a factor of a linear layer to its meaning."""
    return {
        name: Place(target, role)
        for target in linear_targets(model)
        for names in _spellings(target, model)
        for role, name in names.items()
    }


def plain_name(name: str) -> str:
    """Return the name without the parts that peft adds."""
    return PEFT_ADAPTER.sub(r".\1.", PEFT_PREFIX.sub(lambda match: match[1] or "", name))


def _spellings(target: Target, model: ModelConfig) -> Iterator[Names]:
    yield written_names("stability", target, model)
    if not target.part:
        yield written_names("mindone", target, model)
    if not target.part and target.weight.endswith("in_proj_weight"):
        return  # diffusers has no packed projection
    module = _diffusers_module(target, model)
    network, _, inner = module.partition(".")
    modules: tuple[str, ...] = (module, inner)
    if network == "unet":
        old = re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1_lora", module)
        kohya = f"lora_unet_{inner.replace('.', '_')}"
    else:
        newer = module.replace("text_encoder.text_model.", PREFIX_5)
        modules += (newer, newer.partition(".")[2])
        old = re.sub(r"\.self_attn\.(?:([qkv])_proj|(out)_proj)$", r".self_attn.to_\1\2_lora", module)
        kohya = f"lora_te_{inner.replace('.', '_')}"
    for each in modules:
        yield _peft(each)
        yield _up_down(f"{each}.{'lora' if network == 'unet' else 'lora_linear_layer'}")
    if old != module:  # only attention layers had processors
        yield _up_down(old)
        yield _up_down(old.removeprefix("unet."))
    yield _lora(kohya)


def _diffusers_module(target: Target, model: ModelConfig) -> str:
    names = diffusers_names(target.weight, model)
    name = names[QKV.index(target.part)] if target.part else names[0]
    return name.removesuffix(".weight").replace("/", ".")


def _peft(module: str) -> Names:
    return {"down": f"{module}.lora_A.weight", "up": f"{module}.lora_B.weight"}


def _up_down(module: str) -> Names:
    return {"down": f"{module}.down.weight", "up": f"{module}.up.weight"}


def _lora(module: str) -> Names:
    return {"down": f"{module}.lora_down.weight", "up": f"{module}.lora_up.weight", "alpha": f"{module}.alpha"}
