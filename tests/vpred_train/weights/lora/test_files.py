"""LoRA files under the published names come out as the same factors; what is written, others' names find again."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from safetensors.numpy import load_file, save_file

from launcher.contract.config import ConfigError
from support import GOLDEN
from support.lora_files import APART, FACTORS, GOOD, RANK, TO_Q, Adapted, assert_same, random_factors, zeros
from support.weights_files import DIFFUSERS, MINDONE, MODEL, RECORD, SHAPES, TINY, Arrays, random_tensors
from vpred_train.config.model import ModelConfig
from vpred_train.weights.formats.stored_tensor import LazyTensors
from vpred_train.weights.layouts.tensor_names import diffusers_names
from vpred_train.weights.lora.factors import (
    Factors,
    Target,
    attention_targets,
    linear_targets,
    merged,
    packed,
    separated,
)
from vpred_train.weights.lora.files import is_lora, open_lora, read_factors, write_lora


def named(factors: Adapted, module: Callable[[Target], str], down: str, up: str) -> Arrays:
    """Tensors under the names that `module` and the two endings make."""
    found: Arrays = {}
    for target, each in factors.items():
        found |= {f"{module(target)}{down}": each.down, f"{module(target)}{up}": each.up}
    return found


def mindone(target: Target) -> str:
    return MINDONE[target.weight].removesuffix(".weight")


def peft(target: Target) -> str:
    """From the published listing of diffusers' names."""
    name = re.sub(r" .*", "", DIFFUSERS[target.weight]).replace("{q,k,v}", target.part).replace("/", ".")
    return name.removesuffix(".weight")


def save_mindspore(path: Path, arrays: Arrays, **scalars: int) -> None:
    rows = [{"name": name, "data": Parameter(Tensor(array))} for name, array in arrays.items()]
    mindspore.save_checkpoint(rows, str(path), append_dict=scalars)


def test_mindones_file_has_348_tensors_at_sd2s_size() -> None:
    """The count that MindONE prints for UNet and text encoder; here and at full size the same layers."""
    assert 2 * len(attention_targets(ModelConfig(), ("unet",))) == 256
    assert 2 * len(attention_targets(ModelConfig())) == 2 * len(FACTORS) == 348


@pytest.mark.parametrize("half", [False, True])
def test_mindone(half: bool, tmp_path: Path) -> None:
    dtype = np.float16 if half else np.float32
    factors = {t: Factors(e.down.astype(dtype), e.up.astype(dtype), e.alpha) for t, e in FACTORS.items()}
    save_mindspore(
        tmp_path / "sd-72.ckpt", named(factors, mindone, ".lora_down.weight", ".lora_up.weight"), lora_rank=4
    )
    source = open_lora(tmp_path / "sd-72.ckpt")
    assert (source.layout, source.container, source.record) == ("mindone", "mindspore", None)
    widened = {t: Factors(e.down.astype(np.float32), e.up.astype(np.float32), e.alpha) for t, e in factors.items()}
    assert_same(read_factors(source, MODEL), widened)


