"""Declares the keys of MindONE's recipes for train_text_to_image, and reads them from YAML and flags."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt

from launcher.contract.config import Section, build_document, load_document

COMMAND_LINE = Path("command line")
Flag = tuple[str, str]  # key, and its value as text


class MindoneRecipe(Section):
    """Declares the keys of MindONE's train_text_to_image with its defaults.

    Only `model_config` has another default: MindONE's is SD 1. Quantities are MindONE's.

    train_batch_size: samples per card
    epochs: an epoch counts only full global batches
    ckpt_save_interval: epochs, or steps with `step_mode`
    """

    model_config = ConfigDict(allow_inf_nan=False)

    mode: int = 0
    jit_level: str = "O2"
    use_parallel: bool = False
    replace_small_images: bool = True
    enable_modelarts: bool = False
    num_workers: int = 1
    json_data_path: str = ""
    data_path: str = "dataset"
    output_path: str = "output/"
    resume: bool | str = False
    profile: bool = False
    model_file: str = Field("configs/v2-vpred-train.yaml", alias="model_config")
    custom_text_encoder: str = ""
    pretrained_model_path: str = ""
    use_lora: bool = False
    lora_ft_unet: bool = True
    lora_ft_text_encoder: bool = False
    lora_rank: PositiveInt = 4
    lora_fp16: bool = True
    lora_scale: float = Field(1.0, gt=0)
    unet_initialize_random: bool = False
    dataset_sink_mode: bool = False
    optim: Literal["adam", "adamw", "sgd", "momentum"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-6, ge=0)
    seed: NonNegativeInt = 3407
    warmup_steps: NonNegativeInt = 1000
    train_batch_size: PositiveInt = 10
    callback_size: PositiveInt = 1
    start_learning_rate: float = Field(1e-5, gt=0)
    end_learning_rate: float = Field(1e-7, ge=0)
    decay_steps: NonNegativeInt = 0
    scheduler: Literal["constant", "cosine_decay", "polynomial_decay", "multi_step_decay"] = "cosine_decay"
    epochs: PositiveInt = 10
    init_loss_scale: float = 65536
    loss_scale_factor: float = 2
    scale_window: PositiveInt = 1000
    loss_scaler_type: Literal["dynamic", "static"] = "dynamic"
    drop_overflow_update: bool = True
    gradient_accumulation_steps: PositiveInt = 1
    use_ema: bool = False
    clip_grad: bool = False
    max_grad_norm: float = Field(1.0, gt=0)
    enable_flash_attention: bool | None = None
    ckpt_save_interval: PositiveInt = 1
    step_mode: bool = False
    random_crop: bool = False
    filter_small_size: bool = True
    image_filter_size: PositiveInt = 256
    image_size: PositiveInt = 512
    log_level: str = "logging.INFO"

    @property
    def smallest_side(self) -> int:
        """Return the side in pixels below which MindONE drops an image."""
        return self.image_filter_size if self.filter_small_size else 0


def read_mindone(path: Path | None, flags: Sequence[Flag]) -> MindoneRecipe:
    """Read the recipe in `path`, and apply the flags. Raises ConfigError: one line per mistake."""
    # Texts are not parsed as YAML: a folder may be called 1.
    texts = {info.alias or name for name, info in MindoneRecipe.model_fields.items() if info.annotation is str}
    overrides = [f"{key}={json.dumps(text, ensure_ascii=False) if key in texts else text}" for key, text in flags]
    if path is None:
        return build_document(MindoneRecipe, {}, COMMAND_LINE, overrides)
    return load_document(MindoneRecipe, path, overrides)
