"""Names and shapes of all 1214 tensors of SD2, both ways, against the published listing."""

import re

import pytest

from support import GOLDEN
from vpred_train.config.model import ModelConfig, TextEncoderConfig, UNetConfig, VaeConfig
from vpred_train.weights.layouts.tensor_names import (
    diffusers_names,
    ema_name,
    inverse,
    mindone_name,
    older_diffusers_name,
)
from vpred_train.weights.layouts.tensor_shapes import stability_shapes

SD2 = ModelConfig()
LISTING = GOLDEN / "sd2_names.tsv"
ROWS = [line.split("\t") for line in LISTING.read_text().splitlines() if not line.startswith("#")]


def listed_diffusers_names(entry: str) -> tuple[str, ...]:
    """ "a.{q,k,v}_proj.b (concat ...)" -> its three names; "name [512, 512]" -> (name,)."""
    name = re.sub(r" [(\[].*", "", entry)
    return tuple(name.replace("{q,k,v}", part) for part in "qkv") if "{" in name else (name,)


def test_names_and_shapes_of_the_listing() -> None:
    listed = {row[3]: tuple(int(size) for size in row[1].split("x")) for row in ROWS}
    assert len(listed) == len(ROWS) == 1214
    assert stability_shapes(SD2) == listed


def test_mindone_both_ways() -> None:
    assert [(row[3], mindone_name(row[3])) for row in ROWS] == [(row[3], row[0]) for row in ROWS]
    back = inverse(stability_shapes(SD2), mindone_name)
    assert back == {row[0]: row[3] for row in ROWS}
    assert len(back) == 1214


def test_diffusers_both_ways() -> None:
    """The listing has the VAE attention's older names."""
    for row in ROWS:
        found = tuple(older_diffusers_name(name) for name in diffusers_names(row[3], SD2))
        assert found == listed_diffusers_names(row[4])
    for position in range(3):
        split = [row for row in ROWS if len(listed_diffusers_names(row[4])) == 3 or position == 0]
        back = inverse(
            [row[3] for row in split], lambda name, at=position: older_diffusers_name(diffusers_names(name, SD2)[at])
        )
        assert back == {listed_diffusers_names(row[4])[position]: row[3] for row in split}


@pytest.mark.parametrize(
    ("name", "newer", "older"),
    [
        ("encoder.mid.attn_1.q.weight", "to_q.weight", "query.weight"),
        ("decoder.mid.attn_1.k.bias", "to_k.bias", "key.bias"),
        ("decoder.mid.attn_1.v.weight", "to_v.weight", "value.weight"),
        ("encoder.mid.attn_1.proj_out.bias", "to_out.0.bias", "proj_attn.bias"),
        ("encoder.mid.attn_1.norm.bias", "group_norm.bias", "group_norm.bias"),
    ],
)
def test_vae_attention(name: str, newer: str, older: str) -> None:
    (found,) = diffusers_names(f"first_stage_model.{name}", SD2)
    assert found == f"vae/{name.split('.')[0]}.mid_block.attentions.0.{newer}"
    assert older_diffusers_name(found).endswith(f"attentions.0.{older}")


def test_averages_lose_their_dots() -> None:
    assert ema_name("model.diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"
    unet = [name for name in stability_shapes(SD2) if name.startswith("model.")]
    assert len(inverse(unet, ema_name)) == 686


def test_other_depths_have_their_own_blocks() -> None:
    model = ModelConfig(
        unet=UNetConfig(
            in_channels=4, model_channels=32, channel_multipliers=(1, 2), res_blocks=1, attention_levels=(1,),
            head_channels=32, context_channels=16,
        ),
        text_encoder=TextEncoderConfig(width=16, heads=2, layers=1),
        vae=VaeConfig(channels=32, channel_multipliers=(1, 2)),
    )  # fmt: skip
    assert {diffusers_names(name, model)[0] for name in stability_shapes(model)} >= {
        "unet/down_blocks.0.downsamplers.0.conv.weight",
        "unet/up_blocks.0.upsamplers.0.conv.weight",
        "unet/up_blocks.0.attentions.1.proj_in.bias",
        "unet/down_blocks.1.attentions.0.norm.bias",
        "vae/decoder.up_blocks.1.resnets.2.conv1.weight",
        "vae/decoder.up_blocks.0.upsamplers.0.conv.bias",
    }
    inverse(stability_shapes(model), lambda name: diffusers_names(name, model)[0])


def test_two_names_may_not_become_one() -> None:
    with pytest.raises(ValueError, match=r"ab and a\.b both become ab"):
        inverse(["a.b", "ab"], lambda name: name.replace(".", ""))
