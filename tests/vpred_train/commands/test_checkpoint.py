"""vpred-ckpt consolidate --format: the trained tensors with the frozen ones, refused where these are not to be had; and
convert: tensors of other software as a step."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor
from numpy.typing import NDArray
from safetensors.numpy import save_file

from checkpoints_mgr import Checkpoint, CheckpointManager, State
from launcher.contract.config import dump_yaml
from support.weights_files import TINY, write_tiny
from vpred_train.commands.checkpoint import main
from vpred_train.commands.weights import main as weights_main
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import LoraConfig, PretrainedConfig
from vpred_train.weights.layouts.read_write import read_weights
from vpred_train.weights.layouts.tensor_shapes import UNET, stability_shapes
from vpred_train.weights.lora.factors import attention_targets
from vpred_train.weights.lora.files import open_lora, read_factors
from vpred_train.weights.pretrained import pinned

Arrays = dict[str, NDArray[np.float32]]
Save = Callable[..., tuple[Arrays, Arrays]]
Run = Callable[..., tuple[int, str]]


def random(shapes: dict[str, tuple[int, ...]], seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def save(train_config: TrainConfig, tmp_path: Path) -> Save:
    """save(config changes): a checkpoint of a run that trained the UNet alone; (raw, average) under Stability's."""

    def of(record: bool = True, **changes: Any) -> tuple[Arrays, Arrays]:
        config = train_config.model_copy(update={"model": TINY, "trainable": ("unet",), **changes})
        shapes = {name: shape for name, shape in stability_shapes(TINY).items() if name.startswith(UNET)}
        if config.lora is not None:
            adapted = attention_targets(TINY, ("unet",)).items()
            shapes = {f"{target.weight.removesuffix('weight')}lora.down": (2, each[1]) for target, each in adapted}
            shapes |= {f"{target.weight.removesuffix('weight')}lora.up": (each[0], 2) for target, each in adapted}
        both = random(shapes, 1), random(shapes, 2)
        whole = {
            f"{component}/unet.{name.removeprefix(UNET)}": tensor
            for component, tensors in zip(("model", "ema_constant"), both, strict=True)
            for name, tensor in tensors.items()
        }
        records = {"train": dump_yaml(config)} if record else {}
        CheckpointManager(tmp_path / "root").save(7, State(whole, {"samples_seen": 28}, record=records))
        return both

    return of


@pytest.fixture
def pretrained(tmp_path: Path) -> PretrainedConfig:
    write_tiny(tmp_path / "base.safetensors", "stability")
    return pinned(PretrainedConfig(path=tmp_path / "base.safetensors"))


