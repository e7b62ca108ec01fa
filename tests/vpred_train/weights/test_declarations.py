"""What weights without a record tell: marks beside the tensors, and the JSON of a diffusers folder."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.contract.config import ConfigError
from support.weights_files import MODEL, SHAPES, TINY, TINY_RECORD, random_tensors, write_sparse, write_tiny
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig
from vpred_train.diffusion.schedule import alphas_cumprod
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.stored_tensor import StoredTensor
from vpred_train.weights.inspection import inspection, lines_of
from vpred_train.weights.layouts.diffusers_folder import text_encoder_document, unet_document, vae_document
from vpred_train.weights.layouts.read_write import weights_of
from vpred_train.weights.layouts.weight_source import Source, open_source
from vpred_train.weights.record_lookup import Told, needed_record, record_for

SCHEDULER = {
    "prediction_type": "v_prediction", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
}  # fmt: skip
EMPTY = np.empty(0, np.float32)


def marked(*names: str) -> Source:
    path = Path("w.safetensors")
    tensors = {name: StoredTensor(path, "float32", (0,), ((0, 0),)) for name in names}
    return Source(path, "stability", "safetensors", tensors, None)


def told(kind: Any, zero: bool = False) -> Told:
    return Told(kind, zero_terminal_snr=zero, resolution=512)


def test_marks_are_taken_where_the_user_says_nothing() -> None:
    record = needed_record(marked("v_pred", "ztsnr"), "auto", None)
    assert record.diffusion == DiffusionConfig(prediction_type="v", zero_terminal_snr=True)
    assert (record.resolution, record.weights, record.model) == (768, "raw", ModelConfig())
    assert needed_record(marked("v_pred"), "auto", None).diffusion == DiffusionConfig(prediction_type="v")
    assert record_for(marked("ztsnr"), "auto", None) is None  # tells no prediction type
    assert record_for(marked(), "auto", None) is None


def test_marks_and_what_the_user_says() -> None:
    record = needed_record(marked("ztsnr"), "auto", told("v"))
    assert (record.diffusion.zero_terminal_snr, record.resolution) == (True, 512)
    assert needed_record(marked("v_pred"), "auto", told("v", zero=True)).diffusion.zero_terminal_snr
    with pytest.raises(ConfigError, match="tells v-prediction with zero terminal SNR, but --prediction-type tells eps"):
        record_for(marked("v_pred", "ztsnr"), "auto", told("eps"))
    with pytest.raises(ConfigError, match=r"w\.safetensors: ztsnr: prediction_type is 'eps' with zero_terminal_snr"):
        record_for(marked("ztsnr"), "auto", told("eps"))
    with pytest.raises(ConfigError, match="command line: prediction_type is 'eps' with zero_terminal_snr"):
        record_for(marked(), "auto", told("eps", zero=True))


def test_marks_and_other_passengers_are_known_to_be_no_weights(tmp_path: Path) -> None:
    passengers = {
        "v_pred": EMPTY, "ztsnr": EMPTY, "denoiser.sigmas": np.ones(1000, np.float32),
        "model_ema.decay": np.array(0.9999, np.float32), "model_ema.num_updates": np.array(7),
        "first_stage_model.model_ema.decay": np.array(0.9999, np.float32),
        "cond_stage_model.model.transformer.text_model.embeddings.position_ids": np.arange(77)[None],
        "embedding_manager.x": np.ones(3, np.float32),
    }  # fmt: skip
    save_file(random_tensors() | passengers, tmp_path / "x.safetensors")
    source = open_source(tmp_path / "x.safetensors")
    assert len(weights_of(source, model=MODEL)) == len(SHAPES)
    report = inspection(source)
    assert report["unused"] == len(passengers)
    assert "1207 wrongly shaped" in report["fault"]  # the narrow model is no SD2


def test_a_scale_of_the_latents_is_taken(tmp_path: Path) -> None:
    """ldm's number beside the weights; a diffusers folder's VAE tells it in its config.json."""
    save_file({"scale_factor": np.array(0.13, np.float32), "v_pred": EMPTY}, tmp_path / "x")
    source = Source(tmp_path / "x", "stability", "safetensors", open_contents(tmp_path / "x").tensors, None)
    record = needed_record(source, "auto", None)
    assert record.model.vae is not None
    assert record.model.vae.scale == pytest.approx(0.13, rel=1e-6)
    record = needed_record(folder_of(tmp_path / "folder", vae={"scaling_factor": 0.2}), "auto", None)
    assert record.model.vae is not None
    assert record.model.vae.scale == 0.2
    unchanged = needed_record(folder_of(tmp_path / "same", vae={"scaling_factor": 0.18215}), "auto", None)
    assert unchanged.model == ModelConfig()


def folder_of(path: Path, **documents: Any) -> Source:
    """A diffusers folder as far as its JSON goes; a text stands for itself."""
    names = {"scheduler": "scheduler/scheduler_config.json"}
    for name, document in ({"scheduler": SCHEDULER} | documents).items():
        target = path / names.get(name, f"{name}/config.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(document if isinstance(document, str) else json.dumps(document))
    return Source(path, "diffusers", "safetensors", {}, None)


@pytest.mark.parametrize(
    ("size", "resolution"), [(64, 512), (None, 768), ([96, 64], 768), ([32], 256), ([64, 96], 768)]
)
def test_sample_sizes(size: Any, resolution: int, tmp_path: Path) -> None:
    record = needed_record(folder_of(tmp_path, unet={"sample_size": size}), "auto", None)
    assert record.resolution == resolution


def betas(zero_terminal_snr: bool) -> list[float]:
    cumulative = alphas_cumprod(DiffusionConfig(zero_terminal_snr=zero_terminal_snr))
    return [float(np.float32(1 - high / low)) for low, high in zip([1.0, *cumulative], cumulative, strict=False)]


def test_trained_betas_are_compared_with_the_schedule(tmp_path: Path) -> None:
    for number, zero in enumerate((False, True)):
        source = folder_of(tmp_path / str(number), scheduler=SCHEDULER | {"trained_betas": betas(zero)})
        assert needed_record(source, "auto", None).diffusion.zero_terminal_snr is zero
    for found in (betas(False)[:-1], [2 * beta for beta in betas(False)], []):
        source = folder_of(tmp_path / "other", scheduler=SCHEDULER | {"trained_betas": found})
        with pytest.raises(
            ConfigError, match=rf"scheduler_config.json: trained_betas: found {len(found)} that are not"
        ):
            record_for(source, "auto", None)


def test_the_documents_of_sd2_are_taken(tmp_path: Path) -> None:
    """As published: with keys that nobody reads here, and none of ours."""
    more = {"upcast_attention": True, "num_class_embeds": None, "center_input_sample": False, "downsample_padding": 1}
    source = folder_of(
        tmp_path,
        unet=unet_document(ModelConfig().unet, 96) | more | {"mid_block_scale_factor": 1},
        vae=vae_document(ModelConfig().vae or pytest.fail(), 768) | {"force_upcast": True, "latents_mean": None},
        text_encoder=text_encoder_document(ModelConfig().text_encoder) | {"bos_token_id": 0, "eos_token_id": 2},
        scheduler=SCHEDULER | {"_class_name": "DDIMScheduler", "trained_betas": None, "timestep_spacing": "leading"},
    )
    record = needed_record(source, "auto", None)
    assert (record.model, record.diffusion, record.resolution) == (ModelConfig(), DiffusionConfig(), 768)


def test_a_folder_may_hold_the_model_that_the_recipe_says(tmp_path: Path) -> None:
    source = folder_of(tmp_path, unet=unet_document(TINY.unet, 8), vae={"scaling_factor": 0.5})
    record = record_for(source, "auto", None, TINY)
    assert record is not None
    assert record.model.unet == TINY.unet
    with pytest.raises(
        ConfigError, match=r"unet/config.json: attention_head_dim: found \[1, 2\] \(the model has \[5, "
    ):
        record_for(source, "auto", None)


@pytest.mark.parametrize(
    ("documents", "fault"),
    [
        ({"unet": {"sample_size": "96"}}, r"unet/config.json: sample_size.*found '96'"),
        ({"unet": {"sample_size": 0}}, r"unet/config.json: sample_size.*found 0 .*greater than 0"),
        ({"unet": {"sample_size": []}}, r"sample_size"),
        ({"unet": {"sample_size": {"a": 1}}}, r"sample_size"),
        ({"unet": {"attention_head_dim": 8}}, r"attention_head_dim: found 8 \(the model has \[5, 10, 20, 20\]\)"),
        ({"unet": {"act_fn": "gelu"}}, r"unet/config.json: act_fn: found 'gelu' \(the model has 'silu'\)"),
        ({"unet": {"center_input_sample": True}}, "center_input_sample: found true"),
        ({"unet": {"mid_block_scale_factor": 0.5}}, "mid_block_scale_factor: found 0.5"),
        ({"vae": {"scaling_factor": 0}}, r"vae/config.json: scaling_factor: found 0 .*greater than 0"),
        ({"vae": {"scaling_factor": "0.2"}}, "scaling_factor: found '0.2'"),
        ({"vae": '{"scaling_factor": NaN}'}, r"scaling_factor: found NaN .*finite number"),
        ({"vae": {"shift_factor": 0.1}}, "vae/config.json: shift_factor: found 0.1"),
        ({"vae": {"latents_mean": [0, 0, 0, 0]}}, "vae/config.json: latents_mean: found"),
        ({"text_encoder": {"hidden_act": "quick_gelu"}}, "text_encoder/config.json: hidden_act: found 'quick_gelu'"),
        ({"text_encoder": {"num_hidden_layers": 24}}, r"num_hidden_layers: found 24 \(the model has 23\)"),
        ({"text_encoder": {"num_attention_heads": 8}}, r"num_attention_heads: found 8 \(the model has 16\)"),
        ({"scheduler": SCHEDULER | {"prediction_type": "flow"}}, r"prediction_type: found 'flow' \(known: epsilon"),
        ({"scheduler": SCHEDULER | {"prediction_type": 3}}, "prediction_type: found 3"),
        ({"scheduler": SCHEDULER | {"beta_schedule": "linear"}}, "beta_schedule: found 'linear'"),
        ({"scheduler": {"prediction_type": "epsilon"}}, "beta_schedule: found None"),
        ({"scheduler": SCHEDULER | {"rescale_betas_zero_snr": "no"}}, "rescale_betas_zero_snr: found 'no'"),
        ({"scheduler": SCHEDULER | {"beta_end": None}}, "beta_end: found null"),
        ({"scheduler": SCHEDULER | {"num_train_timesteps": 10**12}}, "num_train_timesteps: found 1000000000000"),
        ({"scheduler": SCHEDULER | {"trained_betas": "x"}}, "trained_betas: found 'x'"),
        ({"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}, "flow matching"),
        ({"scheduler": "[1]"}, r"scheduler_config.json: found \[1\]"),
        ({"scheduler": "null"}, "scheduler_config.json: found null"),
        ({"scheduler": '{"prediction_type": "epsilon", "prediction_type": "v_prediction"}'}, "is there twice"),
        ({"scheduler": "[" * 100_000}, "too many brackets within brackets"),
        ({"scheduler": '{"a": 1' + "0" * 5000 + "}"}, "Exceeds the limit"),
        ({"scheduler": ""}, "is no JSON"),
    ],
)  # fmt: skip
def test_faults_are_one_line(documents: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        record_for(folder_of(tmp_path, **documents), "auto", None)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what to do about it


def test_documents_that_are_no_text_or_no_files(tmp_path: Path) -> None:
    source = folder_of(tmp_path, unet="{}")
    path = tmp_path / "unet" / "config.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match=r"unet/config.json: is no JSON \('utf-8' codec"):
        record_for(source, "auto", None)
    path.write_bytes(b"\xef\xbb\xbf" + b'{"sample_size": 64}')  # Notepad's mark
    assert needed_record(source, "auto", None).resolution == 512
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"unet/config.json: is a device, not a regular file; give a file"):
        record_for(source, "auto", None)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"unet/config.json: is a pipe, not a regular file"):
        record_for(source, "auto", None)


def test_inspect_tells_of_the_marks(tmp_path: Path) -> None:
    write_sparse(tmp_path / "sd.safetensors", "F16", 2, ("v_pred", "ztsnr"))
    lines = lines_of(inspection(open_source(tmp_path / "sd.safetensors"), values=False))
    assert "   record: none, but declares v-prediction, zero terminal SNR" in lines
    assert lines[-1] == "   fits the model; its values were not read"


def test_inspect_tells_of_types_that_nothing_reads(tmp_path: Path) -> None:
    for dtype in ("F8_E4M3", "I8"):
        write_sparse(tmp_path / "sd.safetensors", dtype, 1)
        source = open_source(tmp_path / "sd.safetensors")
        (line,) = lines_of(inspection(source))[-1:]
        found = {"I8": "int8"}.get(dtype, dtype)
        assert (
            f"1214 needed tensors are {found}, such as " in line and "give a file with floating-point weights" in line
        )
        with pytest.raises(ConfigError, match=f"1214 needed tensors are {found}"):
            weights_of(source)  # as convert, sampling and training do


def test_inspect_tells_what_a_folders_documents_refuse(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", "diffusers")
    for name in ("parameterization.json", "scheduler/scheduler_config.json"):
        (tmp_path / "tiny" / name).unlink()
    source = open_source(tmp_path / "tiny", TINY)
    assert record_for(source, "auto", None, TINY) is None
    (tmp_path / "tiny" / "text_encoder" / "config.json").write_text('{"hidden_act": "quick_gelu"}')
    with pytest.raises(ConfigError, match="hidden_act: found 'quick_gelu'"):
        record_for(source, "auto", None, TINY)


def test_a_record_and_what_contradicts_it(tmp_path: Path) -> None:
    """Marks beside the record's tensors, and documents of a folder of ours that somebody has edited."""
    eps = TINY_RECORD.model_copy(update={"diffusion": DiffusionConfig(prediction_type="eps")})
    for marks, record, fault in (
        (("v_pred",), TINY_RECORD, ""),
        (
            ("v_pred",),
            eps,
            "w.safetensors: v_pred: prediction_type is 'v', but .* record beside it says 'eps'; correct or",
        ),
        (("v_pred", "ztsnr"), TINY_RECORD, "v_pred and ztsnr: zero_terminal_snr is True, but .* says False"),
    ):
        source = replace(marked(*marks), record=record)
        if not fault:
            assert record_for(source, "auto", None) == record
            continue
        with pytest.raises(ConfigError, match=fault):
            record_for(source, "auto", None)
    write_tiny(tmp_path / "tiny", "diffusers")
    assert record_for(open_source(tmp_path / "tiny"), "auto", None) == TINY_RECORD
    for name, key, value, fault in (
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            "epsilon",
            "scheduler_config.json: prediction_type is 'eps'",
        ),
        ("scheduler/scheduler_config.json", "beta_end", 0.012, "beta_end is 0.012, but .* says 0.013"),
        ("vae/config.json", "scaling_factor", 0.5, "its latents' scale is 0.5, but .* says 0.18215"),
        ("text_encoder/config.json", "hidden_act", "quick_gelu", "hidden_act: found 'quick_gelu'"),
    ):
        path = tmp_path / "tiny" / name
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {key: value}))
        with pytest.raises(ConfigError, match=fault):
            record_for(open_source(tmp_path / "tiny"), "auto", None)
        path.write_text(before)
