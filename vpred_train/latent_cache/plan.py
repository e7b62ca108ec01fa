"""Plans the entries that a cache lacks of a recipe, and their size on disk. Needs no MindSpore."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import (
    ABSENT,
    KEY,
    Cache,
    CacheSpecs,
    Sample,
    Size,
    Source,
    Table,
    encoded_keys,
    entry_keys,
    image_keys,
    pieces,
)
from vpred_train.config.train import TrainConfig
from vpred_train.latent_cache.requirements import RequiredSamples, required_samples
from vpred_train.prepare.data import OpenedData

FLOAT32_BYTES = 4
NO_SOURCE = -1  # the empty caption's source
NO_SIZE = Size(0, 0)  # of a caption
# One entry to make, of sample `id` of source `of`. `number` says whether the image is mirrored, or which of the
# sample's captions it is. A million of them take 40 MB.
JOB = np.dtype([("high", "u8"), ("low", "u8"), ("of", "i2"), ("id", "i8"), ("number", "i4"), ("size", "i4")])

Jobs = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Task:
    """Describes one entry to make under `key`: of a caption, or of a source's image.

    text: the caption
    flipped: the image is mirrored
    size: size that the image is cropped to
    """

    key: np.void
    text: str = ""
    source: Source | None = None
    sample_id: int = 0
    flipped: bool = False
    size: Size = NO_SIZE

    @property
    def sample(self) -> Sample | None:
        """Return the image's sample, or None for a caption."""
        return self.source.sample(self.sample_id) if self.source else None


@dataclass(frozen=True)
class Work:
    """Holds the entries that a cache lacks. Jobs refer to `sources` and `sizes` by number.

    wanted: number of all entries that the recipe needs
    """

    sources: Sequence[Source]
    sizes: Sequence[Size]
    image_jobs: Jobs
    caption_jobs: Jobs
    wanted: int

    @property
    def count(self) -> int:
        """Return the number of entries to make."""
        return len(self.image_jobs) + len(self.caption_jobs)

    @property
    def images(self) -> list[Task]:
        """List the images to encode. Images of one size are adjacent."""
        return [
            Task(key, "", self.sources[of], sample_id, bool(flipped), self.sizes[size])
            for key, (_, _, of, sample_id, flipped, size) in zip(
                _keys(self.image_jobs), self.image_jobs.tolist(), strict=True
            )
        ]

    @property
    def captions(self) -> list[Task]:
        """List the captions to encode."""
        jobs = zip(_keys(self.caption_jobs), self.caption_jobs.tolist(), strict=True)
        return [
            Task(key, "" if of == NO_SOURCE else self.sources[of].captions(sample_id)[number])
            for key, (_, _, of, sample_id, number, _) in jobs
        ]

    def share(self, rank: int, world_size: int) -> "Work":
        """Return one rank's part."""
        return replace(
            self,
            image_jobs=self.image_jobs[rank::world_size],
            caption_jobs=self.caption_jobs[rank::world_size],
        )

    def nbytes(self, config: TrainConfig) -> int:
        """Return the size of the entries on disk, bytes."""
        model, vae = config.model, config.model.vae
        pixels = np.array([math.prod(size) for size in self.sizes], np.int64)[self.image_jobs["size"]].sum()
        moments = 2 * (vae.latent_channels if vae else 0) * int(pixels) // model.pixels_per_latent**2
        features = model.text_encoder.context_length * model.text_encoder.width
        return FLOAT32_BYTES * (moments + len(self.caption_jobs) * features)


def plan(config: TrainConfig, specs: CacheSpecs, data: OpenedData) -> Work:
    """Find the entries that the recipe's cache lacks. Equal images and equal captions count once."""
    cache = Cache(config.data.cache or Path())
    wanted = list(required_samples(config, data.training, data.held_out))
    sizes = sorted({size for each in wanted for size in each.buckets.sizes})
    images = [jobs for of, each in enumerate(wanted) for jobs in _image_jobs(specs, each, of, sizes)]
    captions = [jobs for of, each in enumerate(wanted) for jobs in _caption_jobs(specs, each.source, of)]
    nothing = np.zeros(1, np.int64)
    captions.append(_jobs(entry_keys(specs.text, [""]), NO_SOURCE, nothing, nothing))
    image_jobs, caption_jobs = (_once(np.concatenate(jobs)) for jobs in (images, captions))
    image_jobs = image_jobs[np.argsort(image_jobs["size"], kind="stable")]
    return Work(
        [each.source for each in wanted],
        sizes,
        _lacking(image_jobs, cache.table(*map(specs.moments_at, sizes))),
        _lacking(caption_jobs, cache.table(specs.text)),
        wanted=len(image_jobs) + len(caption_jobs),
    )


def _image_jobs(specs: CacheSpecs, wanted: RequiredSamples, of: int, sizes: Sequence[Size]) -> list[Jobs]:
    found = []
    for ids in pieces(len(wanted.source)):
        numbers, hashes = wanted.buckets.number_of(ids), wanted.source.content_hashes(ids)
        for number, size in enumerate(wanted.buckets.sizes):
            own = numbers == number
            for flipped in (False, True) if wanted.mirrored else (False,):
                keys = image_keys(specs, hashes[own], size, flipped)
                found.append(_jobs(keys, of, ids[own], np.full(len(keys), flipped), sizes.index(size)))
    return found


def _caption_jobs(specs: CacheSpecs, source: Source, of: int) -> list[Jobs]:
    found = []
    for ids in pieces(len(source)):
        counts = source.caption_counts(ids)
        numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found.append(_jobs(encoded_keys(specs.text, source.caption_bytes(ids)), of, np.repeat(ids, counts), numbers))
    return found


def _jobs(keys: NDArray[Any], of: int, ids: NDArray[np.int64], numbers: NDArray[Any], size: int = 0) -> Jobs:
    jobs = np.empty(len(keys), JOB)
    jobs["high"], jobs["low"] = keys["high"], keys["low"]
    jobs["of"], jobs["id"], jobs["number"], jobs["size"] = of, ids, numbers, size
    return jobs


def _keys(jobs: Jobs) -> NDArray[Any]:
    return jobs[["high", "low"]].astype(KEY)


def _once(jobs: Jobs) -> Jobs:
    """Keep the first job of each key, in the order of the jobs."""
    order = np.lexsort((jobs["low"], jobs["high"]))
    keys = jobs[["high", "low"]][order]
    return jobs[np.sort(order[np.concatenate([[True], keys[1:] != keys[:-1]])])]


def _lacking(jobs: Jobs, table: Table) -> Jobs:
    return jobs[table.find(jobs) == ABSENT]
