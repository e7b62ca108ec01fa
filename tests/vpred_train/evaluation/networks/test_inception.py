"""FID's Inception against torch-fidelity in float64 (tests/golden/make_networks.py), and its weights' files."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from golden.seeded import inception_weights, photographs
from launcher.contract.config import ConfigError
from support import GOLDEN
from support.pickles import state_dict
from vpred_train.evaluation.networks import inception
from vpred_train.evaluation.networks import inception_weights as reader
from vpred_train.evaluation.networks.feature_network import in_batches
from vpred_train.evaluation.networks.inception import AVERAGE, MAXIMUM, STAGES, Chain, Conv, Fork, Inception, Pool
from vpred_train.weights.formats.mindspore_ckpt import write_mindspore

TOLERANCE = 2e-6  # of the largest feature
GOLDENS = np.load(GOLDEN / "networks.npz")


def changed(chain: Chain, change: Callable[[Conv | Pool], Conv | Pool]) -> Chain:
    return tuple(
        Fork(tuple(changed(branch, change) for branch in layer.branches)) if isinstance(layer, Fork) else change(layer)
        for layer in chain
    )


def narrow(change: Callable[[Conv | Pool], Conv | Pool] = lambda layer: layer) -> dict[int, inception.Stage]:
    """The network with a sixteenth of the channels, as in the golden script."""

    def both(layer: Conv | Pool) -> Conv | Pool:
        layer = change(layer)
        return replace(layer, channels=layer.channels // 16) if isinstance(layer, Conv) else layer

    return {
        width: tuple((name, changed(chain, both)) for name, chain in stage) for width, stage in STAGES.items()
    }  # fmt: skip


NARROW = inception_weights(inception.shapes(narrow()))


def error(stages: Mapping[int, inception.Stage], tap: int) -> float:
    """The largest difference to torch-fidelity's features, in units of the largest."""
    images = (photographs(8, 299)[:3].astype(np.float32) - 128) / 128
    expected = GOLDENS[f"inception_narrow_{tap}"]
    found = in_batches(Inception(NARROW, tap, stages), 2, tap // 16, images)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_names_and_shapes_are_pytorch_fids() -> None:
    listed = [f"{name} {'x'.join(map(str, shape))}" for name, shape in inception.shapes().items()]
    assert sorted(listed) == sorted(GOLDENS["inception_names"].tolist())
    assert len(listed) == 472


@pytest.mark.parametrize("tap", [64, 192, 768, 2048])
def test_features_of_each_layer_equal_torch_fidelitys(tap: int) -> None:
    assert error(narrow(), tap) <= TOLERANCE


def test_wrong_pooling_is_noticed() -> None:
    """The maximum of the last block as in the block before; and averages that count the padding."""
    last = dict(narrow()[2048])
    last["Mixed_7c"] = changed(last["Mixed_7c"], lambda layer: AVERAGE if layer == MAXIMUM else layer)
    assert error(narrow() | {2048: tuple(last.items())}, 2048) > 100 * TOLERANCE


def test_averages_that_count_the_padding_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class CountsPadding(inception.nn.AvgPool2d):  # type: ignore[misc,name-defined]
        def __init__(self, kernel: int, stride: int, pad_mode: str) -> None:
            super().__init__(kernel, stride, pad_mode="pad", padding=1, count_include_pad=True)

    monkeypatch.setattr(inception.nn, "AvgPool2d", CountsPadding)
    assert error(narrow(), 768) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def full() -> dict[str, NDArray[np.float32]]:
    return inception_weights(inception.shapes())


def opened(path: Path, tap: int = 2048) -> reader.InceptionNetwork:
    return reader.open_inception(path, lambda image: np.zeros((3, 299, 299), np.float32), "none", tap)


def test_full_size_network_equals_torch_fidelity(full: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    """Eight images, in any company: each gets the same bits."""
    path = tmp_path / "pt_inception.pth"
    state_dict(path, full | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(7)})
    network = opened(path)
    images = (photographs(8, 299).astype(np.float32) - 128) / 128
    found = network.images.features(images)
    expected = GOLDENS["inception_full_2048"]
    assert np.abs(found - expected).max() <= TOLERANCE * expected.max()
    assert found.dtype == np.float32 and found.min() >= 0
    logits, right = network.logits(found)[:, ::16], GOLDENS["inception_logits"]
    assert np.abs(logits - right).max() <= TOLERANCE * np.abs(right).max()
    for order in ([3], [7, 3, 0], [*range(7, -1, -1), 3, 3]):
        np.testing.assert_array_equal(network.images.features(images[order]), found[order])
    assert network.images.key.startswith("inception-v3 ") and network.known_as == ""


def test_files_of_mindone_and_safetensors_are_read(full: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    names = {name: reader.mindone_name(name) for name in full}
    assert len(set(names.values())) == 472
    assert {names[name] for name in SAMPLES} == set(SAMPLES.values()) and all(names[a] == b for a, b in SAMPLES.items())
    write_mindspore(tmp_path / "inception.ckpt", {names[name]: value for name, value in full.items()}, {})
    save_file(full | {"AuxLogits.fc.bias": np.zeros(1000, np.float32)}, tmp_path / "inception.safetensors")
    for file in ("inception.ckpt", "inception.safetensors"):
        found = reader.read_inception(tmp_path / file)
        assert all(np.array_equal(found[name], full[name]) for name in full)


SAMPLES = {
    "Conv2d_2b_3x3.bn.running_var": "Conv2d_2b.bn.moving_variance",
    "Conv2d_3b_1x1.conv.weight": "Conv2d_3b.conv.weight",
    "Mixed_5c.branch5x5_2.bn.weight": "Mixed_5c.branch1.1.bn.gamma",
    "Mixed_5d.branch_pool.conv.weight": "Mixed_5d.branch_pool.1.conv.weight",
    "Mixed_6a.branch3x3.bn.bias": "Mixed_6a.branch0.bn.beta",
    "Mixed_6a.branch3x3dbl_3.conv.weight": "Mixed_6a.branch1.2.conv.weight",
    "Mixed_6e.branch7x7dbl_5.conv.weight": "Mixed_6e.branch2.4.conv.weight",
    "Mixed_7a.branch3x3_2.conv.weight": "Mixed_7a.branch0.1.conv.weight",
    "Mixed_7a.branch7x7x3_4.bn.running_mean": "Mixed_7a.branch1.3.bn.moving_mean",
    "Mixed_7b.branch3x3_1.conv.weight": "Mixed_7b.branch1.conv.weight",
    "Mixed_7c.branch3x3_2b.conv.weight": "Mixed_7c.branch1_b.conv.weight",
    "Mixed_7c.branch3x3dbl_2.conv.weight": "Mixed_7c.branch2.1.conv.weight",
    "Mixed_7c.branch3x3dbl_3a.conv.weight": "Mixed_7c.branch2_a.conv.weight",
    "fc.weight": "fc.weight",
}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}, "has 1000 classes, so it is torchvision's"),
        ({"fc.weight": None}, "missing fc.weight"),
        ({"Mixed_7c.branch_pool.conv.weight": None}, "1 tensors do not fit FID's Inception: missing Mixed_7c"),
        ({"head.weight": np.zeros(3)}, "unexpected head.weight"),
        ({"Mixed_6b.branch7x7_2.conv.weight": np.zeros((128, 128, 7, 1))}, "is 128x128x7x1, needed 128x128x1x7"),
        ({"Conv2d_1a_3x3.bn.bias": np.full(32, np.nan)}, "Conv2d_1a_3x3.bn.bias holds 32 NaN of 32 values"),
        ({"Conv2d_1a_3x3.bn.running_var": np.full(32, -1.0)}, "holds a negative variance"),
        ({"Conv2d_1a_3x3.bn.bias": np.zeros(32, np.int32)}, "Conv2d_1a_3x3.bn.bias is int32"),
    ],
)  # fmt: skip
def test_other_networks_are_refused(
    change: dict[str, Any], fault: str, full: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    changed = {
        name: value if value.dtype == np.int32 else value.astype(np.float32)
        for name, value in (full | change).items()
        if value is not None
    }
    save_file(changed, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=fault) as caught:
        opened(tmp_path / "x.safetensors")
    assert str(caught.value).startswith(f"{tmp_path / 'x.safetensors'}: ")
    assert "give pt_inception-2015-12-05-6726825d.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_torchscript_and_pointers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a TorchScript, whose tensors have names of their own; give pt_incep"):
        opened(GOLDEN / "torchscript.pt")
    pointer = tmp_path / "x.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 95628359\n")
    with pytest.raises(ConfigError, match="a Git LFS pointer, not the weights"):
        opened(pointer)
