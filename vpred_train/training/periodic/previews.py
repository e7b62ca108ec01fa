"""Writes grids of samples while a run trains. Prompts and seeds stay the same, so that grids can be compared."""

import logging
from pathlib import Path

from data import Source
from launcher.contract.files import write_atomic
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.engine.protocol import TrainingState
from vpred_train.models.networks import Networks
from vpred_train.sampling.gallery import evenly_spread
from vpred_train.sampling.images import contact_sheet
from vpred_train.sampling.pipeline import NotFiniteError, TextToImage, generate_shared
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.periodic.periodic import Boundary, Observer

logger = logging.getLogger(__name__)


class Previews(Observer):
    """Samples the prompts on all ranks, each its share; rank 0 writes `folder`/step-N.png.

    captioned: images whose captions are the prompts when the recipe gives none.
    """

    cause = "preview"

    def __init__(
        self,
        config: TrainConfig,
        networks: Networks,
        state: TrainingState,
        captioned: Source,
        collective: Collective,
        folder: Path,
    ) -> None:
        if config.previews is None:
            raise ValueError("the recipe has no previews")
        super().__init__(config.previews.every_samples)
        self.state, self.collective, self.folder, self.average = state, collective, folder, config.ema.used
        captions = (sample.text for sample in evenly_spread(captioned, config.previews.count or 0))
        self.prompts = config.previews.prompts or tuple(captions)
        self.seeds = range(config.previews.seed, config.previews.seed + len(self.prompts))
        resolution = config.data.resolution
        self.pipeline = TextToImage(networks, config.model, config.diffusion, config.sampling, resolution, resolution)

    def observe(self, now: Boundary, hooks: Hook) -> None:
        """Sample and write the grid. There are no numbers to report to the hooks."""
        with self.state.showing(self.average):
            images = generate_shared(self.pipeline, self.prompts, self.seeds, self.collective)
        if self.collective.rank != 0:
            return
        try:
            page = contact_sheet(images)
        except NotFiniteError as error:  # a failed preview never ends the run
            logger.error("step %d: no preview: %s", now.step, error)
            return
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.folder / f"step-{now.step}.png", page)
