"""Files in the published layouts, made from the published listing of names, come out as the same tensors."""

import gc
import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from launcher.contract.config import ConfigError
from support.weights_files import MINDONE, MODEL, RECORD, SHAPES, Arrays, networks, random_tensors, write_diffusers
from vpred_train.config.model import ModelConfig
from vpred_train.weights.layouts.read_write import read_weights, write_weights
from vpred_train.weights.layouts.weight_source import open_source

RAW, EMA = random_tensors(0), random_tensors(1)
UNET = [name for name in SHAPES if name.startswith("model.diffusion_model.")]
BUFFERS = {
    "betas": np.zeros(1000, np.float32),
    "sqrt_recipm1_alphas_cumprod": np.zeros(1000, np.float32),
    "posterior_mean_coef2": np.zeros(1000, np.float32),
    "model_ema.num_updates": np.array(7),
    "model_ema.decay": np.array(0.9999, np.float32),
    "cond_stage_model.model.logit_scale": np.array(1.0, np.float32),
    "cond_stage_model.model.text_projection": np.zeros((8, 8), np.float32),
    "cond_stage_model.model.transformer.resblocks.23.ln_1.weight": np.zeros(8, np.float32),
}


def assert_same(found: Mapping[str, Any], expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def save_mindspore(path: Path, arrays: Arrays) -> None:
    mindspore.save_checkpoint(
        [{"name": name, "data": Parameter(Tensor(array))} for name, array in arrays.items()], str(path)
    )


def as_mindone(arrays: Arrays, prefix: str = "") -> Arrays:
    return {prefix + MINDONE[name]: array for name, array in arrays.items()}


def unet_of(arrays: Arrays) -> Arrays:
    return {name: arrays[name] for name in UNET}


def test_mindone_vanilla(tmp_path: Path) -> None:
    """The published files hold the two embeddings in half precision."""
    halves = {name: "embedding" in name for name in SHAPES}
    path = tmp_path / "sd.ckpt"
    stored = {name: array.astype(np.float16) if halves[name] else array for name, array in RAW.items()}
    save_mindspore(path, as_mindone(stored))
    assert sum(halves.values()) == 2
    assert_same(read_weights(path, model=MODEL), {name: array.astype(np.float32) for name, array in stored.items()})
    assert_same(read_weights(path, "raw", MODEL), {name: array.astype(np.float32) for name, array in stored.items()})
    with pytest.raises(ConfigError, match="holds unlabelled weights, not ema; ask for auto"):
        read_weights(path, "ema", MODEL)


@pytest.mark.parametrize("swapped", [True, False])
def test_train_resume(swapped: bool, tmp_path: Path) -> None:
    """MindONE writes it while the network holds the average; then the raw weights lie in the swap space."""
    path = tmp_path / "train_resume.ckpt"
    network = RAW | unet_of(EMA) if swapped else RAW
    swap = unet_of(RAW) if swapped else {name: np.zeros_like(RAW[name]) for name in UNET}
    moments = as_mindone(unet_of(RAW), "adam_m.") | as_mindone(unet_of(RAW), "adam_v.")
    scalars = {"global_step": np.array([3], np.int32), "scale_sense": np.ones(1, np.float32), "epoch_num": np.array(2)}
    averages = as_mindone(unet_of(EMA), "ema.") | as_mindone(swap, "swap.")
    save_mindspore(path, as_mindone(network) | averages | moments | scalars)
    assert_same(read_weights(path, "raw", MODEL), RAW)
    assert_same(read_weights(path, "ema", MODEL), RAW | unet_of(EMA))
    assert_same(read_weights(path, model=MODEL), RAW | unet_of(EMA))


def test_stability_with_averages_and_passengers(tmp_path: Path) -> None:
    path = tmp_path / "misleading.ckpt"
    averages = {"model_ema." + name.removeprefix("model.").replace(".", ""): EMA[name] for name in UNET}
    save_file(RAW | averages | BUFFERS, path)
    assert_same(read_weights(path, "raw", MODEL), RAW)
    assert_same(read_weights(path, "ema", MODEL), RAW | unet_of(EMA))
    assert_same(read_weights(path, "auto", MODEL), RAW | unet_of(EMA))
    averages.popitem()
    save_file(RAW | averages, path)
    with pytest.raises(ConfigError, match="1 missing"):
        read_weights(path, "ema", MODEL)


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("text_prefix", ["text_model.", ""])
def test_diffusers(older: bool, text_prefix: str, tmp_path: Path) -> None:
    folders = networks(RAW, older, text_prefix)
    folders["text_encoder"][f"{text_prefix}embeddings.position_ids"] = np.arange(77)
    write_diffusers(tmp_path / "sd", folders)
    assert_same(read_weights(tmp_path / "sd", model=MODEL), RAW)


def test_diffusers_prefers_full_precision_to_the_fp16_variant(tmp_path: Path) -> None:
    halves = {name: array.astype(np.float16) for name, array in RAW.items()}
    write_diffusers(tmp_path / "half", networks(halves), ".fp16")
    widened = {name: array.astype(np.float32) for name, array in halves.items()}
    assert_same(read_weights(tmp_path / "half", model=MODEL), widened)
    save_file(networks(RAW)["unet"], tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert_same(read_weights(tmp_path / "half", model=MODEL), widened | unet_of(RAW))


def test_diffusers_in_shards(tmp_path: Path) -> None:
    write_diffusers(tmp_path / "sd", networks(RAW))
    whole = tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(whole)
    whole.unlink()
    names = list(arrays)
    places = {}
    for number, part in enumerate((names[:400], names[400:]), start=1):
        shard = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: arrays[name] for name in part}, whole.with_name(shard))
        places |= dict.fromkeys(part, shard)
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(read_weights(tmp_path / "sd", model=MODEL), RAW)
    whole.with_name(f"{whole.name}.index.json").unlink()
    with pytest.raises(ConfigError, match=r"sd/unet: no diffusion_pytorch_model\.safetensors"):
        read_weights(tmp_path / "sd", model=MODEL)


