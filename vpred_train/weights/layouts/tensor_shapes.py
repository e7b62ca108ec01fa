"""Derives the tensors of a model, under Stability's names, from its configuration.

Structure: Rombach et al. 2022 (arXiv 2112.10752), as in Stability's v2-inference-v.yaml. For `ModelConfig()`
these are the 1214 tensors of the published files that a trainer uses.
"""

from vpred_train.config.model import ModelConfig, TextEncoderConfig, UNetConfig, VaeConfig

Shapes = dict[str, tuple[int, ...]]
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
COMPONENTS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}


def stability_name(name: str) -> str:
    """Return the name that a parameter of `Networks` has in Stability's files."""
    network, _, rest = name.partition(".")
    return f"{COMPONENTS[network]}{rest}"


def stability_shapes(model: ModelConfig) -> Shapes:
    """Map each tensor's name to its shape; a model on pixels has no autoencoder tensors."""
    parts = [(UNET, _unet(model.unet)), (TEXT, _text_encoder(model.text_encoder))]
    if model.vae:
        parts.append((VAE, _vae(model.vae)))
    return {f"{prefix}{name}": shape for prefix, shapes in parts for name, shape in shapes.items()}


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, outputs: int, inputs: int, kernel: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _unet(config: UNetConfig) -> Shapes:
    width = config.model_channels
    embedding = 4 * width
    shapes = _linear("time_embed.0", embedding, width) | _linear("time_embed.2", embedding, embedding)
    shapes |= _conv("input_blocks.0.0", width, config.in_channels)
    skips, number = [width], 1
    levels = list(enumerate(config.channel_multipliers))
    for level, multiplier in levels:
        for _ in range(config.res_blocks):
            block, inputs, width = f"input_blocks.{number}", width, multiplier * config.model_channels
            shapes |= _res_block(f"{block}.0", inputs, width, embedding)
            if level in config.attention_levels:
                shapes |= _transformer(f"{block}.1", width, config.context_channels)
            skips.append(width)
            number += 1
        if level < len(levels) - 1:
            shapes |= _conv(f"input_blocks.{number}.0.op", width, width)
            skips.append(width)
            number += 1
    shapes |= _res_block("middle_block.0", width, width, embedding)
    shapes |= _transformer("middle_block.1", width, config.context_channels)
    shapes |= _res_block("middle_block.2", width, width, embedding)
    number = 0
    for level, multiplier in reversed(levels):
        for place in range(config.res_blocks + 1):
            block, inputs, width = f"output_blocks.{number}", width + skips.pop(), multiplier * config.model_channels
            shapes |= _res_block(f"{block}.0", inputs, width, embedding)
            if level in config.attention_levels:
                shapes |= _transformer(f"{block}.1", width, config.context_channels)
            if level and place == config.res_blocks:
                shapes |= _conv(f"{block}.{2 if level in config.attention_levels else 1}.conv", width, width)
            number += 1
    return shapes | _norm("out.0", width) | _conv("out.2", config.in_channels, width)


def _res_block(name: str, inputs: int, outputs: int, embedding: int) -> Shapes:
    shapes = _norm(f"{name}.in_layers.0", inputs) | _conv(f"{name}.in_layers.2", outputs, inputs)
    shapes |= _linear(f"{name}.emb_layers.1", outputs, embedding)
    shapes |= _norm(f"{name}.out_layers.0", outputs) | _conv(f"{name}.out_layers.3", outputs, outputs)
    return shapes if inputs == outputs else shapes | _conv(f"{name}.skip_connection", outputs, inputs, 1)


def _transformer(name: str, width: int, context: int) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    shapes = _norm(f"{name}.norm", width) | _linear(f"{name}.proj_in", width, width)
    for attention, source in (("attn1", width), ("attn2", context)):
        shapes |= {f"{block}.{attention}.to_q.weight": (width, width)}
        shapes |= {f"{block}.{attention}.to_{part}.weight": (width, source) for part in "kv"}
        shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
    # The gated unit (Shazeer 2020) doubles the first layer's outputs.
    shapes |= _linear(f"{block}.ff.net.0.proj", 8 * width, width) | _linear(f"{block}.ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        shapes |= _norm(f"{block}.norm{number}", width)
    return shapes | _linear(f"{name}.proj_out", width, width)


def _text_encoder(config: TextEncoderConfig) -> Shapes:
    width = config.width
    shapes: Shapes = {
        "token_embedding.weight": (config.vocabulary_size, width),
        "positional_embedding": (config.context_length, width),
    }
    for layer in range(config.layers):
        block = f"transformer.resblocks.{layer}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= _linear(f"{block}.attn.out_proj", width, width)
        shapes |= _linear(f"{block}.mlp.c_fc", 4 * width, width) | _linear(f"{block}.mlp.c_proj", width, 4 * width)
        shapes |= _norm(f"{block}.ln_1", width) | _norm(f"{block}.ln_2", width)
    return shapes | _norm("ln_final", width)


def _vae(config: VaeConfig) -> Shapes:
    latent = config.latent_channels
    widths = [multiplier * config.channels for multiplier in config.channel_multipliers]
    deepest = len(widths) - 1
    shapes = _conv("encoder.conv_in", config.channels, 3)
    inputs = config.channels
    for level, width in enumerate(widths):
        for place in range(config.res_blocks):
            shapes |= _vae_block(f"encoder.down.{level}.block.{place}", inputs, width)
            inputs = width
        if level < deepest:
            shapes |= _conv(f"encoder.down.{level}.downsample.conv", width, width)
    shapes |= _vae_middle("encoder", inputs) | _conv("encoder.conv_out", 2 * latent, inputs)  # mean and log-variance
    shapes |= _conv("decoder.conv_in", inputs, latent) | _vae_middle("decoder", inputs)
    shapes |= _norm("encoder.norm_out", inputs)
    for level in range(deepest, -1, -1):
        for place in range(config.res_blocks + 1):
            shapes |= _vae_block(f"decoder.up.{level}.block.{place}", inputs, widths[level])
            inputs = widths[level]
        if level:
            shapes |= _conv(f"decoder.up.{level}.upsample.conv", inputs, inputs)
    shapes |= _norm("decoder.norm_out", inputs) | _conv("decoder.conv_out", 3, inputs)
    return shapes | _conv("quant_conv", 2 * latent, 2 * latent, 1) | _conv("post_quant_conv", latent, latent, 1)


def _vae_block(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", inputs) | _conv(f"{name}.conv1", outputs, inputs)
    shapes |= _norm(f"{name}.norm2", outputs) | _conv(f"{name}.conv2", outputs, outputs)
    return shapes if inputs == outputs else shapes | _conv(f"{name}.nin_shortcut", outputs, inputs, 1)


def _vae_middle(side: str, width: int) -> Shapes:
    shapes = _vae_block(f"{side}.mid.block_1", width, width) | _vae_block(f"{side}.mid.block_2", width, width)
    shapes |= _norm(f"{side}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{side}.mid.attn_1.{part}", width, width, 1)
    return shapes