def run(*arguments: Any) -> int:
    """vpred-ckpt in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def consolidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def with_output(*arguments: Any) -> tuple[int, str]:
        code = run("consolidate", tmp_path / "root", *arguments)
        out, err = capsys.readouterr()
        return code, out + err

    return with_output


@pytest.mark.parametrize(
    ("layout", "name"), [("mindone", "a.ckpt"), ("stability", "a.safetensors"), ("diffusers", "a")]
)
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_trained_tensors_come_from_the_step_and_others_from_the_start(
    save: Save, pretrained: PretrainedConfig, consolidate: Run, tmp_path: Path, layout: str, name: str, weights: str
) -> None:
    trained = save(pretrained=pretrained)[weights == "ema"]
    code, told = consolidate(tmp_path / name, "--format", layout, "--weights", weights)
    assert code == 0, told
    kind = "constant" if weights == "ema" else "raw"
    assert f"{layout} layout, {kind} weights of {tmp_path / 'root' / 'step_0000000007'}" in told
    expected = dict(read_weights(pretrained.path)) | trained
    found = read_weights(tmp_path / name)
    assert set(found) == set(expected)
    for each, tensor in expected.items():
        np.testing.assert_array_equal(found[each], tensor, strict=True)


def test_two_layouts_of_one_step_are_equal_and_say_what_they_are(
    save: Save, pretrained: PretrainedConfig, consolidate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(pretrained=pretrained)
    for layout, name in (("mindone", "a.ckpt"), ("diffusers", "folder")):
        assert consolidate(tmp_path / name, "--format", layout)[0] == 0
    with pytest.raises(SystemExit, match="0"):
        weights_main(["compare", str(tmp_path / "a.ckpt"), str(tmp_path / "folder")])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        weights_main(["inspect", "--json", str(tmp_path / "a.ckpt")])
    record = json.loads(capsys.readouterr().out)["record"]
    assert (record["weights"], record["average"], record["samples_seen"]) == ("ema", "constant", 28)
    assert record["diffusion"]["prediction_type"] == "v"


def test_a_base_that_moved_and_one_that_is_another(
    save: Save, pretrained: PretrainedConfig, consolidate: Run, tmp_path: Path
) -> None:
    save(pretrained=pretrained)
    moved = pretrained.path.rename(tmp_path / "moved.safetensors")
    arguments = (tmp_path / "a.ckpt", "--format", "mindone")
    code, told = consolidate(*arguments)
    assert code == 2
    assert "base.safetensors: no such file or folder" in told
    assert told.endswith("not vae and text_encoder; give the place where it is now with --base\n")
    assert consolidate(*arguments, "--base", moved)[0] == 0
    (tmp_path / "a.ckpt").unlink()
    with moved.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    code, told = consolidate(*arguments, "--base", moved)
    assert (code, "give that file" in told) == (2, True)
    assert not (tmp_path / "a.ckpt").exists()


def test_of_lora_the_factors_alone(save: Save, pretrained: PretrainedConfig, consolidate: Run, tmp_path: Path) -> None:
    raw, _ = save(lora=LoraConfig(rank=2, alpha=2.0), pretrained=pretrained)
    pretrained.path.unlink()  # not needed
    code, told = consolidate(tmp_path / "lora.safetensors", "--format", "stability", "--weights", "raw")
    assert code == 0, told
    factors = read_factors(open_lora(tmp_path / "lora.safetensors"))
    assert len(factors) == len(raw) // 2 > 0
    for target, each in factors.items():
        stem = target.weight.removesuffix("weight")
        np.testing.assert_array_equal(each.down, raw[f"{stem}lora.down"])
        np.testing.assert_array_equal(each.up, raw[f"{stem}lora.up"])


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("a.ckpt", "--format", "mindone", "--weights", "power_9"), "found 'power_9'; the checkpoint has raw, ema, "),
        (("a.bin", "--format", "mindone"), "MindSpore loads only names that end with .ckpt"),
        (("a.ckpt", "--format", "mindone", "--component", "model"), "--component: goes with --format safetensors"),
        (("a.safetensors", "--weights", "ema"), "--weights and --base: go with another --format"),
        (("root", "--format", "diffusers"), "root exists already"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_met_is_one_line(
    save: Save,
    pretrained: PretrainedConfig,
    consolidate: Run,
    tmp_path: Path,
    arguments: tuple[str, ...],
    fault: str,
) -> None:
    save(pretrained=pretrained)
    before = sorted(path.name for path in tmp_path.iterdir())
    code, told = consolidate(tmp_path / arguments[0], *arguments[1:])
    assert (code, told.count("\n")) == (2, 1)
    assert fault in told
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_step_that_tells_no_recipe_has_no_layout(
    save: Save, pretrained: PretrainedConfig, consolidate: Run, tmp_path: Path
) -> None:
    save(record=False, pretrained=pretrained)
    code, told = consolidate(tmp_path / "a.ckpt", "--format", "mindone")
    assert (code, "tells no recipe" in told) == (2, True)
    assert consolidate(tmp_path / "a.safetensors")[0] == 0


@pytest.mark.parametrize(("layout", "name"), [("mindone", "a.ckpt"), ("diffusers", "a")])
def test_a_flipped_bit_leaves_nothing(
    save: Save, pretrained: PretrainedConfig, consolidate: Run, tmp_path: Path, layout: str, name: str
) -> None:
    save(pretrained=pretrained)
    (victim,) = (tmp_path / "root" / "step_0000000007").glob("ema_constant-*")
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    code, told = consolidate(tmp_path / name, "--format", layout)
    assert (code, "digest mismatch" in told) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert consolidate(tmp_path / name, "--format", layout, "--weights", "raw")[0] == 0


def test_one_tensor_is_in_memory_at_a_time(
    save: Save, pretrained: PretrainedConfig, consolidate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none is read twice."""
    save(pretrained=pretrained)
    held: list[weakref.ref[NDArray[Any]]] = []
    most = []
    real = Checkpoint.read

    def counted(checkpoint: Checkpoint, component: str, name: str) -> NDArray[Any]:
        most.append(
            sum(each() is not None for each in held)
        )  # the writer may still hold the last one while it asks for the next
        tensor = real(checkpoint, component, name)
        held.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", counted)
    assert consolidate(tmp_path / "a.ckpt", "--format", "mindone")[0] == 0
    assert len(most) == sum(name.startswith(UNET) for name in stability_shapes(TINY))
    assert max(most) <= 1


