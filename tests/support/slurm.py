"""A Slurm on hosts in namespaces: h0 has the controller and is no node, all others are nodes. No sshd runs anywhere.

    with Slurm(3) as slurm:
        slurm.run(["srun", "-N3", "hostname"])

Each host finds configuration and munge where a site has them, /etc/slurm and /run/munge. What runs ends with this
process.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.hosts import Hosts
from support.hosts import unavailable as hosts_unavailable

TOOLS = ("sbatch", "srun", "slurmctld", "slurmd", "munged")
PMIX = "lib/*/pmix2/lib/libpmix.so"  # Slurm's plugin opens this name, which only Debian's libpmix-dev has
LOGIN = "h0"
DEADLINE_S = 90.0
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={login}
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=600
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
UnkillableStepTimeout=15
SwitchType=switch/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
"""


def unavailable() -> str | None:
    """Why no Slurm can be made here, None when it can."""
    if (reason := hosts_unavailable(sshd=False)) is not None:
        return reason
    # Servers lie where a user's PATH does not lead.
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or not any(Path("/usr").glob(PMIX)):
        lacks = ", ".join(missing) or "libpmix.so"
        return f"Slurm needs {lacks} (apt-get install slurm-wlm munge libpmix-dev)"
    return None


class Slurm:
    """A controller and `nodes` nodes, h1 and so on. The partition `urgent` preempts jobs of `main`."""

    def __init__(self, nodes: int) -> None:
        self.hosts = Hosts(1 + nodes, sshd=False)
        self.nodes = self.hosts.names[1:]
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.hosts.__enter__()
        try:
            self.folder = self.hosts.folder / "slurm"
            for name in ("etc", "state"):
                (self.folder / name).mkdir(parents=True)
            places = {"login": LOGIN, "folder": self.folder, "nodes": f"h[1-{len(self.nodes)}]"}
            (self.folder / "etc" / "slurm.conf").write_text(CONFIGURATION.format(**places))
            # Node-local: the nodes share /tmp here, and jobs would meet each other's folders in it.
            (self.folder / "etc" / "mpi.conf").write_text("PMIxCliTmpDirBase=/run\n")
            # Named, since detecting it needs something mounted on /sys/fs/cgroup, which namespaces may lack.
            (self.folder / "etc" / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
            key = self.folder / "munge.key"
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
            self._boot(LOGIN)
            self._start(LOGIN, "slurmctld")
            self.wait_until(lambda: " is UP" in self.run(["scontrol", "ping"]).stdout)
            for node in self.nodes:
                self._boot(node)
                self._start(node, "slurmd")
            self.wait_until(lambda: set(self.states().values()) == {"idle"})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.hosts.close()
        for server in self._servers.values():
            server.wait()

    def run(self, argv: list[str], timeout_s: float = 60.0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `argv` on the login host."""
        return self.hosts.run(LOGIN, argv, timeout_s, env)

    def states(self) -> dict[str, str]:
        """Node -> its state in one word, such as idle."""
        lines = self.run(["sinfo", "-hN", "-o", "%N %t"]).stdout.splitlines()
        return dict(line.split() for line in lines)

    def job(self, job_id: str, *fields: str) -> list[str]:
        """Fields of `scontrol show job`, such as JobState; empty where the job has no such field."""
        shown = self.run(["scontrol", "show", "job", "-o", job_id]).stdout
        pairs = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        return [pairs.get(field, "") for field in fields]

    def crash(self, node: str) -> None:
        """End every process of a node at once."""
        self.hosts.crash(node)

    def boot(self, node: str) -> None:
        """Start a node after a crash, and return when it is back in service.

        A job may still hold the node, when Slurm saw it come back before it missed it.
        """
        self.hosts.boot(node)
        self._boot(node)
        self._start(node, "slurmd")
        self.wait_until(lambda: self.states()[node] in {"idle", "mix", "alloc"})

    def wait_until(self, holds: Callable[[], Any], timeout_s: float = DEADLINE_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() >= deadline_s:
                queue = self.run(["squeue", "--states=all"]).stdout
                raise AssertionError(f"waited {timeout_s:g} s in vain\n{queue}")
            time.sleep(0.2)

    def _boot(self, host: str) -> None:
        """Mount the configuration and start munge."""
        prepare = f"mount --bind {self.folder}/etc /etc/slurm && mkdir -p /run/munge /run/slurmd && "
        prepare += f"install -m 400 {self.folder}/munge.key /run/munge.key && chmod 711 /run/munge"
        answer = self.hosts.run(host, ["sh", "-c", prepare])
        assert answer.returncode == 0, answer.stderr
        socket = "/run/munge/munge.socket.2"
        options = ["--key-file=/run/munge.key", f"--socket={socket}", "--num-threads=2"]
        options += [f"--{each}-file=/run/munge/{each}" for each in ("pid", "log", "seed")]
        self._start(host, "munged", "-F", "-f", *options)
        self.wait_until(lambda: self.hosts.run(host, ["munge", "-n"]).returncode == 0)

    def _start(self, host: str, server: str, *options: str) -> None:
        name = f"{host}.{server}"
        words = [f"/usr/sbin/{server}", *(options or ("-D",))]
        if server == "slurmd":
            words += ["-N", host]
        with (self.folder / f"{name}.out.log").open("ab") as output:
            self._servers[name] = self.hosts.start(host, words, stdout=output, stderr=output)
