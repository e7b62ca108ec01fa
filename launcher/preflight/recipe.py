"""Runs the trainer's check of the recipe on every other host: what it reads must be readable and complete there."""

import sys
import tempfile
from collections.abc import Mapping

from launcher.contract.exit_codes import ExitCode
from launcher.planning.job import Job
from launcher.preflight.hosts import as_of_spare, crossing_words, nearest
from launcher.processes.ssh import Answer, Remote, is_here
from launcher.records.finding import Finding

# A host with a local copy of the data checks each image the first time.
_TIMEOUT_S = 3600.0


def check_recipe(job: Job, env: Mapping[str, str], remote: Remote) -> list[Finding]:
    """Return a finding for each host whose trainer refuses the resolved recipe, or one finding that all accept it.

    There is none for a cluster of this host alone, where the recipe has been checked already. The hosts must see the
    run directory. The check leaves no file behind.
    """
    cluster = job.cluster
    spare = {host.address for host in cluster.restart.spare_hosts}
    others = [host.address for host in cluster.known_hosts if not is_here(host.address)]
    if not others:
        return []
    with tempfile.NamedTemporaryFile("w", dir=nearest(job.run.root), prefix=".preflight-", suffix=".yaml") as recipe:
        recipe.write(job.train_yaml)
        recipe.flush()
        argv = [*crossing_words(cluster, env), *job.trainer.argv, "--check", "--recipe", recipe.name]
        argv += [*cluster.device_options, "--world-size", str(cluster.world_size)]
        answers = remote.run({host: argv for host in others}, _TIMEOUT_S)
        refused = {host: _refused(answers[host], recipe.name) for host in others}
        # An unreachable spare host has been reported already.
        refused = {host: each for host, each in refused.items() if not (host in spare and answers[host].unreachable)}
    findings = [as_of_spare(each) if host in spare else each for host, each in refused.items() if each is not None]
    return findings or [Finding("ok", "recipe", f"checked on {len(others)} other host(s)")]


def _refused(answer: Answer, recipe: str) -> Finding | None:
    if answer.returncode == ExitCode.OK:
        return None
    if (problem := answer.unreachable) is not None:
        return Finding("error", "recipe", f"{answer.host}: {problem.reason}", problem.remedy)
    if answer.returncode is None:
        found = f"{answer.host}: the trainer's check did not end in {_TIMEOUT_S:.0f} s"
        return Finding("error", "recipe", found, f"try it there: {sys.executable} -m vpred_train --check")
    lines = answer.stderr.strip().splitlines() or [f"the trainer's check ended with exit code {answer.returncode}"]
    # For a user's mistake the first line says all. For an internal error the last line names the exception.
    said = lines[0 if answer.returncode == ExitCode.BAD_CONFIG else -1].replace(recipe, "train.yaml")
    return Finding(
        "error", "recipe", f"{answer.host}: {said}", "make that host equal to this one, where the check passed"
    )
