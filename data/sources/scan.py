"""Every image looked at once: does it decode, how large is it, what is its content's hash?"""

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
from data.sources.rows import Place, Reader

Item = TypeVar("Item")
Result = TypeVar("Result")
PER_TASK = 64
FEW = 2048  # items for which starting processes takes longer than it saves
THREADS = 4
DRAFT_PX = 32  # a JPEG's data are read to their end at any scale
POLL_S = 2.0
NO_HASH = bytes(16)


@dataclass(frozen=True)
class Look:
    """What was found: upright size in pixels, xxh3-128 of the bytes, and what is wrong, "" when nothing is."""

    width: int
    height: int
    content_hash: bytes
    fault: str


def look(read: Reader, place: Place) -> Look:
    """Decode one image to its end. Whatever an image raises, out of memory too, is its own fault and nobody else's."""
    content_hash, name = NO_HASH, shortened(place.path.name)
    try:
        content = read(place.path, place.offset, place.length)
        content_hash = xxhash.xxh3_128_digest(content)
        _, (width, height) = decode_sized(content, at_least=(DRAFT_PX, DRAFT_PX))
    except FileNotFoundError:
        return Look(0, 0, content_hash, f"{name} does not exist")
    except UnidentifiedImageError:
        return Look(0, 0, content_hash, f"{name} is no image of a known format (known: {', '.join(FORMATS)})")
    except Exception as error:
        return Look(0, 0, content_hash, f"{name} is no readable image ({reason_of(error)})")
    return Look(width, height, content_hash, "")


def look_at_all(read: Reader, places: Sequence[Place], workers: int | None = None) -> list[Look]:
    """What is found at each place."""
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
    """`work` on slices of the items, in `workers` processes (default: one a core) where there are many; a bar on a
    terminal after two seconds."""
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
    """No warnings of what `decode` refuses, nor of odd metadata, which name no file."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _executor(items: int, workers: int) -> Executor:
    if items < FEW or workers == 1:
        return ThreadPoolExecutor(THREADS)
    # Spawned: the process may have MPI and MindSpore in it, whose threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),))


def _start_worker(parent_pid: int) -> None:
    """Gone soon after the parent, which may be killed."""
    _be_quiet()

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
