"""Pods on one machine: a host in namespaces each, and in it a process of user 10001 without capabilities.

    with Pods(2, tmp_path) as pods:
        first = pods.start(0, [...])

A pod sees its root read-only, and of its own /tmp, /dev/shm and /etc with the documents and keys of its job. All pods
share `pods.runs`, which they see as /mnt/runs.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from launcher.submit.ssh_keys import make_keys
from support import CHECKOUT
from support.hosts import Hosts

USER = 10001
RUNS = Path("/mnt/runs")
# $1 runs, $2 what comes before /etc, $3 the checkout, $4 the user, then the command. Python may lie in root's home
# directory, which others may not enter: the overlay's top folder lets them.
POD = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/runs /mnt/tmp
mount --bind "$1" /mnt/runs
mount --bind /tmp /mnt/tmp
mount -t overlay overlay -o "ro,lowerdir=$2:/etc" /etc
mkdir -m 755 /mnt/open
mount -t overlay overlay -o "ro,lowerdir=/mnt/open:$HOME" "$HOME"
mount -t tmpfs -o mode=1777 tmpfs /tmp
case $3 in /tmp/*) mkdir -p "$3"; mount --bind "/mnt$3" "$3";; esac
umount /mnt/tmp
mount -o remount,ro /mnt
mount -o remount,bind,ro /
checkout=$3 user=$4
shift 4
exec setpriv --reuid "$user" --regid "$user" --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \\
    env -i PATH="$PATH" HOME=/tmp PYTHONPATH="$checkout" "$@"
"""


class Pods:
    """Pods 0, 1, ... of the Indexed Job vpred-mine, as their container runtime would start them."""

    def __init__(self, count: int, folder: Path) -> None:
        self.runs, self._etc = folder / "runs", folder / "etc"
        self._hosts = Hosts(count)
        self._started: dict[int, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        self._hosts.__enter__()
        self.runs.mkdir()
        os.chown(self.runs, USER, USER)
        keys, documents = self._etc / "vpred-ssh", self._etc / "vpred"
        for each in (keys, documents, self._etc / "ssh" / "ssh_config.d"):
            each.mkdir(parents=True)
        for name, text in make_keys().items():
            (keys / name).write_text(text)
            os.chown(keys / name, 0, USER)  # as with fsGroup
            (keys / name).chmod(0o440)
        shutil.copy(CHECKOUT / "launcher/pods/ssh_config", self._etc / "ssh" / "ssh_config.d" / "vpred.conf")
        passwd = Path("/etc/passwd").read_text()
        (self._etc / "passwd").write_text(f"{passwd}vpred:x:{USER}:{USER}::/home/vpred:/bin/sh\n")
        addresses = enumerate(self._hosts.addresses.values())
        lines = [f"{address} vpred-mine-{index}.vpred-mine\n" for index, address in addresses]
        (self._etc / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for index in self._started:
            self.kill(index)
        self._hosts.close()

    def write_documents(self, cluster: str, recipe: str) -> None:
        (self._etc / "vpred" / "cluster.yaml").write_text(cluster)
        (self._etc / "vpred" / "recipe.yaml").write_text(recipe)

    def remove_key(self, name: str) -> None:
        (self._etc / "vpred-ssh" / name).unlink()

    def start(self, index: int, argv: list[str]) -> subprocess.Popen[str]:
        """Start `argv` as the first process of pod `index`."""
        words = ["unshare", "--mount", "sh", "-c", POD, "pod", str(self.runs), str(self._etc), str(CHECKOUT), str(USER)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self._started[index] = self._hosts.start(f"h{index}", [*words, *argv], **options)
        return self._started[index]

    def terminate(self, *indices: int) -> None:
        """Send SIGTERM to the first process of each of these pods, as kubelet does."""
        for pid in [self._hosts.pid_of(self._started[index]) for index in indices]:
            os.kill(pid, signal.SIGTERM)

    def kill(self, index: int) -> None:
        """End all processes of a pod at once, as its container's end does."""
        for pid in self.processes(index):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._started[index].wait()

    def processes(self, index: int) -> dict[int, str]:
        """Return pid (as seen from outside) and command line of the pod's processes."""
        found = self._hosts.processes(f"h{index}", "")
        owned = {}
        for pid, line in found.items():
            with suppress(OSError):
                if Path(f"/proc/{pid}").stat().st_uid == USER:
                    owned[pid] = line
        return owned
