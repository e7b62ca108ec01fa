"""Opens the data of a recipe, and separates the held-out images."""

from dataclasses import dataclass
from pathlib import Path

from data import DataConfig, DataError, Folder, Source, hold_out, image_count, join, numbers_in_both, open_source
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective

PROBED_IMAGES = 4  # the first images, on which the probe measures what pretrained weights predict


@dataclass(frozen=True)
class OpenedData:
    """Holds the opened samples.

    training: samples to train on
    held_out: samples held out by `validation`
    left_out: (origin, reason) of each row that is left out
    """

    training: Source
    held_out: Source | None
    left_out: tuple[tuple[str, str], ...]

    @property
    def held_out_digest(self) -> str:
        """Return the digest of the held-out samples, or "" when there are none."""
        return "" if self.held_out is None else self.held_out.digest


def open_data(config: TrainConfig, collective: Collective | None = None) -> OpenedData:
    """Open the data, and find all bad rows. Rank 0 looks at new files, and the other ranks wait for its index.

    Raises DataError: when the data cannot be read, or the held-out images are too few or are trained on.
    """
    source = join([open_checked(config.data, each.path, collective) for each in config.data.folders])
    validation = config.validation
    if validation is None:
        return OpenedData(source, None, tuple(source.bad))
    if validation.path is None:
        training, held_out = hold_out(source, validation.seed, share=validation.share, count=validation.count)
        if image_count(held_out) < 2:
            raise DataError(f"{held_out.name}: only 1 image is held out; give 2 or more, which have a standard error")
        return OpenedData(training, held_out, tuple(source.bad))
    separate = open_checked(config.data, validation.path, collective)
    both = numbers_in_both(separate, source)
    if len(both):
        first = separate.sample(int(both[0])).origin
        raise DataError(
            f"{validation.path}: {len(both)} of its images are trained on, such as {first}; give other images"
        )
    if image_count(separate) < 2:
        raise DataError(f"{separate.name}: only 1 image is held out; give 2 or more, which have a standard error")
    return OpenedData(source, separate, (*source.bad, *separate.bad))


def open_checked(config: DataConfig, path: Path, collective: Collective | None) -> Folder:
    """Open a folder by its index, which rank 0 brings up to date.

    Raises DataError: when the folder cannot be read, or on another rank differs from rank 0's.
    """
    if collective is None:
        return open_source(path, config.bad_samples)
    folder = open_source(path, config.bad_samples) if collective.rank == 0 else None
    digest = collective.broadcast_object(folder.index.digest if folder else None)
    if folder is None:
        folder = open_source(path, config.bad_samples, checked=digest)
    if folder.index.digest != digest:
        raise DataError(
            f"{path}: rank {collective.rank} sees other images or captions there than rank 0; copy them again"
        )
    return folder
