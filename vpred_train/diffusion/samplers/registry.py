"""The samplers by name, and guidance.

A sampler is a plain function of (model, z_T, schedule, timesteps, prediction_type); those in `STOCHASTIC` also take
`noise`. `model(z, t)` returns the (guided) prediction.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.diffusion.samplers.multistep import dpm_solver_2, dpmpp_2m, dpmpp_2m_sde, plms, unipc
from vpred_train.diffusion.samplers.single_step import ddim, euler, euler_ancestral, heun

Sampler = Callable[..., FloatArray]


def guided(conditional: Any, unconditional: Any, guidance_scale: float | np.floating[Any]) -> Any:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6): scale 1 is the conditional model.

    The weights sum to one, so that guiding v, noise or x is the same.
    """
    return unconditional + guidance_scale * (conditional - unconditional)


def rescale_guidance(prediction: FloatArray, conditional: FloatArray, factor: float) -> FloatArray:
    """Pull a guided prediction (B, C, H, W) to the conditional one's std per sample (Lin et al. 2023, eq. 15, 16).

    factor 0 leaves it alone, 1 rescales wholly, 0.7 is the paper's. Acts on the model's own output (v for a v model):
    unlike guidance itself it is not the same in v, noise and x.
    """
    axes = tuple(range(1, prediction.ndim))
    wanted, found = conditional.std(axis=axes, keepdims=True), prediction.std(axis=axes, keepdims=True)
    # A constant prediction (of a network whose last layer is still zero) stays as it is.
    ratio = np.divide(wanted, found, out=np.ones_like(found), where=found > 0)
    rescaled: FloatArray = prediction * (factor * ratio + (1 - factor))
    return rescaled


SAMPLERS: dict[str, Sampler] = {
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpm_solver_2": dpm_solver_2,
    "unipc": unipc,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "plms": plms,
}
STOCHASTIC = frozenset({"dpmpp_2m_sde", "ddim", "euler_ancestral"})
