"""What `describe` says of files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden.seeded import inception_weights, weights
from launcher.contract.config import ConfigError
from support import GOLDEN
from vpred_train.evaluation.networks import inception
from vpred_train.evaluation.networks.clip_geometry import Geometry, Tower
from vpred_train.evaluation.networks.description import describe


def test_one_line_says_what_a_file_holds(tmp_path: Path) -> None:
    save_file(inception_weights(inception.shapes()), tmp_path / "inception.safetensors")
    found = describe(tmp_path / "inception.safetensors")
    assert "inception.safetensors: FID's Inception v3, 472 tensors, unknown file, SHA-256 " in found
    geometry = Geometry(Tower(128, 2, 2, 512), Tower(64, 2, 1, 256), 16, 4, 32)
    tensors = {name: np.asarray(weights(name, shape)) for name, shape in geometry.shapes().items()}
    save_file(tensors, tmp_path / "clip.safetensors")
    found = describe(tmp_path / "clip.safetensors", "gelu")
    assert "clip-vit-128x2-16-64, openai layout, gelu, images of 64 pixels, features of width 32, unknown" in found


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a TorchScript of neither CLIP nor"):
        describe(GOLDEN / "torchscript.pt")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"no tensor has a name of CLIP's image tower \(found 1: a\)"):
        describe(tmp_path / "x.safetensors")
