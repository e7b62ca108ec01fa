"""Make samplers.npz: what diffusers 0.42.1 (torch 2.13.0) feeds to a model in sampling, and its timesteps.

    pip install torch==2.13.0 diffusers==0.42.1 && python tests/golden/make_samplers.py

Per case: `timesteps` (n,), `states` (n, B, C, H, W), the latents that each model call gets, scaled to variance one, and
`final`, the scheduler's last latents; `cases` is the table below as JSON. And spacings.npz: timesteps alone.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral
from sampler_model import SHAPE, noise, predict

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}
DDIM = {"class": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
DPMPP = {"class": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"}
SDE = {"class": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
DPM = {"class": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
UNIPC = {"class": "UniPCMultistepScheduler"}
EULER = {"class": "EulerDiscreteScheduler"}
ANCESTRAL = {"class": "EulerAncestralDiscreteScheduler"}
HEUN = {"class": "HeunDiscreteScheduler"}
PNDM = {"class": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": True, "steps_offset": 1}
ZERO = {"rescale_betas_zero_snr": True}
KARRAS = {"use_karras_sigmas": True}

# name: (ours, prediction type, spacing, steps, eta, scheduler settings)
CASES = {
    "ddim_v": ("ddim", "v", "trailing", 20, 0, DDIM),
    "ddim_eps": ("ddim", "eps", "leading", 20, 0, DDIM),
    "ddim_x0": ("ddim", "x0", "trailing", 10, 0, DDIM),
    "ddim_eta_half": ("ddim", "v", "trailing", 20, 0.5, DDIM),
    "ddim_eta_one": ("ddim", "eps", "leading", 20, 1, DDIM),
    "ddim_zero": ("ddim", "v", "trailing", 20, 0, DDIM | ZERO),
    "ddim_zero_eta": ("ddim", "x0", "trailing", 20, 1, DDIM | ZERO),
    "ddim_15": ("ddim", "v", "trailing", 15, 0, DDIM),
    "dpmpp_2m_v": ("dpmpp_2m", "v", "trailing", 15, 0, DPMPP),
    "dpmpp_2m_eps": ("dpmpp_2m", "eps", "leading", 20, 0, DPMPP),
    "dpmpp_2m_x0": ("dpmpp_2m", "x0", "linspace", 12, 0, DPMPP),
    "dpmpp_2m_zero": ("dpmpp_2m", "v", "trailing", 15, 0, DPMPP | ZERO),
    "dpmpp_2m_sde_v": ("dpmpp_2m_sde", "v", "trailing", 15, 0, SDE),
    "dpmpp_2m_sde_eps": ("dpmpp_2m_sde", "eps", "linspace", 20, 0, SDE),
    "dpm_solver_2_v": ("dpm_solver_2", "v", "trailing", 15, 0, DPM),
    "dpm_solver_2_eps": ("dpm_solver_2", "eps", "leading", 20, 0, DPM),
    "unipc_v": ("unipc", "v", "trailing", 15, 0, UNIPC),
    "unipc_eps": ("unipc", "eps", "leading", 20, 0, UNIPC),
    "unipc_x0": ("unipc", "x0", "linspace", 12, 0, UNIPC),
    "unipc_zero": ("unipc", "v", "trailing", 15, 0, UNIPC | ZERO),
    "euler_v": ("euler", "v", "trailing", 15, 0, EULER),
    "euler_eps": ("euler", "eps", "leading", 20, 0, EULER),
    "euler_zero": ("euler", "v", "trailing", 15, 0, EULER | ZERO),
    "euler_karras": ("euler", "v", "linspace", 15, 0, EULER | KARRAS),
    "euler_ancestral_v": ("euler_ancestral", "v", "trailing", 15, 0, ANCESTRAL),
    "euler_ancestral_eps": ("euler_ancestral", "eps", "leading", 20, 0, ANCESTRAL),
    "euler_ancestral_zero": ("euler_ancestral", "v", "trailing", 15, 0, ANCESTRAL | ZERO),
    "heun_v": ("heun", "v", "trailing", 15, 0, HEUN),
    "heun_eps": ("heun", "eps", "leading", 20, 0, HEUN),
    "heun_x0": ("heun", "x0", "trailing", 15, 0, HEUN),
    "heun_karras": ("heun", "v", "linspace", 15, 0, HEUN | KARRAS),
    "plms_v": ("plms", "v", "leading", 20, 0, PNDM),
    "plms_eps": ("plms", "eps", "leading", 20, 0, PNDM),
}


def scheduler_of(prediction_type: str, spacing: str, settings: dict) -> diffusers.SchedulerMixin:
    """The scheduler of a case."""
    common = STABLE_DIFFUSION | {"prediction_type": PREDICTION[prediction_type], "timestep_spacing": spacing}
    options = {key: value for key, value in settings.items() if key != "class"}
    return getattr(diffusers, settings["class"])(**common, **options)


def run(scheduler: diffusers.SchedulerMixin, prediction_type: str, steps: int, eta: float) -> dict[str, np.ndarray]:
    """All model inputs and the result."""
    scheduler.set_timesteps(steps)
    z = torch.from_numpy(noise(SHAPE, -1)) * scheduler.init_noise_sigma
    states = []
    for step, t in enumerate(scheduler.timesteps):
        states.append(scheduler.scale_model_input(z, t).numpy())
        drawn = noise(SHAPE, step)
        ancestral.randn_tensor = lambda *_, drawn=drawn, **__: torch.from_numpy(drawn)
        options = {}
        if isinstance(scheduler, diffusers.DDIMScheduler):
            options = {"eta": eta, "variance_noise": torch.from_numpy(drawn)}
        elif scheduler.config.get("algorithm_type") == "sde-dpmsolver++":
            options = {"variance_noise": torch.from_numpy(drawn)}
        prediction = torch.from_numpy(predict(states[-1], float(t), prediction_type))
        z = scheduler.step(prediction, t, z, **options).prev_sample
    return {"timesteps": scheduler.timesteps.numpy(), "states": np.stack(states), "final": z.numpy()}


def spacings() -> dict[str, np.ndarray]:
    """Timesteps of DDIM's scheduler, which visits n; DPM-Solver's visits n + 1 of leading and linspace but the last."""
    tables = {}
    for spacing in ("trailing", "leading", "linspace"):
        for steps in (2, 7, 15, 20, 50, 333, 999, 1000):
            for name, settings in (("ddim", DDIM), ("dpm", DPMPP)):
                # A stride of one leaves no room for the offset.
                offset = {"steps_offset": 1 if steps < 500 else 0}
                scheduler = scheduler_of("v", spacing, settings | offset)
                scheduler.set_timesteps(steps)
                tables[f"{name}_{spacing}_{steps}"] = scheduler.timesteps.numpy().astype(np.int16)
    scheduler = scheduler_of("v", "linspace", EULER | KARRAS)
    for steps in (2, 15, 50):
        scheduler.set_timesteps(steps)
        tables[f"karras_{steps}"] = scheduler.timesteps.numpy()
        tables[f"karras_ratios_{steps}"] = scheduler.sigmas.numpy()[:-1]
    return tables


def main() -> None:
    """Write both files next to this script."""
    arrays = {}
    for name, (_, prediction_type, spacing, steps, eta, settings) in CASES.items():
        found = run(scheduler_of(prediction_type, spacing, settings), prediction_type, steps, eta)
        arrays |= {f"{name}/{key}": value for key, value in found.items()}
    meta = {name: case[:5] for name, case in CASES.items()}
    folder = Path(__file__).parent
    np.savez_compressed(folder / "samplers.npz", cases=json.dumps(meta), **arrays)
    np.savez_compressed(folder / "spacings.npz", **spacings())


if __name__ == "__main__":
    main()
