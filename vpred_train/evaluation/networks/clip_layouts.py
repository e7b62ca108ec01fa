"""Renames CLIP's tensors from the published layouts to OpenAI's names.

OpenAI, open_clip: the names themselves; open_clip with a text tower of its own class: prefix `text.`.
Hugging Face's CLIPModel: query, key and value apart, and the two projections transposed.
MindONE, MindFormers: `gamma` and `beta`, `embedding_table`, `in_proj.weight`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.contract.config import ConfigError
from vpred_train.foreign import printable
from vpred_train.weights.formats.stored_tensor import FLOATS, OTHER_TYPE, Float32, StoredTensor, count_text, is_finite

Shape = tuple[int, ...]
Rules = tuple[tuple[str, str], ...]

HUGGING_FACE: Rules = (
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # the published spelling
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.q_proj\.", ".attn.in_proj_"),
)
TRANSPOSED = {"visual_projection.weight", "text_projection.weight"}  # of Hugging Face's layout
MINDONE: Rules = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.attn\.in_proj\.", ".attn.in_proj_"),
    (r"^token_embedding\.embedding_table$", "token_embedding.weight"),
)
UNUSED = re.compile(r"(.*\.)?(position_ids|attn_mask)|input_resolution|context_length|vocab_size")
GIVE = "give CLIP weights with a ViT image tower"
FOREIGN = (
    (r"^visual\.(layer1|attnpool)\.", f"holds a ResNet CLIP (RN50 or larger), whose image tower is no ViT; {GIVE}"),
    (r"^visual\.trunk\.", f"has an image tower of timm; {GIVE} of OpenAI's structure"),
    (
        r"^visual\.attn_pool\.",
        f"has an image tower that pools by attention (CoCa, SigLIP); {GIVE} of OpenAI's structure",
    ),
    (
        r"^(text\.)?transformer\.(embeddings|encoder)\.",
        f"has a text tower of another model; {GIVE} and CLIP's text tower",
    ),
    (r"^logit_bias$", f"holds SigLIP weights; {GIVE} of OpenAI's structure"),
    (
        r"^cond_stage_model\.|^(text_model\.)?embeddings\.token_embedding\.",
        "has no image tower: Stable Diffusion needs the text tower alone; give the full CLIP model",
    ),
)


@dataclass(frozen=True)
class Part:
    """Describes a tensor under OpenAI's name: stored tensors to concatenate along the first axis.

    transposed: the stored matrix is the transpose.
    """

    tensors: tuple[StoredTensor, ...]
    transposed: bool = False

    @property
    def shape(self) -> Shape:
        """Return the shape under OpenAI's name."""
        first = self.tensors[0].shape
        if self.transposed:
            return first[::-1]
        return (len(self.tensors) * first[0], *first[1:]) if len(self.tensors) > 1 else first

    def values(self, name: str) -> Float32:
        """Read the tensor as float32.

        name: for the error message.
        Raises ConfigError: when the dtype is no float, or a value is NaN or infinite.
        """
        path = self.tensors[0].path
        if others := {each.dtype for each in self.tensors} - FLOATS:
            raise ConfigError(f"{path}: {name} is {min(others)}; {OTHER_TYPE}")
        read = [each.float32() for each in self.tensors]
        array = read[0] if len(read) == 1 else np.concatenate(read)
        if not is_finite(array):
            raise ConfigError(f"{path}: {name} holds {count_text(array)}; give weights that are finite")
        return np.ascontiguousarray(array.T) if self.transposed else array


def openai_parts(path: Path, tensors: Mapping[str, StoredTensor]) -> tuple[str, dict[str, Part]]:
    """Return the layout's name and the tensors under OpenAI's names.

    path: for the error message.
    Raises ConfigError: when the tensors are not CLIP's, or a tower is missing or of another kind.
    """
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    hugging_face = any(name.startswith("vision_model.") for name in named)
    for pattern, fault in FOREIGN:
        example = next((name for name in named if re.search(pattern, name)), None)
        if example and not hugging_face:
            raise ConfigError(f"{path}: {fault} (found {printable(example)})")
    if hugging_face:
        return "hugging_face", _of_hugging_face(path, named)
    if "visual.ln_pre.gamma" in named:
        return "mindone", {_renamed(name, MINDONE): Part((tensor,)) for name, tensor in named.items()}
    if "visual.conv1.weight" in named:
        return "openai", {name.removeprefix("text."): Part((tensor,)) for name, tensor in named.items()}
    shown = printable(", ".join(list(named)[:3])) or "none"
    raise ConfigError(f"{path}: no tensor has a name of CLIP's image tower (found {len(named)}: {shown}); {GIVE}")


def _of_hugging_face(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, Part]:
    found = {}
    for name, tensor in tensors.items():
        parts = [name]
        if ".self_attn.q_proj." in name:
            parts += [name.replace(".q_proj.", f".{each}_proj.") for each in "kv"]
        elif re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue
        if missing := [part for part in parts if part not in tensors]:
            raise ConfigError(f"{path}: {printable(missing[0])} is missing; download the folder again")
        stored = tuple(tensors[part] for part in parts)
        if len({each.shape for each in stored}) > 1:
            raise ConfigError(f"{path}: {printable(name)} has another shape than key or value; download it again")
        found[_renamed(name, HUGGING_FACE)] = Part(stored, name in TRANSPOSED and len(tensor.shape) == 2)
    return found


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
