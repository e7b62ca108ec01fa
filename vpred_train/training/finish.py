"""Ends a run: samples every prompt with the EMA weights, compares, exports, reports, and marks the run complete."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import Sample, load_centred
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import RunDir, Summary
from monitoring import History
from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.models.build import complete
from vpred_train.sampling.gallery import evenly_spread, nearest_real, write_grids
from vpred_train.sampling.images import png_of
from vpred_train.sampling.pipeline import NotFiniteError, TextToImage, generate_shared, require_finite_images
from vpred_train.training.export import export
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.report import write_report
from vpred_train.training.trainer import Trainer

logger = logging.getLogger(__name__)


def finish(config: TrainConfig, trainer: Trainer, run: RunDir, hooks: Sequence[Hook]) -> None:
    """Sample each rank's share of the prompts, and write the results on rank 0, `summary.json` last."""
    if config.final_samples:
        complete(config, trainer.networks)
    for hook in hooks:
        hook.on_phase("sampling", trainer.steps_done, trainer.samples_seen)
    samples = evenly_spread(trainer.source, config.final_samples)
    sampled = sample_prompts(config, trainer, samples) if samples else np.empty(0, np.float32)
    writes = trainer.collective.rank == 0
    ema_path = export(config, trainer.networks, trainer.state, run.weights, writes)
    if trainer.collective.rank == 0:
        write_results(config, trainer, run, samples, sampled, ema_path)
    trainer.collective.barrier()
    for hook in hooks:
        hook.on_phase("done", trainer.steps_done, trainer.samples_seen)


def sample_prompts(config: TrainConfig, trainer: Trainer, samples: Sequence[Sample]) -> FloatArray:
    """Sample an image for each sample's prompt with the average of `ema.use`: (n, 3, R, R), the same on all ranks.

    The seeds count up from `sampling.seed`.
    """
    resolution = config.data.resolution
    pipeline = TextToImage(trainer.networks, config.model, config.diffusion, config.sampling, resolution, resolution)
    seeds = range(config.sampling.seed, config.sampling.seed + len(samples))
    with trainer.state.showing(config.ema.used):
        return generate_shared(pipeline, [sample.text for sample in samples], seeds, trainer.collective)


def check_samples(sampled: FloatArray, ema_path: Path) -> None:
    """Raise NotFiniteError with the remedy for the end of a run when an image is not finite."""
    try:
        require_finite_images(sampled)
    except NotFiniteError as error:
        raise NotFiniteError(
            f"final samples: {error}; the weights are in {ema_path}, and final_samples=0 ends the run without samples"
        ) from None


def write_results(
    config: TrainConfig,
    trainer: Trainer,
    run: RunDir,
    samples: Sequence[Sample],
    sampled: FloatArray,
    ema_path: Path,
) -> None:
    """Write images, grids, report and summary.

    Raises NotFiniteError: when an image is not finite; the weights are exported already.
    """
    for folder in (run.samples, run.grids):
        folder.mkdir(exist_ok=True)
    retrieval, grids = None, []
    if samples:
        check_samples(sampled, ema_path)
        for number, image in enumerate(sampled):
            write_atomic(run.samples / f"{number:05d}.png", png_of(image))
        real = load_centred(samples, config.data)
        nearest = nearest_real(sampled, real)
        retrieval = float(np.mean(nearest == np.arange(len(samples))))
        grids = write_grids(run.grids, [sample.text for sample in samples], real, sampled, nearest)
        logger.info("retrieval: %.1f %% of %d prompts", 100 * retrieval, len(samples))
    history = History(run.metrics_jsonl).read()
    summary = Summary(
        steps=trainer.steps_done,
        samples_seen=trainer.samples_seen,
        final_loss=history[-1]["loss"],
        seconds=sum(record["step_seconds"] for record in history),
        retrieval=retrieval,
        report=run.report_html.relative_to(run.root),
        samples=run.samples.relative_to(run.root),
        weights=ema_path.relative_to(run.root),
    )
    write_report(
        config, run, summary, history, grids, trainer.collective.world_size, trainer.state.progress.recipe_changes
    )
    summary.write(run.summary_json)