@pytest.mark.parametrize("layout", ["mindone", "stability", "diffusers"])
def test_written_files(layout: str, tmp_path: Path) -> None:
    """The record tells the model and the kind of weights; names are the listing's; the right libraries read it."""
    path = tmp_path / "written.ckpt"
    write_weights(path, RAW, layout, RECORD)
    assert [each.name for each in tmp_path.iterdir()] == ["written.ckpt"]
    source = open_source(path)
    assert (source.layout, source.record) == (layout, RECORD)
    assert_same(read_weights(path), RAW)
    assert_same(read_weights(path, "ema"), RAW)
    with pytest.raises(ConfigError, match="holds ema weights, not raw"):
        read_weights(path, "raw")
    if layout == "mindone":
        loaded = mindspore.load_checkpoint(str(path))
        assert json.loads(loaded.pop("parameterization"))["resolution"] == 768
        assert_same({name: parameter.asnumpy() for name, parameter in loaded.items()}, as_mindone(RAW))
    elif layout == "stability":
        assert_same(load_file(path), RAW)
    else:
        for folder, arrays in networks(RAW).items():
            stem = "model" if folder == "text_encoder" else "diffusion_pytorch_model"
            assert_same(load_file(path / folder / f"{stem}.safetensors"), arrays)


def test_documents_of_a_diffusers_folder(tmp_path: Path) -> None:
    def document(name: str) -> dict[str, Any]:
        return json.loads((tmp_path / "sd" / name).read_text())

    write_weights(tmp_path / "sd", RAW, "diffusers", RECORD)
    scheduler = document("scheduler/scheduler_config.json")
    assert scheduler["prediction_type"] == "v_prediction"
    assert (scheduler["rescale_betas_zero_snr"], scheduler["timestep_spacing"]) == (True, "trailing")
    assert document("unet/config.json")["attention_head_dim"] == [1, 2, 4, 4]
    assert document("unet/config.json")["sample_size"] == 96
    assert document("vae/config.json")["scaling_factor"] == 0.18215
    assert document("text_encoder/config.json")["num_hidden_layers"] == 23
    vocabulary = document("tokenizer/vocab.json")
    assert (len(vocabulary), vocabulary["<|startoftext|>"], vocabulary["!"]) == (49408, 49406, 0)
    plain = RECORD.model_copy(update={"diffusion": RECORD.diffusion.model_copy(update={"zero_terminal_snr": False})})
    write_weights(tmp_path / "plain", RAW, "diffusers", plain)
    scheduler = json.loads((tmp_path / "plain" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["rescale_betas_zero_snr"], scheduler["timestep_spacing"]) == (False, "leading")


def without(*names: str) -> Arrays:
    return {name: array for name, array in RAW.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (
            lambda: without("first_stage_model.quant_conv.bias"),
            ["1 missing", "missing first_stage_model.quant_conv.bias"],
        ),
        (lambda: RAW | {"surplus": np.zeros(1, np.float32)}, ["1 unexpected", "unexpected surplus"]),
        (
            lambda: RAW | {"first_stage_model.quant_conv.bias": np.zeros(9, np.float32)},
            ["1 wrongly shaped", "first_stage_model.quant_conv.bias is 9, needed 8"],
        ),
        (lambda: unet_of(RAW), ["528 missing", "nearest layout is stability (686 of 1214 tensors)", " ...;"]),
    ],
)
def test_tensors_that_do_not_fit(change: Callable[[], Arrays], faults: list[str], tmp_path: Path) -> None:
    save_file(change(), tmp_path / "x")
    with pytest.raises(ConfigError) as caught:
        read_weights(tmp_path / "x", model=MODEL)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("missing cond_stage_model") <= 10
    for fault in faults:
        assert fault in str(caught.value)


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({KEY: zeros(320, 768)}, "SD1"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": zeros(768)}, "SD1"),
        ({KEY: zeros(640, 2048)}, "SDXL"),
        ({"conditioner.embedders.0.transformer.x": zeros(1)}, "SDXL"),
        ({"model.diffusion_model.label_emb.0.0.weight": zeros(4, 4)}, "unCLIP"),
        ({"lora_unet_down_blocks_0_attentions_0.lora_up.weight": zeros(4, 4)}, "LoRA"),
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": zeros(4, 4)}, "LoRA"),
        ({"model.diffusion_model.x.to_q.lora_down.weight": zeros(4, 4)}, "LoRA"),
        ({"control_model.zero_convs.0.0.weight": zeros(4, 4, 1, 1)}, "ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": zeros(4, 4, 3, 3)}, "ControlNet"),
        ({FIRST: zeros(320, 9, 3, 3)}, "an inpainting model"),
        ({FIRST: zeros(320, 5, 3, 3)}, "an SD2 depth model"),
    ],
)
def test_other_models_are_named(tensors: Arrays, kind: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=f"holds {kind}"):
        read_weights(tmp_path / "x.safetensors")


