"""Checks what kind srun needs: a job of Slurm, and its plugin for the way in which ranks meet."""

from collections.abc import Mapping

from launcher.cluster.config import ClusterConfig
from launcher.processes.programs import ProgramError, ask
from launcher.records.finding import Finding

_TIMEOUT_S = 20.0


def srun_findings(cluster: ClusterConfig, env: Mapping[str, str]) -> list[Finding]:
    """Return one finding on srun and its plugins."""
    if "SLURM_JOB_ID" not in env:
        remedy = "submit it: vpred-launch submit, or take launcher.kind: mpirun"
        return [Finding("error", "launcher.kind", "found 'srun' outside a job of Slurm", remedy)]
    try:
        answer = ask(["srun", "--mpi=list"], timeout_s=_TIMEOUT_S, env=env)
    except ProgramError as error:
        return [Finding("error", "srun", f"it cannot be asked ({error})", "install Slurm's clients on the nodes")]
    # Slurm prints the list on one stream or the other, by version.
    plugins = f"{answer.stdout}\n{answer.stderr}".split()
    if cluster.init == "mpi" and "pmix" not in plugins:
        found = "it has no plugin pmix, by which ranks of init mpi meet"
        remedy = "install it (on Debian and Ubuntu: apt-get install libpmix-dev), or take launcher.kind: mpirun"
        return [Finding("error", "srun", found, remedy)]
    return [Finding("ok", "srun", f"found, ranks meet by {'pmix' if cluster.init == 'mpi' else cluster.init}")]
