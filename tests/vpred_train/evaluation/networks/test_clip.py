"""CLIP's towers against open_clip and transformers in float64 (tests/golden/make_networks.py), in every layout."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from golden.seeded import weights
from launcher.contract.config import ConfigError
from support import GOLDEN
from support.pickles import state_dict, torchscript
from vpred_train.evaluation.networks import clip_declarations
from vpred_train.evaluation.networks.clip import ClipNetwork, open_clip
from vpred_train.evaluation.networks.clip_geometry import Geometry, Tower
from vpred_train.evaluation.networks.image_recipe import ImageRecipe
from vpred_train.models.text_encoder import Activation
from vpred_train.weights.formats.mindspore_ckpt import write_mindspore

TOLERANCE = 1e-6  # of the largest feature
GOLDENS = np.load(GOLDEN / "networks.npz")
CAPTIONS = GOLDENS["clip_captions"].tolist()
TEXT = Tower(64, 2, 1, 256)
SMALL = Geometry(Tower(128, 2, 2, 512), TEXT, 16, 4, 32)
WIDE_HEADS = Geometry(Tower(160, 2, 2, 640), TEXT, 14, 4, 32)
Arrays = dict[str, NDArray[Any]]


def tensors_of(geometry: Geometry) -> Arrays:
    return {name: np.asarray(weights(name, shape)) for name, shape in geometry.shapes().items()}


TENSORS = tensors_of(SMALL)


def hugging_face(tensors: Arrays) -> Arrays:
    """The same values under transformers' names. Written for this test alone."""
    found: Arrays = {}
    flat = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    norms["ln_final"] = "text_model.final_layer_norm"
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    inner["attn.out_proj"] = "self_attn.out_proj"
    for name, value in tensors.items():
        stem, _, part = name.rpartition(".")
        if name in flat:
            found[flat[name]] = value
        elif name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = value.T.copy()
        elif stem in norms:
            found[f"{norms[stem]}.{part}"] = value
        else:
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, _, rest = name.removeprefix("visual.").removeprefix("transformer.resblocks.").partition(".")
            block = f"{tower}.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                for each, third in zip("qkv", np.split(value, 3), strict=True):
                    found[f"{block}.self_attn.{each}_proj.{rest.removeprefix('attn.in_proj_')}"] = third.copy()
            else:
                own, _, part = rest.rpartition(".")
                found[f"{block}.{inner[own]}.{part}"] = value
    positions = np.arange(77)[None]
    return found | {"text_model.embeddings.position_ids": positions, "vision_model.embeddings.position_ids": positions}


def mindone(tensors: Arrays) -> Arrays:
    """The same values under MindONE's names. Written for this test alone."""
    found: Arrays = {}
    for name, value in tensors.items():
        if ".ln_" in name or name.startswith("ln_"):
            stem, _, part = name.rpartition(".")
            found[f"{stem}.{'gamma' if part == 'weight' else 'beta'}"] = value
        elif name == "token_embedding.weight":
            found["token_embedding.embedding_table"] = value
        else:
            found[name.replace(".attn.in_proj_", ".attn.in_proj.")] = value
    return found