UNET_OLD = (r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1_lora")
TEXT_OLD = (r"\.self_attn\.(?:([qkv])_proj|(out)_proj)$", r".self_attn.to_\1\2_lora")


@pytest.mark.parametrize(
    ("rename", "down", "up"),
    [
        (lambda name: name, ".lora_A.weight", ".lora_B.weight"),
        (lambda name: name.replace("text_encoder.text_model.", "text_encoder."), ".lora_A.weight", ".lora_B.weight"),
        (lambda name: re.sub(*TEXT_OLD, re.sub(*UNET_OLD, name)), ".down.weight", ".up.weight"),
        (
            lambda name: f"{name}.{'lora' if name.startswith('unet') else 'lora_linear_layer'}",
            ".down.weight",
            ".up.weight",
        ),
        (
            lambda name: re.sub(r"^lora_text_encoder_", "lora_te_", "lora_" + name.replace(".", "_")),
            ".lora_down.weight",
            ".lora_up.weight",
        ),
    ],
    ids=["peft", "transformers-5", "processors", "diffusers-0.20", "kohya"],
)
def test_diffusers_through_the_years(rename: Callable[[str], str], down: str, up: str, tmp_path: Path) -> None:
    save_file(named(APART, lambda target: rename(peft(target)), down, up), tmp_path / "x.safetensors")
    assert is_lora(tmp_path / "x.safetensors")
    source = open_lora(tmp_path / "x.safetensors")
    assert source.layout == "diffusers"
    assert_same(read_factors(source, MODEL), APART)


@pytest.mark.parametrize(
    ("factors", "layouts"), [(FACTORS, ("stability", "mindone", "diffusers")), (APART, ("stability", "diffusers"))]
)
def test_a_round_through_the_layouts_changes_no_bit(factors: Adapted, layouts: tuple[str, ...], tmp_path: Path) -> None:
    current = factors
    for number, layout in enumerate((*layouts, *reversed(layouts))):
        path = tmp_path / f"{number}.ckpt"
        write_lora(path, current, layout, RECORD)
        source = open_lora(path)
        assert (source.layout, source.record) == (layout, RECORD)
        current = read_factors(source)
        assert_same(current, factors)


def test_written_files_have_the_published_names(tmp_path: Path) -> None:
    write_lora(tmp_path / "m.ckpt", FACTORS, "mindone", None, MODEL)
    loaded = mindspore.load_checkpoint(str(tmp_path / "m.ckpt"))
    assert int(loaded.pop("lora_rank").value()) == RANK
    expected = named(FACTORS, mindone, ".lora_down.weight", ".lora_up.weight")
    assert set(loaded) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded[name].asnumpy(), array)
    write_lora(tmp_path / "pytorch_lora_weights.safetensors", FACTORS, "diffusers", None, MODEL)
    written = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    expected = named(separated(FACTORS), peft, ".lora_A.weight", ".lora_B.weight")
    assert set(written) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array)
    assert_same(read_factors(open_lora(tmp_path), MODEL), FACTORS)  # the folder, as diffusers takes it


def changes(factors: Adapted) -> dict[str, Any]:
    """What the factors add to each weight, by the paper's formula in float64, q, k and v one below the other."""
    found: dict[str, Any] = {}
    for target, each in factors.items():
        change = each.alpha / len(each.down) * each.up.astype(np.float64) @ each.down.astype(np.float64)
        if target.part:
            found.setdefault(target.weight, np.zeros(SHAPES[target.weight]))
            rows = len(change)
            first = "qkv".index(target.part) * rows
            found[target.weight][first : first + rows] = change
        else:
            found[target.weight] = change
    return found


@pytest.mark.parametrize("layout", ["stability", "mindone", "diffusers"])
@pytest.mark.parametrize("packed_text", [True, False])
def test_every_layout_means_the_same_change(layout: str, packed_text: bool, tmp_path: Path) -> None:
    """Also with a scale that is no power of two, and ranks that are not all the same: there the bits may differ."""
    factors = random_factors(3.0, packed_text)
    first = next(iter(factors))
    factors[first] = Factors(factors[first].down[:2], factors[first].up[:, :2], 5.0)
    write_lora(tmp_path / "x.ckpt", factors, layout, RECORD)
    source = open_lora(tmp_path / "x.ckpt")
    expected, found = changes(factors), changes(read_factors(source))
    assert set(found) == set(expected)
    for name, change in expected.items():
        np.testing.assert_allclose(found[name], change, rtol=0, atol=1e-6 * np.abs(change).max())
    if layout == "stability":
        assert_same(read_factors(source), factors)
    elif layout == "mindone":
        assert len({each.rank for each in read_factors(source).values()}) == 1


@pytest.mark.parametrize("factors", [FACTORS, APART], ids=["packed", "apart"])
def test_merged_weights_are_the_sum(factors: Adapted) -> None:
    tensors = random_tensors()
    base = LazyTensors({name: tensors[name].copy for name in tensors})
    expected = changes(factors)
    result = merged(base, factors, 0.5)
    assert set(result) == set(tensors)
    for name, tensor in tensors.items():
        right = (tensor + 0.5 * expected.get(name, 0)).astype(np.float32)
        np.testing.assert_array_equal(result[name], right, strict=True)
    assert {target.weight for target in packed(factors)} == set(expected)


def test_alpha_comes_from_the_file_or_is_the_rank(tmp_path: Path) -> None:
    kohya = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    target = Target("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight")
    down, up = np.ones((2, 32), np.float32), np.ones((32, 2), np.float32)
    halves = {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up}
    save_file(halves | {f"{kohya}.alpha": np.array(1, np.float16)}, tmp_path / "x")
    assert read_factors(open_lora(tmp_path / "x"), MODEL)[target].scale == 0.5
    halves = {f"{peft(target)}.lora_A.weight": down, f"{peft(target)}.lora_B.weight": up}
    save_file(halves, tmp_path / "x", {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6})})
    assert read_factors(open_lora(tmp_path / "x"), MODEL)[target].scale == 3
    save_file(halves, tmp_path / "x", {"lora_adapter_metadata": json.dumps({"unet.use_dora": True})})
    with pytest.raises(ConfigError, match=r"unet\.use_dora in lora_adapter_metadata"):
        read_factors(open_lora(tmp_path / "x"), MODEL)


