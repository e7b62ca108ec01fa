"""Lists the samplers by name, and implements guidance.

A sampler is a plain function of (model, z_T, schedule, timesteps, prediction_type). Samplers in `STOCHASTIC` also take
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
    """Apply classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6); scale 1 is the conditional model.

    The weights sum to one, so that guiding v, noise or x is the same.
    """
    return unconditional + guidance_scale * (conditional - unconditional)


def rescale_guidance(prediction: FloatArray, conditional: FloatArray, factor: float) -> FloatArray:
    """Rescale a guided prediction (B, C, H, W) per sample towards the conditional one's standard deviation.

    The equations are 15 and 16 of Lin et al. 2023. They act on the model's output (v for a v model). Unlike guidance,
    the result is not the same in v, noise and x.
    factor: 0 changes nothing, 1 rescales fully, the paper uses 0.7.
    """
    axes = tuple(range(1, prediction.ndim))
    wanted, found = conditional.std(axis=axes, keepdims=True), prediction.std(axis=axes, keepdims=True)
    # A constant prediction (the network's last layer is still zero) stays unchanged.
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
