"""Hands a submission over to its scheduler: all files are written and the job is queued, or nothing has changed."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import RunDir
from launcher.submit.scheduler import Rendered, Scheduler, Submission
from launcher.submit.submitted import Submitted, first_record, read_submitted


@dataclass(frozen=True)
class Order:
    """Holds what is handed over.

    documents: path -> text of the files that the jobs read, besides those of the scheduler
    runs: names of the runs of a sweep, empty without one
    jobs: number of jobs, more than one for a chain
    """

    submission: Submission
    rendered: Rendered
    documents: Mapping[Path, str]
    runs: tuple[str, ...] = ()
    jobs: int = 1

    @property
    def files(self) -> dict[Path, str]:
        return {**self.documents, **self.rendered.files}


def hand_over(order: Order, name: str, scheduler: Scheduler) -> tuple[str, ...]:
    """Write the files and submit. Returns the ids of the jobs, the first to run first.

    name: of the scheduler

    Raises ConfigError: when the scheduler refuses or the run directory cannot be written; nothing is changed then.
    """
    scheduler.check(order.submission, order.rendered)
    run = order.submission.run
    records = {run: order.runs} | {RunDir(run.root / each): () for each in order.runs}
    markers = [each.submit.cancelled for each in records]
    paths = [*order.files, *(each.submit.submitted_json for each in records), *markers]
    with _undone(run, paths):
        for marker in markers:
            marker.unlink(missing_ok=True)
        for path, text in order.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text)
        # The records come first: the job may begin before this process knows its id.
        for each, sweep in records.items():
            _first(order, name, sweep).write(each.submit.submitted_json)
        ids = [scheduler.submit(order.submission, order.rendered)]
    try:
        ids += [scheduler.submit(order.submission, order.rendered) for _ in range(order.jobs - 1)]
    finally:
        for number, each in enumerate(records):
            _keep_ids(each, ids if each is run else [f"{ids[0]}_{number - 1}"])
    return tuple(ids)


def _first(order: Order, name: str, sweep: tuple[str, ...]) -> Submitted:
    text = "".join(order.rendered.files.values())
    digest = hashlib.sha256(text.encode()).hexdigest()
    cluster, command = order.submission.cluster.name, order.rendered.argv
    return first_record(name, cluster, command, digest, sweep, is_chain=order.jobs > 1)


def _keep_ids(run: RunDir, ids: list[str]) -> None:
    """Add the ids to the record. A job that has begun may have added its own."""
    record = read_submitted(run)
    record.changed(job_ids=tuple(dict.fromkeys([*ids, *record.job_ids]))).write(run.submit.submitted_json)


@contextmanager
def _undone(run: RunDir, paths: list[Path]) -> Iterator[None]:
    """Put the files back as they were when the block raises, and remove the folders that it made."""
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    made = {folder for path in paths for folder in path.parents if not folder.exists()}
    try:
        yield
    except BaseException as error:
        for path, content in before.items():
            with suppress(OSError):
                path.unlink(missing_ok=True) if content is None else write_atomic(path, content)
        for folder in sorted(made, key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ConfigError(f"{error.filename or run.root}: cannot be written ({error.strerror})") from None
        raise