def test_other_things_are_named(tmp_path: Path) -> None:
    save_file({"a": zeros(1)}, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"no tensor has an SD 2\.x name"):
        read_weights(tmp_path / "x")
    save_file({"conv_in.weight": zeros(1)}, tmp_path / "x")
    with pytest.raises(ConfigError, match="one network of a diffusers folder"):
        read_weights(tmp_path / "x")
    (tmp_path / "xl" / "text_encoder_2").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds SDXL weights"):
        read_weights(tmp_path / "xl")
    save_file(RAW, tmp_path / "x", {"parameterization": '{"format": "vpred-parameterization-9"}'})
    with pytest.raises(ConfigError, match="parameterization record: "):
        read_weights(tmp_path / "x")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", ["mindone", "stability", "diffusers"])
def test_memory_stays_near_the_size_of_the_weights(layout: str, dtype: type, tmp_path: Path) -> None:
    stored = {name: array.astype(dtype) for name, array in RAW.items()}
    path = tmp_path / "x"
    if layout == "diffusers":
        write_diffusers(path, networks(stored))
    elif layout == "stability":
        save_file(stored, path)
    else:
        path = tmp_path / "x.ckpt"
        save_mindspore(path, as_mindone(stored))
    size = 4 * sum(array.size for array in RAW.values())
    read_weights(path, model=MODEL)  # what is computed once
    gc.collect()  # so that the collector runs at the same places whatever ran before
    tracemalloc.start()
    loaded = dict(read_weights(path, model=MODEL))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(loaded) == 1214
    assert size < peak < 1.3 * size


class Failing(dict[str, Any]):
    """The disk is full, in effect, after half of the tensors."""

    reads = 0

    def __getitem__(self, name: str) -> Any:
        self.reads += 1
        if self.reads > 600:
            raise OSError(28, "No space left on device")
        return super().__getitem__(name)


@pytest.mark.parametrize("layout", ["mindone", "stability", "diffusers"])
def test_a_write_that_fails_leaves_nothing(layout: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
        write_weights(tmp_path / "written.ckpt", Failing(RAW), layout, RECORD)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path: Path) -> None:
    def refused(tensors: Arrays, layout: str, record: Any = RECORD) -> str:
        with pytest.raises(ConfigError) as caught:
            write_weights(tmp_path / "w.ckpt", tensors, layout, record)
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    name = "first_stage_model.quant_conv.bias"
    assert f"1 tensors do not fit the model: missing {name}" in refused(without(name), "stability")
    assert f"unexpected x.{name}" in refused(RAW | {f"x.{name}": RAW[name]}, "stability")
    assert f"{name} is float32 9, needed float32 8" in refused(RAW | {name: zeros(9)}, "mindone")
    assert f"{name} is float16 8" in refused(RAW | {name: zeros(8).astype(np.float16)}, "diffusers")
    assert "known are mindone, stability, diffusers" in refused(RAW, "torch")
    with pytest.raises(ConfigError, match=r"w: MindSpore loads only names that end with \.ckpt"):
        write_weights(tmp_path / "w", RAW, "mindone", RECORD)
    pixels = MODEL.model_copy(update={"vae": None})
    in_pixels = {each: array for each, array in RAW.items() if not each.startswith("first_stage_model.")}
    record = RECORD.model_copy(update={"model": pixels})
    assert "needs a VAE" in refused(in_pixels, "diffusers", record)
    write_weights(tmp_path / "w", RAW, "diffusers", RECORD)
    with pytest.raises(ConfigError, match="exists already; give a new folder"):
        write_weights(tmp_path / "w", RAW, "diffusers", RECORD)


def test_sd2_is_what_is_meant_without_a_record(tmp_path: Path) -> None:
    save_file(RAW, tmp_path / "narrow")
    # All but the seven whose size is the number of colours or of latent channels.
    with pytest.raises(ConfigError, match="1207 wrongly shaped") as caught:
        read_weights(tmp_path / "narrow")
    assert "is 8x4x3x3, needed 320x4x3x3" in str(caught.value)
    assert ModelConfig() != MODEL
