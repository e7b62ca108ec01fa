"""A source of your own in the loader: the wide images of a folder, their captions in lower case.

python image_source.py FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data import DataConfig, ImageFetcher, Loader, Sample, Source, Subset, make_order, open_source


class WideImages(Subset):
    """Takes what it does not change from another source. `data.Source` lists all that a source has."""

    def __init__(self, source: Source) -> None:
        height, width = source.sizes(np.arange(len(source))).T
        super().__init__(source, np.flatnonzero(width > height))
        self.digest += "-lower"  # a checkpoint knows its data by the digest

    def captions(self, sample_id: int) -> tuple[str, ...]:
        return tuple(caption.lower() for caption in super().captions(sample_id))

    def caption_bytes(self, sample_ids: NDArray[np.int64]) -> list[bytes]:
        return [caption.encode() for each in sample_ids.tolist() for caption in self.captions(each)]

    def sample(self, sample_id: int) -> Sample:
        return replace(super().sample(sample_id), captions=self.captions(sample_id))


if __name__ == "__main__":
    config = DataConfig(path=Path(sys.argv[1]), resolution=64, caption_drop=0)
    source = WideImages(open_source(Path(sys.argv[1])))
    order, fetcher = make_order(source, config, seed=0, global_batch=2), ImageFetcher(source, config, seed=0)
    with Loader(source, fetcher, config, order, rank=0, world_size=1, start_samples_seen=0) as batches:
        batch = next(batches)  # a trainer takes it from here: `TrainingBatches(config, source, ...)`
    print(len(source), batch.images.shape, sorted(batch.captions))
