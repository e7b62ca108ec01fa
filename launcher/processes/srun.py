"""Runs a command on many nodes of a Slurm job at once, by a step on each. No node needs sshd."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from launcher.processes.ssh import Answer, Channel, Remote, Ssh, Unreachable

# A step beside the run's own. It takes its node by name, since a step for any node may wait for ever. Options that the
# job's environment would otherwise set for it are given here.
SRUN_OPTIONS = (
    *("--overlap", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--mpi=none"),
    *("--distribution=block", "--export=ALL", "--quiet", "--input=none"),
)
# The node's shell prints the command's exit code after its output: srun may return 0 for a task that never started.
_ENDED = re.compile(r"<vpred-ended (\d+)>\n\Z")
_REMEDY = "look at the node: scontrol show node {host}"


def remote_for(env: Mapping[str, str]) -> Remote:
    """Return the way to the hosts: Slurm's steps inside a job, else ssh."""
    inside = "SLURM_JOB_ID" in env and shutil.which("srun", path=env.get("PATH")) is not None
    return Srun() if inside else Ssh()


class Srun(Channel):
    """Reaches the nodes of this job by steps."""

    def words(self, host: str, bounded: Sequence[str]) -> list[str]:
        line = f'{shlex.join(bounded)}; echo "<vpred-ended $?>"'
        return ["srun", *SRUN_OPTIONS, f"--nodelist={host}", "--", "sh", "-c", line]

    def heard(self, host: str, ended: "subprocess.CompletedProcess[str]") -> Answer:
        told = _ENDED.search(ended.stdout)
        if told is not None:
            return Answer(host, int(told[1]), ended.stdout[: told.start()], ended.stderr)
        said = ended.stderr.strip().splitlines() or [f"srun ended with exit code {ended.returncode}"]
        refused = Unreachable(said[-1].strip(), _REMEDY.format(host=host))
        return Answer(host, ended.returncode or 1, ended.stdout, ended.stderr, refused=refused)
