"""Counts the floating-point operations of training from the recipe.

Each multiply-add of convolutions, linear maps and attention products counts as two. Nothing else is counted, as is
usual (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).

Backward: a product costs its forward twice when the gradients of both its input and its weight are needed, and once
when one of them is. Layers before everything that learns cost nothing. Recomputed blocks are not counted again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vpred_train.config.model import Network, UNetConfig, VaeConfig
from vpred_train.config.train import TrainConfig
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS, stability_shapes
from vpred_train.weights.lora.factors import attention_targets


@dataclass(frozen=True)
class Flops:
    """Holds the floating-point operations of one network for one image."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Return the sum of forward and backward."""
        return self.forward + self.backward


class Tally:
    """Adds up one network's products. A tensor is represented by a bool: whether its gradient is needed.

    learns: the network's base weights learn
    adapted: the weights that have LoRA factors of `rank`
    """

    def __init__(
        self, prefix: str, shapes: Mapping[str, tuple[int, ...]], learns: bool, adapted: set[str], rank: int
    ) -> None:
        self.prefix, self.shapes, self.learns, self.adapted, self.rank = prefix, shapes, learns, adapted, rank
        self.forward = self.backward = 0  # multiply-adds

    def has(self, name: str) -> bool:
        """Return whether the network has this layer."""
        return f"{self.prefix}{name}.weight" in self.shapes

    def layer(self, name: str, places: int, x: bool, suffix: str = ".weight") -> bool:
        """Count a linear map or convolution. Return whether its output has a gradient.

        places: number of places of the image at which it is applied
        x: whether the input needs a gradient
        """
        weight = f"{self.prefix}{name}{suffix}"
        shape = self.shapes[weight]
        self._product(places * math.prod(shape), x, self.learns)
        if weight not in self.adapted:
            return x or self.learns
        self._product(places * self.rank * shape[1], x, True)
        self._product(places * self.rank * shape[0], True, True)
        return True

    def attention(self, queries: int, keys: int, channels: int, q: bool, k: bool, v: bool) -> bool:
        """Count softmax(q k^T) v. A causal mask saves nothing here."""
        products = queries * keys * channels
        self._product(products, q, k)
        self._product(products, q or k, v)
        return q or k or v

    @property
    def flops(self) -> Flops:
        """Return the counted operations."""
        return Flops(2 * self.forward, 2 * self.backward)

    def _product(self, multiply_adds: int, left: bool, right: bool) -> None:
        """Count a product of two factors, each of which may need its gradient."""
        self.forward += multiply_adds
        self.backward += multiply_adds * (left + right)


def flops_per_image(config: TrainConfig) -> dict[Network, Flops]:
    """Count each network's operations for one training image: the autoencoder's encoder, the text encoder, the UNet.

    Only the UNet is counted when the others' outputs are cached.
    """
    shapes = stability_shapes(config.model)
    adapted = {target.weight for target in attention_targets(config.model, config.trainable)} if config.lora else set()
    rank = config.lora.rank if config.lora else 0

    def tally(network: Network) -> Tally:
        learns = network in config.trainable and config.lora is None
        return Tally(COMPONENTS[network], shapes, learns, adapted, rank)

    found: dict[Network, Flops] = {}
    if config.model.vae:
        vae = tally("vae")
        add_vae_encoder(vae, config.model.vae, config.data.resolution)
        found["vae"] = vae.flops
    text = tally("text_encoder")
    context = add_text_encoder(text, config.model.text_encoder.layers, config.model.text_encoder.context_length)
    found["text_encoder"] = text.flops
    unet = tally("unet")
    side = config.data.resolution // config.model.pixels_per_latent
    add_unet(unet, config.model.unet, side, config.model.text_encoder.context_length, context)
    return {"unet": unet.flops} if config.data.cache else found | {"unet": unet.flops}


def add_text_encoder(tally: Tally, layers: int, tokens: int) -> bool:
    """Count all blocks of the text tower. The embedding is a table, not a product."""
    x = tally.learns
    for number in range(layers):
        block = f"transformer.resblocks.{number}"
        qkv = tally.layer(f"{block}.attn.in_proj", tokens, x, suffix="_weight")
        width = tally.shapes[f"{tally.prefix}{block}.attn.out_proj.weight"][1]
        y = tally.attention(tokens, tokens, width, qkv, qkv, qkv)
        x = tally.layer(f"{block}.attn.out_proj", tokens, y) or x
        x = tally.layer(f"{block}.mlp.c_proj", tokens, tally.layer(f"{block}.mlp.c_fc", tokens, x)) or x
    return x


