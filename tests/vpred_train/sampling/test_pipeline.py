"""The pipeline from noise to images with small random networks: every sampler, and whose noise an image gets."""

import numpy as np
import pytest

from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig
from vpred_train.config.sampling import SamplingConfig
from vpred_train.diffusion.samplers.registry import SAMPLERS
from vpred_train.models.networks import Networks
from vpred_train.sampling.pipeline import TextToImage, step_noise

ZERO_SNR = DiffusionConfig(zero_terminal_snr=True)


@pytest.fixture(scope="module")
def networks(model_config: ModelConfig) -> Networks:
    return Networks(model_config, 0)


def pipeline(networks: Networks, model_config: ModelConfig, sampling: SamplingConfig) -> TextToImage:
    return TextToImage(networks, model_config, ZERO_SNR, sampling, 8, 8)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_an_image_does_not_depend_on_its_batch(networks: Networks, model_config: ModelConfig, sampler: str) -> None:
    settings = {"sampler": sampler, "timestep_spacing": "karras", "steps": 4, "guidance_rescale": 0.7, "batch_size": 2}
    sampling = SamplingConfig.model_validate(settings | {"eta": 1.0 if sampler == "ddim" else 0.0})
    images = pipeline(networks, model_config, sampling)
    three = images.generate(["a", "b", "c"], [5, 6, 7])
    assert three.shape == (3, 3, 8, 8)
    assert np.isfinite(three).all()
    assert images.generate([], []).shape == (0, 3, 8, 8)
    last_first = images.generate(["c", "b"], [7, 6])
    np.testing.assert_allclose(last_first, three[[2, 1]], atol=1e-5)
    assert np.abs(images.generate(["c"], [8])[0] - three[2]).max() > 0.1


def test_noise_of_a_step_is_new_and_belongs_to_the_seed() -> None:
    shape = (3, 2, 4, 4)
    rows = [*step_noise([0, 1, 5], shape, 0), *step_noise([0, 1, 5], shape, 1)]
    # z_T of the same seeds is drawn too: a seed's step noise repeats neither it nor another step's.
    rows += [np.random.default_rng(seed).standard_normal(shape[1:], np.float32) for seed in (0, 1, 5)]
    correlations = np.corrcoef(np.stack(rows).reshape(9, -1))
    assert np.abs(correlations - np.eye(9)).max() < 0.7
    np.testing.assert_array_equal(step_noise([5], (1, *shape[1:]), 1)[0], rows[5])


def test_guidance_rescale_and_spacing_reach_the_sampler(networks: Networks, model_config: ModelConfig) -> None:
    settings = {"steps": 4, "batch_size": 2}  # one shape, one compilation
    changes = [{}, {"guidance_rescale": 0.7}, {"timestep_spacing": "linspace"}]
    images = [
        pipeline(networks, model_config, SamplingConfig.model_validate(settings | change)).generate(["a"], [3])
        for change in changes
    ]
    assert np.abs(images[1] - images[0]).max() > 1e-3
    assert np.abs(images[2] - images[0]).max() > 1e-3
