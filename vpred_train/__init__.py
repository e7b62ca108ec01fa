"""Training and sampling of Stable Diffusion 2.x with the v-prediction objective; the only MindSpore code.

The names below are for other programs; each is imported when it is first used. `TextToImage` imports MindSpore: call
`vpred_train.runtime.start_single()` before it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["SAMPLERS", "TextToImage", "TrainConfig", "load_recipe", "make_schedule", "open_weights"]

if TYPE_CHECKING:
    from vpred_train.config.train import TrainConfig
    from vpred_train.diffusion.samplers.registry import SAMPLERS
    from vpred_train.diffusion.schedule import make_schedule
    from vpred_train.prepare.recipe import load_recipe
    from vpred_train.sampling.pipeline import TextToImage
    from vpred_train.weights.layouts.weight_source import open_weights
else:  # a type checker would take every name for one of ours
    _PLACES = {
        "SAMPLERS": "vpred_train.diffusion.samplers.registry:SAMPLERS",
        "TextToImage": "vpred_train.sampling.pipeline:TextToImage",
        "TrainConfig": "vpred_train.config.train:TrainConfig",
        "load_recipe": "vpred_train.prepare.recipe:load_recipe",
        "make_schedule": "vpred_train.diffusion.schedule:make_schedule",
        "open_weights": "vpred_train.weights.layouts.weight_source:open_weights",
    }

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _PLACES[name].partition(":")
        return getattr(import_module(module), attribute)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