@pytest.mark.parametrize("container", ["ckpt", "safetensors", "folder"])
def test_files_of_other_software_become_a_step(container: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.normal(size=(3, 5)).astype(np.float32), "b": np.arange(4, dtype=np.int32)}
    source = tmp_path / f"weights.{container}"
    if container == "ckpt":
        mindspore.save_checkpoint([{"name": name, "data": Tensor(each)} for name, each in tensors.items()], str(source))
    elif container == "safetensors":
        save_file(tensors, source)
    else:
        source.mkdir()
        for name, each in tensors.items():
            save_file({name: each}, source / f"{name}.safetensors")
    (tmp_path / "root").mkdir()  # as one that found the disk full has left it
    assert run("convert", source, tmp_path / "root", "--step", 7) == 0
    checkpoint = Checkpoint.open(tmp_path / "root" / "step_0000000007")
    assert sorted(checkpoint.names("model")) == sorted(tensors)
    for name, each in tensors.items():
        found = checkpoint.read("model", name)
        assert found.dtype == each.dtype
        np.testing.assert_array_equal(found, each)
    assert run("verify", tmp_path / "root") == 0
    assert run("convert", source, tmp_path / "root") == 2


def test_a_folder_with_a_tensor_in_two_files_is_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "both").mkdir()
    for name in ("one", "two"):
        save_file({"w": np.zeros(2, np.float32)}, tmp_path / "both" / f"{name}.safetensors")
    assert run("convert", tmp_path / "both", tmp_path / "root") == 2
    assert "two.safetensors: w is in another file" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def mindformers_checkpoint(folder: Path) -> dict[str, NDArray[Any]]:
    """As two ranks write one (metadata.py, `save_metadata`): a replicated tensor, one cut by rows, one by columns."""
    tensors = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "rows": np.arange(20, dtype=np.float32).reshape(4, 5),
        "adam_m.columns": np.arange(12, dtype=np.float16).reshape(2, 6),
        "global_step": np.array(7, np.int32),
    }
    splits = {"rows": 0, "adam_m.columns": 1}
    metadata: dict[str, Any] = {"state_dict_metadata": {}, "storage_data": {}}
    folder.mkdir(parents=True)
    parts: list[dict[str, NDArray[Any]]] = [{}, {}]
    for name, tensor in tensors.items():
        chunks = []
        for rank in range(2):
            offset = [0] * tensor.ndim
            parts[rank][name] = tensor
            if name in splits:
                parts[rank][name] = np.ascontiguousarray(np.split(tensor, 2, splits[name])[rank])
                offset[splits[name]] = rank * tensor.shape[splits[name]] // 2
            if (chunk := {"global_offset": offset, "local_shape": list(parts[rank][name].shape)}) not in chunks:
                chunks.append(chunk)
            place = {"file_name": f"sd-model-{rank:07d}-0000002.safetensors", "storage_rank": rank}
            metadata["storage_data"].setdefault(str((name, tuple(offset))), []).append(place)
        entry = {"global_shape": list(tensor.shape), "chunk": chunks, "properties": {"dtype": "Float32"}}
        metadata["state_dict_metadata"][name] = entry
    for rank, content in enumerate(parts):
        save_file(content, folder / f"sd-model-{rank:07d}-0000002.safetensors")
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=4))
    (folder / "common.json").write_text(json.dumps({"global_step": 7}))
    return tensors


def test_a_mindformers_checkpoint_is_put_together(tmp_path: Path) -> None:
    tensors = mindformers_checkpoint(tmp_path / "iteration_00000007")
    assert run("convert", tmp_path / "iteration_00000007", tmp_path / "root", "--step", 7) == 0
    checkpoint = Checkpoint.open(tmp_path / "root" / "step_0000000007")
    assert sorted(checkpoint.names("model")) == sorted(tensors)
    for name, each in tensors.items():
        found = checkpoint.read("model", name)
        assert (found.dtype, found.shape) == (each.dtype, each.shape)
        np.testing.assert_array_equal(found, each)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("state_dict_metadata", "rows", "chunk", 1, "global_offset"), [3, 0], "is not where the record says"),
        (
            ("state_dict_metadata", "rows", "chunk", 1, "global_offset"),
            [0, 0],
            "leave out or repeat elements of (4, 5)",
        ),
        (("state_dict_metadata", "rows", "global_shape"), [5, 5], "leave out or repeat elements of (5, 5)"),
        (("state_dict_metadata", "rows", "global_shape"), [3, 5], "chunk of (2, 5) at (2, 0) goes beyond that"),
        (("storage_data", "('w', (0, 0))", 0, "file_name"), "gone.safetensors", "gone.safetensors: damaged or no"),
        (("storage_data", "('w', (0, 0))"), [], "no record of a mindformers checkpoint"),
        (("state_dict_metadata",), 3, "no record of a mindformers checkpoint"),
    ],
)
def test_a_mindformers_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: tuple[Any, ...], value: Any, told: str
) -> None:
    mindformers_checkpoint(tmp_path / "source")
    record = tmp_path / "source" / "metadata.json"
    document = json.loads(record.read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    record.write_text(json.dumps(document))
    assert run("convert", tmp_path / "source", tmp_path / "root") == 2
    error = capsys.readouterr().err
    assert told in error and str(tmp_path / "source") in error and error.count("\n") == 1
    assert not (tmp_path / "root").exists()