def documents(activation: Activation = "gelu", heads: int = 2, width: int = 128) -> dict[str, Any]:
    """The configurations that Hugging Face's and open_clip's folders hold."""
    towers = {
        "vision_config": {"hidden_act": activation, "num_attention_heads": heads, "hidden_size": width},
        "text_config": {"hidden_act": activation, "num_attention_heads": 1},
    }
    openclip = {
        "model_cfg": {
            "embed_dim": 32,
            "quick_gelu": activation == "quick_gelu",
            "vision_cfg": {"width": width, "head_width": width // heads, "layers": 2, "patch_size": 16},
            "text_cfg": {"width": 64, "heads": 1, "layers": 2},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    return {"config.json": towers, "open_clip_config.json": openclip}


def write_documents(folder: Path, *names: str, **settings: Any) -> None:
    for name in names:
        (folder / name).write_text(json.dumps(documents(**settings)[name]))


def images_of(name: str) -> NDArray[np.float32]:
    side = {"small": 64, "wide_heads": 56}[name]
    return np.random.default_rng(1).standard_normal((3, 3, side, side)).astype(np.float32)


def assert_features(network: ClipNetwork, name: str, activation: Activation) -> None:
    for kind, found in (("image", network.images.features(images_of(name))), ("text", network.texts(CAPTIONS))):
        expected = GOLDENS[f"clip_{name}_{activation}_{kind}"]
        assert found.shape == expected.shape and found.dtype == np.float32
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max(), kind


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_features_equal_open_clips_and_transformers(activation: Activation, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    network = open_clip(tmp_path / "x.safetensors", activation)
    assert_features(network, "small", activation)
    other: Activation = "quick_gelu" if activation == "gelu" else "gelu"
    for kind in ("image", "text"):  # so that the comparison would notice the wrong activation
        right, wrong = (GOLDENS[f"clip_small_{each}_{kind}"] for each in (activation, other))
        assert np.abs(right - wrong).max() > 1000 * TOLERANCE * np.abs(right).max()
    assert network.logit_scale == pytest.approx(np.exp(TENSORS["logit_scale"]), rel=1e-6)
    assert (network.images.name, network.images.width, network.images.side) == ("clip-vit-128x2-16-64", 32, 64)


def test_heads_wider_than_64_channels_come_from_the_configuration(tmp_path: Path) -> None:
    tensors = tensors_of(WIDE_HEADS)
    save_file(hugging_face(tensors), tmp_path / "model.safetensors")
    write_documents(tmp_path, "config.json", activation="gelu", width=160)
    network = open_clip(tmp_path)
    assert network.images.name == "clip-vit-160x2-14-56"
    assert_features(network, "wide_heads", "gelu")


def openai_archive(folder: Path) -> Path:
    half = {name: value.astype(np.float16) for name, value in TENSORS.items()}
    torchscript(folder / "ViT.pt", half | {"input_resolution": np.array(64), "context_length": np.array(77)})
    return folder / "ViT.pt"


def as_halves() -> Arrays:
    return {name: value.astype(np.float16).astype(np.float32) for name, value in TENSORS.items()}


def test_openais_archive_has_quick_gelu_and_half_precision(tmp_path: Path) -> None:
    found = open_clip(openai_archive(tmp_path))
    save_file(as_halves(), tmp_path / "x.safetensors")
    same = open_clip(tmp_path / "x.safetensors", "quick_gelu")
    assert found.layout == "openai" and found.activation == ("quick_gelu", "quick_gelu")
    np.testing.assert_array_equal(found.images.features(images_of("small")), same.images.features(images_of("small")))
    np.testing.assert_array_equal(found.texts(CAPTIONS), same.texts(CAPTIONS))


def hpsv2(folder: Path) -> Path:
    state_dict(folder / "HPS_v2_compressed.pt", TENSORS, "state_dict")
    return folder / "HPS_v2_compressed.pt"


def from_modules(folder: Path) -> Path:
    state_dict(folder / "pytorch_model.bin", {f"module.{name}": value for name, value in TENSORS.items()})
    return folder / "pytorch_model.bin"


def custom_text(folder: Path) -> Path:
    kept = ("visual.", "logit_scale")
    named = {name if name.startswith(kept) else f"text.{name}": value for name, value in TENSORS.items()}
    save_file(named | {"text.attn_mask": np.zeros((77, 77), np.float32)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def mindone_file(folder: Path) -> Path:
    write_mindspore(folder / "clip.ckpt", mindone(TENSORS), {})
    return folder / "clip.ckpt"


def hugging_face_folder(folder: Path) -> Path:
    save_file(hugging_face(TENSORS), folder / "model.safetensors")
    write_documents(folder, "config.json")
    return folder


def hugging_face_shards(folder: Path) -> Path:
    tensors = hugging_face(TENSORS)
    first = dict(list(tensors.items())[::2])
    shards = {"a.safetensors": first, "b.safetensors": {n: t for n, t in tensors.items() if n not in first}}
    for name, part in shards.items():
        save_file(part, folder / name)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_documents(folder, "config.json")
    return folder


def hugging_face_pickle(folder: Path) -> Path:
    state_dict(folder / "pytorch_model.bin", hugging_face(TENSORS))
    write_documents(folder, "config.json")
    return folder


def open_clip_folder(folder: Path) -> Path:
    save_file(TENSORS, folder / "open_clip_model.safetensors")
    write_documents(folder, "open_clip_config.json")
    return folder


def both_layouts(folder: Path) -> Path:
    """As laion's folders have it."""
    open_clip_folder(folder)
    return hugging_face_folder(folder)


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, bool]] = {
    "state_dict": (hpsv2, "openai", False),
    "module": (from_modules, "openai", False),
    "custom_text": (custom_text, "openai", False),
    "mindone": (mindone_file, "mindone", False),
    "hugging_face": (hugging_face_folder, "hugging_face", True),
    "hugging_face_shards": (hugging_face_shards, "hugging_face", True),
    "hugging_face_pickle": (hugging_face_pickle, "hugging_face", True),
    "open_clip": (open_clip_folder, "openai", True),
    "both": (both_layouts, "hugging_face", True),
}  # writer, the layout that is recognised, whether the folder declares the activation


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    write, layout, declares = LAYOUTS[name]
    network = open_clip(write(tmp_path), None if declares else "gelu")
    assert network.layout == layout and network.activation == ("gelu", "gelu")
    for cell, prefix in ((network.images.cell, "visual."), (network.text_cell, "")):
        for parameter_name, parameter in cell.parameters_and_names():
            expected = TENSORS[f"{prefix}{parameter_name.removeprefix('encoder.')}"]
            np.testing.assert_array_equal(parameter.asnumpy(), expected)
    mean = (0.5,) * 3 if name == "open_clip" else clip_declarations.OPENAI_MEAN
    assert network.images.preprocess == ImageRecipe(
        64, mean, mean if name == "open_clip" else clip_declarations.OPENAI_STD
    )


def test_captions_are_cut_as_open_clip_does(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    network = open_clip(tmp_path / "x.safetensors", "gelu")
    np.testing.assert_array_equal(network.tokenizer(CAPTIONS), GOLDENS["clip_tokens"])
    assert (network.tokenizer(CAPTIONS)[3] != 0).all() and network.tokenizer(CAPTIONS)[3, -1] == 49407
    cut = network.cut_off(CAPTIONS)
    assert list(cut) == [CAPTIONS[3]] and cut[CAPTIONS[3]].split() == ["word"] * 15 + ["end"]


def test_features_are_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    network = open_clip(tmp_path / "x.safetensors", "gelu")
    images = np.random.default_rng(5).standard_normal((11, 3, 64, 64)).astype(np.float32)
    captions = [f"{'very ' * number}large" for number in range(11)]
    of_images, of_texts = network.images.features(images), network.texts(captions)
    for order in ([4], [10, 0, 4], list(range(10, -1, -1)), [4] * 9):
        np.testing.assert_array_equal(network.images.features(images[order]), of_images[order])
        np.testing.assert_array_equal(network.texts([captions[each] for each in order]), of_texts[order])


def test_the_activation_is_known_by_digest_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(ConfigError, match=r"x\.safetensors: does not declare its activation.*; give --clip-activation"):
        open_clip(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(clip_declarations, "OPENAI_DIGESTS", {digest: "OpenAI ViT"})
    network = open_clip(path)
    assert (network.activation[0], network.known_as, network.images.digest) == ("quick_gelu", "OpenAI ViT", digest)
    monkeypatch.setattr(clip_declarations, "OPENAI_DIGESTS", {})
    monkeypatch.setattr(clip_declarations, "OPENCLIP_DIGESTS", {digest: "OpenCLIP ViT"})
    assert open_clip(path).activation == ("gelu", "gelu")
    with pytest.raises(ConfigError, match="declares the activation gelu, not quick_gelu; leave the option out"):
        open_clip(path, "quick_gelu")


def test_mindones_recipe_and_the_key_of_a_cache(tmp_path: Path) -> None:
    network = open_clip(open_clip_folder(tmp_path))
    squashed = network.with_recipe(ImageRecipe(64, fit="squash"))
    assert squashed.images.preprocess == ImageRecipe(64, fit="squash")
    assert squashed.images.key != network.images.key and squashed.images.digest == network.images.digest
    assert network.images.key.endswith(" gelu")


Change = dict[str, Any]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"visual.layer1.0.conv1.weight": np.zeros(1)}, "holds a ResNet CLIP .RN50 or larger."),
        ({"visual.trunk.patch_embed.proj.weight": np.zeros(1)}, "has an image tower of timm"),
        ({"visual.attn_pool.query": np.zeros(1)}, "pools by attention"),
        ({"text.transformer.embeddings.word_embeddings.weight": np.zeros(1)}, "has a text tower of another model"),
        ({"logit_bias": np.zeros(1)}, "holds SigLIP weights"),
        ({"visual.proj": np.zeros((128, 48))}, "image features have width 48, text features 32"),
        ({"token_embedding.weight": np.zeros((1000, 64))}, "has another vocabulary than CLIP .1000 tokens"),
        ({"visual.positional_embedding": np.zeros((16, 128))}, "positional_embedding is 16x128, needed 10x128"),
        ({"transformer.resblocks.1.ln_1.bias": None}, "missing transformer.resblocks.1.ln_1.bias"),
        ({"visual.transformer.resblocks.0.ls_1.gamma": np.zeros(128)}, "unexpected visual.transformer.resblocks.0.ls"),
        ({"text_projection": None}, "text_projection is missing"),
        ({"visual.conv1.weight": np.zeros((128, 3, 16))}, "has no image tower with patches"),
        ({"visual.ln_post.bias": np.full(128, np.inf)}, "visual.ln_post.bias holds 128 inf of 128 values"),
        ({"visual.ln_post.bias": np.zeros(128, np.int32)}, "visual.ln_post.bias is int32"),
        ({"visual.transformer.resblocks.500.ln_1.bias": np.zeros(1)}, "501 blocks in a tower"),
    ],
)  # fmt: skip
def test_other_models_are_refused_in_one_line(change: Change, fault: str, tmp_path: Path) -> None:
    changed = {name: value for name, value in (TENSORS | change).items() if value is not None}
    kept = {name: value if value.dtype == np.int32 else value.astype(np.float32) for name, value in changed.items()}
    assert_refused(kept, fault, tmp_path)


def assert_refused(tensors: Arrays, fault: str, folder: Path) -> None:
    save_file(tensors, folder / "x.safetensors")
    with pytest.raises(ConfigError, match=fault) as caught:
        open_clip(folder / "x.safetensors", "gelu")
    assert str(caught.value).startswith(f"{folder / 'x.safetensors'}: ") and "\n" not in str(caught.value)


def test_text_towers_alone_are_refused(tmp_path: Path) -> None:
    text = {name: value for name, value in TENSORS.items() if not name.startswith("visual.")}
    fault = "has no image tower: Stable Diffusion needs the text tower alone; give the full CLIP model"
    assert_refused({f"cond_stage_model.model.{name}": value for name, value in text.items()}, fault, tmp_path)
    folded = {name: value for name, value in hugging_face(TENSORS).items() if name.startswith("text_model.")}
    assert_refused(folded, fault, tmp_path)
    assert_refused({name.removeprefix("text_model."): value for name, value in folded.items()}, fault, tmp_path)
    assert_refused(text, "no tensor has a name of CLIP's image tower", tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "fault"),
    [
        ("config.json", {"vision_config": {"hidden_act": "relu", "hidden_size": 128}}, "hidden_act is 'relu'"),
        ("config.json", {"vision_config": {"hidden_size": 768}}, "declares an image tower of width 768, but"),
        ("config.json", {"text_config": {"num_attention_heads": 7}}, "a tower of width 64 cannot have 7 heads"),
        ("config.json", {"vision_config": 3}, "vision_config"),
        ("preprocessor_config.json", {"resample": 2}, r"resample is 2; known is 3 \(bicubic\)"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean"),
        ("open_clip_config.json", {"preprocess_cfg": {"resize_mode": "longest"}}, "asks for bicubic longest"),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"width": 64}, "text_cfg": {}}}, "of width 64, but"),
    ],
)  # fmt: skip
def test_configurations_that_do_not_fit_are_refused(file: str, change: Change, fault: str, tmp_path: Path) -> None:
    (open_clip_folder if file.startswith("open") else hugging_face_folder)(tmp_path)
    (tmp_path / file).write_text(json.dumps(documents().get(file, {}) | change))
    with pytest.raises(ConfigError, match=fault) as caught:
        open_clip(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_preprocessor_that_squashes_is_followed(tmp_path: Path) -> None:
    hugging_face_folder(tmp_path)
    size = {"size": {"height": 64, "width": 64}, "image_mean": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(size))
    assert open_clip(tmp_path).images.preprocess == ImageRecipe(64, (0.5,) * 3, fit="squash")


def test_folders_and_pointers_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has none of model\.safetensors"):
        open_clip(tmp_path, "gelu")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match="a Git LFS pointer, not the weights"):
        open_clip(tmp_path, "gelu")
    with pytest.raises(ConfigError, match=r"nothing\.pt: cannot be read"):
        open_clip(tmp_path / "nothing.pt", "gelu")
