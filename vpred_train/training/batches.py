"""Makes this rank's share of every global batch, from any point of a run on."""

import logging
from collections.abc import Sequence

from data import Fetcher, Loader, Source, make_order
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective

logger = logging.getLogger(__name__)

WORKER = ("-P", "-m", "vpred_train.entry", "data.loading.worker")


class TrainingBatches:
    """Knows the order of a run's samples, and loads them.

    source: samples to train on
    fetcher: turns samples into arrays
    """

    def __init__(self, config: TrainConfig, source: Source, fetcher: Fetcher, collective: Collective) -> None:
        self.config, self.source, self.fetcher = config.data, source, fetcher
        self.rank, self.world_size = collective.rank, collective.world_size
        self.order = make_order(source, config.data, config.seed, config.global_batch)

    def after(self, samples_seen: int) -> Loader:
        """Load this rank's batches from `samples_seen` on. The loader is a context manager."""
        return Loader(
            self.source,
            self.fetcher,
            self.config,
            self.order,
            rank=self.rank,
            world_size=self.world_size,
            start_samples_seen=samples_seen,
            worker=WORKER,
        )

    def next_size(self, samples_seen: int) -> tuple[int, int]:
        """Return the size in pixels of the images of the batch that follows `samples_seen`."""
        return self.order.share(samples_seen, 0, 1).size

    def origins(self, sample_ids: Sequence[int]) -> str:
        """Name samples by the rows of the table that they come from."""
        return ", ".join(f"{each} ({self.source.sample(each).origin})" for each in sample_ids)

    def log_shapes_and_mixture(self) -> None:
        """Log the sizes of the batches where there are several, and each folder's part of an epoch."""
        shapes, source = self.order.buckets, self.source
        if len(shapes.sizes) > 1:
            logger.info("%d graph shapes, each compiled at its first batch: %s", len(shapes.sizes), shapes.describe())
        if len(source.counts) > 1:
            folders = zip(self.config.folders, source.counts, self.order.taken_per_epoch, strict=True)
            parts = (f"{taken} of {each.path} (has {count})" for each, count, taken in folders)
            logger.info("an epoch takes %s", ", ".join(parts))