IN_PROJ = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj"


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        (GOOD | {f"{TO_Q}.lora_up.weight": zeros(32, 3)}, r"lora_down\.weight has rank 4, its other half 3"),
        (GOOD | {"lora_rank": np.array(8)}, "has rank 4, its other half 4, the file 8"),
        (GOOD | {f"{TO_Q}.lora_up.weight": zeros(64, 4)}, "is 4x32 and its other half 64x4, for a matrix 32x32"),
        (GOOD | {f"{TO_Q}.lora_mid.weight": zeros(4, 4)}, r"unknown .*to_q\.lora_mid\.weight"),
        ({f"{TO_Q}.lora_up.weight": zeros(32, 4)}, r"to_q\.lora_up\.weight without its other half"),
        (GOOD | {f"{TO_Q}.alpha": zeros(2)}, "holds .* where one number should be"),
        (
            GOOD | {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": zeros(4, 32)},
            "is there twice, also as",
        ),
        (
            {f"{IN_PROJ}.lora_down.weight": zeros(2, 8), f"{IN_PROJ}.lora_up.weight": zeros(24, 2)}
            | {f"{IN_PROJ}.q.lora_down.weight": zeros(2, 8), f"{IN_PROJ}.q.lora_up.weight": zeros(8, 2)},
            r"in_proj\.q\.lora_down\.weight is a part of what is there whole",
        ),
        ({"a": zeros(1)}, r"holds no LoRA weights \(found 1 tensors: a\)"),
    ],
)
def test_faults_are_named(tensors: Arrays, fault: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x")
    with pytest.raises(ConfigError, match=fault):
        read_factors(open_lora(tmp_path / "x"), MODEL)


def test_mindone_cannot_hold_other_layers(tmp_path: Path) -> None:
    target = next(each for each in linear_targets(MODEL) if ".ff." in each.weight)
    rows, columns = SHAPES[target.weight]
    factors = {target: Factors(zeros(2, columns), zeros(rows, 2), 2)}
    with pytest.raises(ConfigError, match=r"MindONE adapts attention projections only, not .*\.ff\."):
        write_lora(tmp_path / "x.ckpt", factors, "mindone", RECORD)
    write_lora(tmp_path / "x", factors, "diffusers", RECORD)
    assert_same(read_factors(open_lora(tmp_path / "x")), factors)
    assert not (tmp_path / "x.ckpt").exists()


def test_a_file_of_diffusers_and_peft() -> None:
    """Golden (tests/golden/make_lora.py): its alpha is in the metadata, and q, k and v have factors of their own."""
    golden = GOLDEN / "lora"
    source = open_lora(golden.with_suffix(".safetensors"))
    found, seen = read_factors(source, TINY), 0
    with np.load(golden.with_suffix(".npz")) as expected:
        for target, each in found.items():
            names = diffusers_names(target.weight, TINY)
            (name,) = [each for each in names if f".{target.part}_proj." in each] if target.part else names
            module = name.removesuffix(".weight").replace("/", ".").replace(".text_model.", ".")
            change = each.scale * each.up.astype(np.float64) @ each.down
            np.testing.assert_allclose(change, expected[module], rtol=0, atol=1e-6 * np.abs(change).max())
            seen += 1
        assert seen == len(expected) == 36


HALVES = {".lora_A.weight": zeros(4, 32) + 1, ".lora_B.weight": zeros(32, 4) + 2}
PLACE = Target("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight")


@pytest.mark.parametrize("prefix", ["base_model.model.", "unet.base_model.model."])
@pytest.mark.parametrize("adapter", ["", ".default"])
def test_pefts_own_files(prefix: str, adapter: str, tmp_path: Path) -> None:
    """With alpha in the document beside the file, and without that as every reader takes it."""
    module = prefix + peft(PLACE).removeprefix("unet.")
    tensors = {f"{module}{end.replace('.weight', f'{adapter}.weight')}": array for end, array in HALVES.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert is_lora(tmp_path)
    (found,) = read_factors(open_lora(tmp_path), MODEL).items()
    assert (found[0], found[1].alpha, found[1].up.shape) == (PLACE, 4, (32, 4))
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8, "target_modules": ["to_q"]}')
    assert read_factors(open_lora(tmp_path / "adapter_model.safetensors"), MODEL)[PLACE].scale == 2
    (tmp_path / "adapter_config.json").write_text('{"use_rslora": true}')
    with pytest.raises(ConfigError, match=r"unet\.use_rslora in adapter_config\.json"):
        read_factors(open_lora(tmp_path), MODEL)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "8"}')
    with pytest.raises(ConfigError, match=r"adapter_config\.json: lora_alpha: found '8'"):
        open_lora(tmp_path)