def add_vae_encoder(tally: Tally, config: VaeConfig, side: int) -> None:
    """Count the encoder up to the moments of the latents, for an image of `side` pixels. It never learns."""
    tally.layer("encoder.conv_in", side**2, False)
    for level in range(len(config.channel_multipliers)):
        for place in range(config.res_blocks):
            _vae_block(tally, f"encoder.down.{level}.block.{place}", side**2)
        if tally.has(f"encoder.down.{level}.downsample.conv"):
            side //= 2
            tally.layer(f"encoder.down.{level}.downsample.conv", side**2, False)
    _vae_block(tally, "encoder.mid.block_1", side**2)
    for part in ("q", "k", "v", "proj_out"):
        tally.layer(f"encoder.mid.attn_1.{part}", side**2, False)
    channels = tally.shapes[f"{tally.prefix}encoder.mid.attn_1.q.weight"][0]
    tally.attention(side**2, side**2, channels, False, False, False)
    _vae_block(tally, "encoder.mid.block_2", side**2)
    tally.layer("encoder.conv_out", side**2, False)
    tally.layer("quant_conv", side**2, False)


def _vae_block(tally: Tally, name: str, places: int) -> None:
    for layer in ("conv1", "conv2", "nin_shortcut"):
        if tally.has(f"{name}.{layer}"):
            tally.layer(f"{name}.{layer}", places, False)


def add_unet(tally: Tally, config: UNetConfig, side: int, tokens: int, context: bool) -> None:
    """Count the UNet on latents of `side` pixels and `tokens` of text.

    context: whether the text needs a gradient
    """
    embedding = tally.layer("time_embed.2", 1, tally.layer("time_embed.0", 1, False))
    sides = [side]
    for _ in config.channel_multipliers[1:]:
        sides.append(-(-sides[-1] // 2))  # an odd side is halved upwards
    per_level = config.res_blocks + 1

    def block(name: str, side: int, x: bool) -> bool:
        return _unet_block(tally, name, side**2, tokens, x, embedding, context)

    x = tally.layer("input_blocks.0.0", side**2, False)
    skips = [x]
    for number in range(1, per_level * len(sides)):
        name, here = f"input_blocks.{number}", sides[number // per_level]
        x = tally.layer(f"{name}.0.op", here**2, x) if tally.has(f"{name}.0.op") else block(name, here, x)
        skips.append(x)
    x = block("middle_block", sides[-1], x)
    for number in range(per_level * len(sides)):
        name, level = f"output_blocks.{number}", len(sides) - 1 - number // per_level
        skip = skips.pop()
        x = block(name, sides[level], x or skip)
        for upsample in (f"{name}.1.conv", f"{name}.2.conv"):
            if tally.has(upsample):
                x = tally.layer(upsample, sides[level - 1] ** 2, x)
    tally.layer("out.2", side**2, x)


def _unet_block(tally: Tally, name: str, places: int, tokens: int, x: bool, embedding: bool, context: bool) -> bool:
    """Count a residual block, the transformer after it, and in the middle block a second residual block."""
    for part in (f"{name}.0", f"{name}.1", f"{name}.2"):
        if tally.has(f"{part}.in_layers.2"):
            h = tally.layer(f"{part}.in_layers.2", places, x)
            shift = tally.layer(f"{part}.emb_layers.1", 1, embedding)
            skip = tally.layer(f"{part}.skip_connection", places, x) if tally.has(f"{part}.skip_connection") else x
            x = tally.layer(f"{part}.out_layers.3", places, h or shift) or skip
        elif tally.has(f"{part}.proj_in"):
            x = _transformer(tally, part, places, tokens, x, context)
    return x


def _transformer(tally: Tally, name: str, places: int, tokens: int, x: bool, context: bool) -> bool:
    """Count the pixels' self-attention, their attention to the text, and the feed-forward layer."""
    block = f"{name}.transformer_blocks.0"
    h = tally.layer(f"{name}.proj_in", places, x)
    for attention, length, own in (("attn1", places, True), ("attn2", tokens, False)):
        q = tally.layer(f"{block}.{attention}.to_q", places, h)
        k, v = (tally.layer(f"{block}.{attention}.to_{part}", length, h if own else context) for part in "kv")
        channels = tally.shapes[f"{tally.prefix}{block}.{attention}.to_q.weight"][0]
        y = tally.attention(places, length, channels, q, k, v)
        h = tally.layer(f"{block}.{attention}.to_out.0", places, y) or h
    h = tally.layer(f"{block}.ff.net.2", places, tally.layer(f"{block}.ff.net.0.proj", places, h)) or h
    return tally.layer(f"{name}.proj_out", places, h) or x
