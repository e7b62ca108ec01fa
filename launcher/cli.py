"""vpred-launch run | plan | check | doctor | submit | cancel | serve | status | logs | export | ranktable | schema."""

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from launcher.cluster.config import ClusterConfig
from launcher.commands import cancel, export, logs, ranktable, status, submit
from launcher.contract.command_line import command_line
from launcher.contract.config import ConfigError, schema_json
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.doctor.doctor import examine
from launcher.live import serve
from launcher.planning.job import Job
from launcher.planning.plan import describe
from launcher.planning.trainer import TRAINER, RecipeError, Trainer
from launcher.pods import pod
from launcher.run.run import check_job, load_job, plan_job, run_job
from launcher.run.submitted import STOPPED_EARLY, run_submitted
from launcher.submit.slurm import own_job_id
from launcher.supervision.stop_requests import StoppedBeforeRanksError, stop_requests

logger = logging.getLogger("launcher.cli")  # also where this module is __main__

_HERE = Path(__file__).resolve().parent
# A checkout has a link here to the folder at its top. An installation has the files themselves.
_DEFAULT_CLUSTER = (_HERE / "cluster_configs").resolve() / "local_cpu.yaml"
_DEFAULT_RECIPE = _HERE.parent / "vpred_train" / "recipes" / "tiny_emoji.yaml"
_RUN_DIR = "run directory (default: runs/RECIPE in this directory)"
_LOG_LEVELS = ("debug", "info", "warning", "error")
_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=", re.ASCII)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the present sys.stderr, since a run replaces it (supervision.progress.unheard)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


@command_line(ConfigError)
def main(argv: Sequence[str] | None = None, trainer: Trainer = TRAINER) -> int:
    """Run the command line `argv` (default: this process's) and return its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    strange = [word for word in rest if not _OVERRIDE.match(word)]
    if strange:
        parser.error(f"found {strange[0]!r}: neither an option nor an override section.key=value")
    launcher = logging.getLogger("launcher")
    launcher.handlers[:] = [_StderrHandler()]
    launcher.setLevel(options.log_level.upper())
    try:
        return int(options.command(options, rest, trainer))
    except RecipeError as error:  # the trainer's check has printed it
        return error.exit_code


def _run(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    in_job = options.submitted or own_job_id(environment()) is not None
    with stop_requests(in_job=in_job, ranks_may_run=False) as stop:
        if options.submitted and (overrides or options.serve or options.run_dir is None):
            raise ConfigError("--submitted: takes --run-dir alone (the job's documents lie in RUN/submit)")
        try:
            if options.submitted:
                return run_submitted(options.run_dir, trainer, stop)
            listen = options.serve if options.serve is None else serve.checked_listen(options.serve)
            return run_job(_job(options, overrides, trainer, try_mpi=True), stop, options.stream, listen).exit_code
        except StoppedBeforeRanksError:
            logger.warning("%s", STOPPED_EARLY)
            return ExitCode.PREEMPTED


def _plan(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    plan = plan_job(_job(options, overrides, trainer))
    print(plan.to_json() if options.json else describe(plan), end="" if options.json else "\n")
    return ExitCode.OK


def _check(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    findings = check_job(_job(options, overrides, trainer, try_mpi=True))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(*findings, sep="\n")
    failed = any(finding.severity == "error" for finding in findings)
    return ExitCode.BAD_CONFIG if failed else ExitCode.OK


def _doctor(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    run_dir = options.run_dir or Path("runs") / "doctor" / time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    job = load_job(options.cluster, options.recipe, run_dir, overrides, trainer, try_mpi=True, data=False)
    return examine(job, options.json)


def _schema(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    print(schema_json(ClusterConfig))
    return ExitCode.OK


def _job(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer, *, try_mpi: bool = False) -> Job:
    return load_job(
        options.cluster,
        options.recipe,
        options.run_dir,
        overrides,
        trainer,
        profiled_steps=options.profile,
        try_mpi=try_mpi,
    )


def _steps(text: str) -> int:
    """Parse a number of steps. Raises ValueError: for anything but a whole number from 0 up."""
    if (steps := int(text)) < 0:
        raise ValueError(text)
    return steps


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpred-launch", description=__doc__, allow_abbrev=False)
    parser.set_defaults(log_level="info")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _job_command(commands, "run", _run, "check, plan, start the workers and watch them; run again to resume")
    text = "in a job of `submit`: run what lies in RUN/submit, and put the job back into the queue where that helps"
    run.add_argument("--submitted", action="store_true", help=text)
    run.add_argument(
        "--stream", metavar="RANKS", help="show the logs of these ranks as they grow: all, or a list such as 0,4-7"
    )
    text = "serve the run's live page and metrics while it runs"
    run.add_argument(
        "--serve",
        nargs="?",
        const=serve.DEFAULT_LISTEN,
        metavar="ADDRESS:PORT",
        help=f"{text} (without a value: {serve.DEFAULT_LISTEN})",
    )
    plan = _job_command(commands, "plan", _plan, "show what run would do, without writing anything")
    text = "check for anything that would make run fail; exit code 2 if there is anything"
    check = _job_command(commands, "check", _check, text)
    for parser_of_run in (run, plan, check):
        text = "record N steps of each rank with MindSpore's profiler, on accelerator ascend; default: 0"
        parser_of_run.add_argument("--profile", type=_steps, default=0, metavar="N", help=text)
    text = "start all ranks, try on each machine what training needs, report findings; exit code 1 if there are any"
    folder = "folder to make for logs (default: runs/doctor/TIME in this directory)"
    doctor = _job_command(commands, "doctor", _doctor, text, folder)
    for reading in (plan, check, doctor):
        reading.add_argument("--json", action="store_true", help="for programs")
    text = "hand a run over to the scheduler that the cluster file names; prints the job and the run directory"
    submit.add_options(_job_command(commands, "submit", submit.submit, text))
    cancel.add_command(commands)
    ranktable.add_commands(commands)
    status.add_command(commands)
    logs.add_command(commands)
    export.add_command(commands)
    serve.add_command(commands)
    pod.add_command(commands)
    schema = commands.add_parser("schema", help="the JSON Schema of cluster files", allow_abbrev=False)
    schema.set_defaults(command=_schema)
    return parser


def _job_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace, Sequence[str], Trainer], int],
    text: str,
    folder: str = _RUN_DIR,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        allow_abbrev=False,
        usage=f"vpred-launch {name} [options] [section.key=value ...]",
        epilog="section.key=value changes the recipe; cluster.section.key=value changes the cluster file",
    )
    parser.add_argument(
        "--cluster",
        type=Path,
        default=_DEFAULT_CLUSTER,
        metavar="FILE",
        help="cluster file: hosts, devices and how ranks are started",
    )
    parser.add_argument("--recipe", type=Path, default=_DEFAULT_RECIPE, metavar="FILE", help="recipe: what to train")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help=folder)
    text = "lowest level of the launcher's messages on stderr; progress is always shown (default: info)"
    parser.add_argument("--log-level", choices=_LOG_LEVELS, default="info", help=text)
    parser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