def test_pefts_file_of_a_text_encoder(tmp_path: Path) -> None:
    apart = {target: each for target, each in APART.items() if target.weight.startswith("cond_stage_model")}
    names = named(
        apart,
        lambda target: "base_model.model." + peft(target).removeprefix("text_encoder."),
        ".lora_A.weight",
        ".lora_B.weight",
    )
    for prefix in ("text_model.", ""):
        save_file({name.replace("text_model.", prefix): array for name, array in names.items()}, tmp_path / "x")
        assert_same(read_factors(open_lora(tmp_path / "x"), MODEL), apart)


def test_factors_that_are_kernels_of_1x1(tmp_path: Path) -> None:
    """kohya's and LyCORIS' files hold those of projections that were convolutions in SD1."""
    module = peft(PLACE)
    save_file({f"{module}{end}": array[:, :, None, None] for end, array in HALVES.items()}, tmp_path / "x")
    found = read_factors(open_lora(tmp_path / "x"), MODEL)[PLACE]
    assert (found.down.shape, found.up.shape) == ((4, 32), (32, 4))
    for ends in ((1, 3), (3, 3), (1,), (1, 1, 1)):
        save_file(
            {
                f"{module}{end}": np.broadcast_to(
                    array.reshape(*array.shape, *(1 for _ in ends)), (*array.shape, *ends)
                ).copy()
                for end, array in HALVES.items()
            },
            tmp_path / "y",
        )
        with pytest.raises(ConfigError, match=r"lora_A\.weight is 4x32x.*, for a matrix 32x32"):
            read_factors(open_lora(tmp_path / "y"), MODEL)


@pytest.mark.parametrize(
    ("text", "alpha", "fault"),
    [
        ("null", 4, ""), ("{}", 4, ""), ('{"unet.lora_alpha": null}', 4, ""), ('{"unet.lora_alpha": 2}', 2, ""),
        ('{"unet.r": 9, "odd": {}, "": 1}', 4, ""), ('{"unet.use_dora": false, "unet.alpha_pattern": {}}', 4, ""),
        ("[1]", 0, r"lora_adapter_metadata: found \[1\]"), ("3", 0, "found 3"), ("", 0, "is no JSON"),
        ("[" * 100_000, 0, "too many brackets"), ('{"unet.lora_alpha": "4"}', 0, "unet: lora_alpha: found '4'"),
        ('{"unet.lora_alpha": NaN}', 0, r"lora_alpha: found NaN \(should be a finite number\)"),
        ('{"unet.alpha_pattern": [1]}', 0, "alpha_pattern: found"),
        ('{"unet.use_dora": "yes"}', 0, "use_dora: found 'yes'"),
        ('{"unet.lora_alpha": 1, "unet.lora_alpha": 2}', 0, "is there twice"),
    ],
)  # fmt: skip
def test_metadata_of_adapters(text: str, alpha: float, fault: str, tmp_path: Path) -> None:
    save_file(
        {f"{peft(PLACE)}{end}": array for end, array in HALVES.items()}, tmp_path / "x", {"lora_adapter_metadata": text}
    )
    if not fault:
        assert read_factors(open_lora(tmp_path / "x"), MODEL)[PLACE].alpha == alpha
        return
    with pytest.raises(ConfigError, match=fault) as caught:
        open_lora(tmp_path / "x")
    assert str(caught.value).startswith(f"{tmp_path / 'x'}: lora_adapter_metadata: ") and "\n" not in str(caught.value)


def test_a_rank_of_none_or_of_nan(tmp_path: Path) -> None:
    save_file({f"{TO_Q}.lora_down.weight": zeros(0, 32), f"{TO_Q}.lora_up.weight": zeros(32, 0)}, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"lora_down\.weight has rank 0"):
        read_factors(open_lora(tmp_path / "x"), MODEL)
    save_file(GOOD | {"lora_rank": np.array(np.nan, np.float32)}, tmp_path / "x")
    with pytest.raises(ConfigError, match="holds nan where a number should be"):
        read_factors(open_lora(tmp_path / "x"), MODEL)
