"""Turns a model of any prediction type into the denoiser that every sampler uses."""

from collections.abc import Callable

from launcher.contract.config import ConfigError
from vpred_train.arrays import FloatArray
from vpred_train.config.diffusion import PredictionType
from vpred_train.diffusion.parameterization import X_FROM_PREDICTION
from vpred_train.diffusion.schedule import Schedule

# (z (B, C, H, W), t) -> the (guided) prediction; t is an int, or a float between two timesteps with Karras' spacing.
Model = Callable[[FloatArray, float], FloatArray]
# (z, t) -> the prediction of x.
Denoiser = Callable[[FloatArray, float], FloatArray]
# (shape of z, step index) -> standard normal noise of that shape. The caller keys it by the seed of each image, so that
# an image does not depend on its batch.
Noise = Callable[[tuple[int, ...], int], FloatArray]


def denoiser(model: Model, schedule: Schedule, prediction_type: PredictionType) -> Denoiser:
    """Return the model as a function that returns x. At SNR 0 a v model gives x = -v.

    The returned function raises ConfigError when an eps model is evaluated at SNR 0.
    """
    x_from_prediction = X_FROM_PREDICTION[prediction_type]

    def denoise(z: FloatArray, t: float) -> FloatArray:
        alpha, sigma = schedule.at(t)
        if prediction_type == "eps" and alpha == 0:
            raise ConfigError(
                f"diffusion.prediction_type: found 'eps', but timestep {t} has SNR 0, where the noise says nothing "
                "about the image; use a v or x0 model, or timestep_spacing leading"
            )
        x: FloatArray = x_from_prediction(z, model(z, t), alpha, sigma)
        return x

    return denoise
