"""Looks at every image once: whether it decodes, its size, and the hash of its content."""

import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import xxhash
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data.files import reason_of, shortened
from data.images.decode import FORMATS, decode_sized
from data.images.size import Size
from data.sources.rows import Place, Reader

Item = TypeVar("Item")
Result = TypeVar("Result")
PER_TASK = 64
FEW = 2048  # below this number of items, starting processes takes longer than it saves
THREADS = 4
DRAFT_PX = 32  # at any scale, a JPEG's data are read to the end
POLL_S = 2.0
NO_HASH, NO_SIZE = bytes(16), Size(0, 0)


@dataclass(frozen=True)
class Look:
    """Holds what was found about an image.

    size: of the upright image.
    content_hash: xxh3-128 of the encoded image.
    fault: what is wrong; "" when nothing is.
    """

    size: Size
    content_hash: bytes
    fault: str


def look(read: Reader, place: Place) -> Look:
    """Decode one image to its end. Any error that it raises, out of memory too, is a fault of this image alone."""
    content_hash, name = NO_HASH, shortened(place.path.name)
    try:
        content = read(place.path, place.offset, place.length)
        content_hash = xxhash.xxh3_128_digest(content)
        _, size = decode_sized(content, at_least=Size(DRAFT_PX, DRAFT_PX))
    except FileNotFoundError:
        return Look(NO_SIZE, content_hash, f"{name} does not exist")
    except UnidentifiedImageError:
        return Look(NO_SIZE, content_hash, f"{name} is no image of a known format (known: {', '.join(FORMATS)})")
    except Exception as error:
        return Look(NO_SIZE, content_hash, f"{name} is no readable image ({reason_of(error)})")
    return Look(size, content_hash, "")


def look_at_all(read: Reader, places: Sequence[Place], workers: int | None = None) -> list[Look]:
    """Look at the image at each place."""
    return in_parallel(partial(_look_at, read), places, PER_TASK, "checking images", workers)


def _look_at(read: Reader, places: Sequence[Place]) -> list[Look]:
    return [look(read, place) for place in places]


def in_parallel(
    work: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    per_task: int,
    doing: str,
    workers: int | None = None,
) -> list[Result]:
    """Run `work` on slices of the items, and return all results in order.

    Many items are processed in `workers` processes (default: one per core), few in threads. A terminal shows a progress
    bar after two seconds.
    """
    tasks = [items[start : start + per_task] for start in range(0, len(items), per_task)]
    found: list[Result] = []
    with (
        _executor(len(items), workers or os.cpu_count() or 1) as executor,
        warnings.catch_warnings(),
        tqdm(total=len(items), desc=doing, delay=2, disable=None) as bar,
    ):
        _be_quiet()
        for results in executor.map(work, tasks):
            found += results
            bar.update(len(results))
    return found


def _be_quiet() -> None:
    """Silence Pillow's warnings, which name no file: about sizes that `decode` refuses, and about odd metadata."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _executor(items: int, workers: int) -> Executor:
    if items < FEW or workers == 1:
        return ThreadPoolExecutor(THREADS)
    # Spawn, since the process may run MPI and MindSpore, whose threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),))


def _start_worker(parent_pid: int) -> None:
    """Make the worker end soon after its parent, which may be killed."""
    _be_quiet()

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
