"""Implements `vpred-launch submit`: hands a run over to a scheduler."""

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.cluster.submit import SubmitConfig
from launcher.contract.config import ConfigError, dump_yaml
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from launcher.planning.job import split_overrides
from launcher.planning.trainer import Trainer, is_complete, resolve_recipe
from launcher.records.run_lock import is_locked
from launcher.submit.handover import Order, hand_over
from launcher.submit.jobs import active_jobs, end_of, jobs_before
from launcher.submit.scheduler import Submission
from launcher.submit.schedulers import SCHEDULERS
from launcher.submit.submitted import Submitted
from launcher.submit.sweep import sweep_overrides

_POLL_S = 5.0
_MOST_FAILURES = 60


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `submit` takes besides the two documents."""
    parser.add_argument("--dry-run", action="store_true", help="print the files and the command; write nothing")
    text = "start after this run, or this job, has ended with success; may be given again"
    parser.add_argument("--after", action="append", default=[], metavar="RUN|JOB", help=text)
    parser.add_argument("--wait", action="store_true", help="wait for the end of the run, and return its exit code")
    text = "submit N jobs that go on one after the other, for sites that forbid requeueing"
    parser.add_argument("--chain", type=int, default=1, metavar="N", help=text)
    text = "one run for each value of this key of the recipe, as RUN/0000 and so on; again for combinations"
    parser.add_argument("--sweep", action="append", default=[], metavar="KEY=A,B", help=text)
    parser.add_argument("--json", action="store_true", help="for programs")


def submit(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    ours, theirs = split_overrides(overrides)
    cluster = load_cluster(options.cluster, ours)
    settings = _settings(options, cluster)
    run = RunDir(_run_dir(options))
    if not options.dry_run:
        _check_nothing_runs(run)
    scheduler = SCHEDULERS[settings.scheduler]
    more = sweep_overrides(options.sweep) if options.sweep else []
    parts = {RunDir(run.root / f"{number:04d}"): each for number, each in enumerate(more)} or {run: []}
    recipes = {
        each: resolve_recipe(
            trainer, options.recipe, cluster.device_options, cluster.world_size, each, [*theirs, *swept],
            data=scheduler.sees_our_files,
        )
        for each, swept in parts.items()
    }  # fmt: skip
    if all(is_complete(each, recipe) is not None for each, recipe in recipes.items()):
        done = f"{run.root} is already complete; give another --run-dir to train again"
        print(_answer((), run) if options.json else done)
        return ExitCode.OK
    submission = Submission(
        cluster=cluster,
        settings=settings,
        train_yaml=next(iter(recipes.values())),
        run=run,
        program=_program(trainer),
        after=tuple(job for each in options.after for job in jobs_before(each, settings.scheduler)),
        singleton=options.chain > 1,
        tasks=len(more) or None,
    )
    documents = {each.submit.cluster_yaml: dump_yaml(cluster) for each in recipes}
    documents |= {each.submit.recipe_yaml: recipe for each, recipe in recipes.items()}
    names = tuple(each.root.name for each in parts) if more else ()
    order = Order(submission, scheduler.render(submission), documents, names, options.chain)
    if options.dry_run:
        _show(order, as_json=options.json)
        return ExitCode.OK
    ids = hand_over(order, settings.scheduler, scheduler)
    print(_answer(ids, run) if options.json else f"{' '.join(ids)} {run.root}", flush=True)
    return _wait(run) if options.wait else ExitCode.OK


def _answer(ids: Sequence[str], run: RunDir) -> str:
    return json.dumps({"jobs": ids, "run": str(run.root)})


def _program(trainer: Trainer) -> tuple[str, ...]:
    """Return the argv of vpred-launch for the nodes. Raises ConfigError: when it is not installed."""
    if shutil.which(trainer.launch[0]) is None:
        raise ConfigError(f"{trainer.launch[0]}: is not there", "install this software: pip install .")
    return trainer.launch


def _check_nothing_runs(run: RunDir) -> None:
    """Raise ConfigError: when a job of the run waits or runs, or a launcher uses it."""
    before = Submitted.read(run.submit.submitted_json)
    if before is not None and (active := active_jobs(before)):
        found = f"{run.root}: job {active[0].job_id} is {active[0].state}"
        raise ConfigError(found, f"wait for it, or cancel it first: vpred-launch cancel {run.root}")
    if is_locked(run.lock):
        raise ConfigError(f"{run.root}: in use by another launcher; wait for it or give another --run-dir")


def _settings(options: argparse.Namespace, cluster: ClusterConfig) -> SubmitConfig:
    """Return the section `submit`. Raises ConfigError: when it is absent or does not fit the options."""
    if cluster.submit is None:
        found = f"{options.cluster}: submit: found nothing (submit needs this section)"
        raise ConfigError(found, "take cluster_configs/slurm_cpu_2x1.yaml as an example")
    if options.chain < 1:
        raise ConfigError(f"--chain: found {options.chain} (must be 1 or more)")
    if cluster.submit.scheduler == "kubernetes":
        for option, found in (("--after", options.after), ("--chain", options.chain > 1), ("--sweep", options.sweep)):
            if found:
                raise ConfigError(f"{option}: remove it (Kubernetes has no order of jobs; submit them one by one)")
    if options.chain > 1 and options.sweep:
        raise ConfigError("--chain: found it with --sweep (a sweep is one array of jobs; leave one of them out)")
    return cluster.submit


def _run_dir(options: argparse.Namespace) -> Path:
    """Return the run directory. Raises ConfigError: when no script could name it."""
    given: Path | None = options.run_dir
    if given is not None and not given.is_absolute():
        raise ConfigError(f"--run-dir: found {str(given)!r} (give an absolute path, as the nodes see it)")
    root = (given or Path("runs") / options.recipe.stem).absolute()
    if not str(root).isprintable() or "%" in str(root):
        raise ConfigError(f"--run-dir: found {str(root)!r} (give a path without line breaks and without %)")
    return root


def _show(order: Order, *, as_json: bool) -> None:
    """Print what would be written and run."""
    command = order.rendered.argv
    if as_json:
        files = {str(path): text for path, text in order.files.items()}
        print(json.dumps({"files": files, "command": command}, indent=2))
        return
    for path, text in order.files.items():
        print(f"==> {path} <==\n{text}")
    print(f"==> command{f', {order.jobs} times' if order.jobs > 1 else ''} <==\n{shlex.join(command)}")


def _wait(run: RunDir) -> int:
    """Wait for the end of the run, over all its jobs. Ctrl-C ends the wait alone."""
    failures = 0
    while True:
        try:
            if (code := end_of(run)) is not None:
                return code
            failures = 0
        except ConfigError:  # the scheduler may be busy, or be restarted
            failures += 1
            if failures == _MOST_FAILURES:
                raise
        time.sleep(_POLL_S)
