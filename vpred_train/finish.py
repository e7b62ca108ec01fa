"""The end of a run: sample every prompt with the EMA weights, compare, export, report, and mark the run complete."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import DataConfig, Source, load_image, sample_generator
from launcher.contract.run_dir import RunDir, Summary
from monitoring import History
from vpred_train.config import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.diffusion.schedule import FloatArray
from vpred_train.gallery import nearest_real, write_grids
from vpred_train.hooks import Hook
from vpred_train.models.weights import export_weights
from vpred_train.report import write_report
from vpred_train.sampling import TextToImage
from vpred_train.trainer import Trainer

logger = logging.getLogger(__name__)


def finish(config: TrainConfig, trainer: Trainer, run: RunDir, hooks: Sequence[Hook]) -> None:
    """Every rank samples its share of the prompts; rank 0 writes the results, `summary.json` last of all."""
    for hook in hooks:
        hook.on_phase("sampling", trainer.steps_done, trainer.state.samples_seen)
    sampled = sample_all(config, trainer)
    if trainer.collective.rank == 0:
        write_results(config, trainer, run, sampled)
    trainer.collective.barrier()
    for hook in hooks:
        hook.on_phase("done", trainer.steps_done, trainer.state.samples_seen)


def sample_all(config: TrainConfig, trainer: Trainer) -> FloatArray:
    """One image for every training prompt, (n, 3, R, R), on every rank; the seed of an image is its sample id's."""
    collective, source = trainer.collective, trainer.source
    trainer.state.space.write(trainer.state.ema)
    resolution = config.data.resolution
    pipeline = TextToImage(trainer.networks, config.model, config.diffusion, config.sampling, resolution, resolution)
    mine = range(collective.rank, len(source), collective.world_size)
    prompts = [source.sample(index).text for index in mine]
    images = pipeline.generate(prompts, [config.sampling.seed + index for index in mine])
    sampled = np.empty((len(source), 3, resolution, resolution), np.float32)
    for rank, share in enumerate(collective.allgather_object(images)):
        sampled[rank :: collective.world_size] = share
    return sampled


def real_images(config: DataConfig, source: Source) -> FloatArray:
    """The training images, centre-cropped and unflipped, (n, 3, R, R)."""
    plain = config.model_copy(update={"crop": "center", "horizontal_flip": False})
    return np.stack(
        [load_image(sample.image, plain, sample_generator(0, "augment", 0, 0)) for sample in source.samples]
    )


def write_results(config: TrainConfig, trainer: Trainer, run: RunDir, sampled: FloatArray) -> None:
    """Grids, weights, report, summary."""
    source = trainer.source
    real = real_images(config.data, source)
    nearest = nearest_real(sampled, real)
    retrieval = float(np.mean(nearest == np.arange(len(source))))
    run.samples.mkdir(exist_ok=True)
    run.weights.mkdir(exist_ok=True)
    grids = write_grids(run.samples, [sample.text for sample in source.samples], real, sampled, nearest)
    ema_path = export(config, trainer, run.weights)
    history = History(run.metrics_jsonl).read()
    summary = Summary(
        steps=trainer.steps_done,
        samples_seen=trainer.state.samples_seen,
        final_loss=history[-1]["loss"],
        seconds=sum(record["step_seconds"] for record in history),
        retrieval=retrieval,
        report=run.report_html.relative_to(run.root),
        samples=run.samples.relative_to(run.root),
        weights=ema_path.relative_to(run.root),
    )
    write_report(config, run, summary, history, grids, trainer.collective.world_size)
    summary.write(run.summary_json)
    logger.info("retrieval: %.1f %% of %d prompts", 100 * retrieval, len(source))


def export(config: TrainConfig, trainer: Trainer, folder: Path) -> Path:
    """Write raw.safetensors and ema.safetensors; returns the latter."""
    state = trainer.state
    sets: dict[str, Any] = {"raw": state.weights, "ema": state.ema}
    for kind, values in sets.items():
        record = record_of(config, "ema" if kind == "ema" else "raw", state.samples_seen)
        export_weights(folder / f"{kind}.safetensors", state.space.views(values), record)
    return folder / "ema.safetensors"
