"""vpred-launch run | plan | check | submit | cancel | status | logs | ranktable | schema."""

import argparse
import errno
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from launcher.cluster.config import ClusterConfig
from launcher.commands import cancel, logs, ranktable, status, submit
from launcher.contract.config import ConfigError, schema_json
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
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
_LOG_LEVELS = ("debug", "info", "warning", "error")
_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=", re.ASCII)
_NO_FAULT_OF_OURS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
# A shell's code for a command ended by Ctrl-C; no worker was running yet.
_INTERRUPTED = 130


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the present sys.stderr, since a run replaces it (supervision.progress.unheard)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


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
        code = int(options.command(options, rest, trainer))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        logger.error("%s", error)
        return ExitCode.BAD_CONFIG
    except BrokenPipeError:
        # `| head` closed the pipe. Buffered output must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _NO_FAULT_OF_OURS:
            raise
        logger.error("%s: %s", error.filename or "a file", error.strerror)
        return ExitCode.BAD_CONFIG
    except RecipeError as error:
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    in_job = options.submitted or own_job_id(environment()) is not None
    with stop_requests(in_job=in_job, ranks_may_run=False) as stop:
        if options.submitted and (overrides or options.run_dir is None):
            raise ConfigError("--submitted: takes --run-dir alone (the job's documents lie in RUN/submit)")
        try:
            if options.submitted:
                return run_submitted(options.run_dir, trainer, stop)
            return run_job(_job(options, overrides, trainer, try_mpi=True), stop, options.stream).exit_code
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


def _schema(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    print(schema_json(ClusterConfig))
    return ExitCode.OK


def _job(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer, *, try_mpi: bool = False) -> Job:
    return load_job(options.cluster, options.recipe, options.run_dir, overrides, trainer, try_mpi=try_mpi)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpred-launch", description=__doc__, allow_abbrev=False)
    parser.set_defaults(log_level="info")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _job_command(commands, "run", _run, "check, plan, start the workers and watch them; run again to resume")
    text = (
        "in a job of `submit`: take the documents in RUN/submit, and put the job back into the queue where that helps"
    )
    run.add_argument("--submitted", action="store_true", help=text)
    run.add_argument("--stream", metavar="RANKS", help="show these ranks' logs as they grow: all, or as in 0,4-7")
    for name, command, text in (
        ("plan", _plan, "show what run would do; writes nothing"),
        ("check", _check, "look for what would make run fail; exit code 2 if anything would"),
    ):
        _job_command(commands, name, command, text).add_argument("--json", action="store_true", help="for programs")
    text = "hand a run over to the scheduler that the cluster file names; prints the job and the run directory"
    submit.add_options(_job_command(commands, "submit", submit.submit, text))
    cancel.add_command(commands)
    ranktable.add_commands(commands)
    status.add_command(commands)
    logs.add_command(commands)
    pod.add_command(commands)
    schema = commands.add_parser("schema", help="the JSON Schema of cluster files", allow_abbrev=False)
    schema.set_defaults(command=_schema)
    return parser


def _job_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace, Sequence[str], Trainer], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        allow_abbrev=False,
        usage=f"vpred-launch {name} [options] [section.key=value ...]",
        epilog="section.key=value changes the recipe; cluster.section.key=value changes the cluster file",
    )
    parser.add_argument("--cluster", type=Path, default=_DEFAULT_CLUSTER, metavar="FILE", help="where to run")
    parser.add_argument("--recipe", type=Path, default=_DEFAULT_RECIPE, metavar="FILE", help="what to train")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/RECIPE in this directory")
    text = "the least urgent of the launcher's messages to show on stderr; progress is shown anyway; default: info"
    parser.add_argument("--log-level", choices=_LOG_LEVELS, default="info", help=text)
    parser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
