"""Several hosts on one machine: each has its own network, name, processes, /dev/shm and sshd; the disk is shared.

    with Hosts(3) as hosts:
        hosts.run("h0", ["ssh", "h1", "hostname"])

Namespaces live as long as their processes, and those are tied to this one: a killed test leaves nothing behind.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from launcher.contract.process import die_with_parent

TOOLS = ("ip", "unshare", "nsenter")
SSH_TOOLS = ("ssh", "ssh-keygen", "/usr/sbin/sshd")
DEADLINE_S = 60.0
HOME = Path(pwd.getpwuid(os.geteuid()).pw_dir)

SSH_CONFIG = """Host h*
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""
SSHD_CONFIG = """HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
MaxStartups 100
SetEnv TMPDIR=/run/tmp
"""


def unavailable(*, sshd: bool = True) -> str | None:
    """Why hosts cannot be made here, None when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts in namespaces need Linux and root"
    missing = [tool for tool in (*TOOLS, *(SSH_TOOLS if sshd else ())) if shutil.which(tool) is None]
    if missing:
        return f"hosts in namespaces need {', '.join(missing)} (apt-get install openssh-server iproute2 util-linux)"
    trial = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    answer = subprocess.run(trial, capture_output=True, text=True)
    return None if answer.returncode == 0 else f"namespaces are not allowed here: {answer.stderr.strip()}"


class Hosts:
    """Hosts h0, h1, ... at 10.77.0.10, .11, ... on one switch; root logs in between them without a password.

    sshd: without it no host can be reached by ssh
    """

    def __init__(self, count: int, *, sshd: bool = True) -> None:
        self._sshd = sshd
        self.addresses = {f"h{number}": f"10.77.0.{10 + number}" for number in range(count)}
        self._inits: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.addresses)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        try:
            self._write_files()
            self._switch = _tied(["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"])
            _await_ready(self._switch)
            self._on_switch("ip", "link", "add", "br0", "type", "bridge")
            self._on_switch("ip", "link", "set", "br0", "up")
            for name in self.names:
                self.boot(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for name in list(self._inits):
            self.crash(name)
        if hasattr(self, "_switch"):
            self._switch.kill()
            self._switch.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start `argv` on `host`, in this process's working directory; `pid_of` gives the pid for signals.

        `env` adds to this process's environment. A host that crashes takes it along.
        """
        words = [*self._enter(host), f"HOSTNAME={host}", "TMPDIR=/run/tmp"]
        words += [f"{name}={value}" for name, value in options.pop("env", {}).items()]
        return subprocess.Popen([*words, *argv], stdin=subprocess.DEVNULL, **options)

    def run(
        self, host: str, argv: Sequence[str], timeout_s: float = 60.0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on `host` to its end, killed after `timeout_s`."""
        process = self.start(
            host,
            argv,
            env=env or {},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.kill(self.pid_of(process), signal.SIGKILL)
            process.communicate()
            raise
        return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)

    def pid_of(self, process: subprocess.Popen[Any]) -> int:
        """The pid, as seen from outside, of the program that `start` started: for os.kill."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline_s = time.monotonic() + DEADLINE_S
        while not (pids := children.read_text().split()):
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.01)
        return int(pids[0])

    def processes(self, host: str, word: str) -> dict[int, str]:
        """Pids (as seen from outside) and command lines on a living `host` whose command line has `word` in it."""
        namespace = Path(f"/proc/{self._init_pid(host)}/ns/pid").readlink()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "ns" / "pid").readlink() == namespace:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if word in line:
                        found[int(entry.name)] = line.strip()
            except OSError:
                continue  # it ended while we looked
        return found

    def cut(self, host: str) -> None:
        """Pull the cable: packets are lost without a word."""
        self._on_switch("ip", "link", "set", f"to-{host}", "down")

    def heal(self, host: str) -> None:
        """Plug it in again."""
        self._on_switch("ip", "link", "set", f"to-{host}", "up")

    def crash(self, host: str) -> None:
        """End every process of the host at once; its kernel still closes their connections."""
        init = self._inits.pop(host)
        init.kill()
        init.communicate()
        # The namespace goes when the kernel gets to it; a boot wants the name of the port back.
        if self._switch.poll() is None:
            self._on_switch("ip", "link", "del", f"to-{host}", check=False)

    def power_off(self, host: str) -> None:
        """Cut, then crash: nobody hears of it."""
        self.cut(host)
        self.crash(host)

    def boot(self, host: str) -> None:
        """Start the host, after a crash anew."""
        here = Path(__file__).with_name("host_init.sh")
        unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words = ["sh", str(here), host, self.addresses[host], str(self.folder), str(HOME), "sshd" if self._sshd else ""]
        console = (self.folder / f"{host}.log").open("ab")
        self._inits[host] = _tied([*unshare, *words], console)
        port = f"to-{host}"
        pid = self._init_pid(host)
        # The same network card as before a crash: others would talk to the one they remember for some seconds.
        card = f"02:00:0a:4d:00:{int(self.addresses[host].rpartition('.')[2]):02x}"
        peer = ("peer", "name", "eth0", "address", card, "netns", str(pid))
        self._on_switch("ip", "link", "add", port, "type", "veth", *peer)
        self._on_switch("ip", "link", "set", port, "master", "br0", "up")
        _await_ready(self._inits[host])
        deadline_s = time.monotonic() + DEADLINE_S
        while self._sshd and self.run(host, ["ssh", host, "true"]).returncode != 0:
            assert time.monotonic() < deadline_s, (self.folder / f"{host}.log").read_text()
            time.sleep(0.02)

    def _init_pid(self, host: str) -> int:
        """Process 1 of the host, as seen from outside: the only child of unshare."""
        return self.pid_of(self._inits[host])

    def _enter(self, host: str) -> list[str]:
        words = ["nsenter", "-t", str(self._init_pid(host)), "-n", "-u", "-m", "-p"]
        return [*words, f"--wdns={Path.cwd()}", "--", "env"]

    def _on_switch(self, *words: str, check: bool = True) -> None:
        argv = ["nsenter", "-t", str(self._switch.pid), "-n", "--", *words]
        answer = subprocess.run(argv, capture_output=True, text=True)
        assert not check or answer.returncode == 0, f"{words}: {answer.stderr}"

    def _write_files(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        lines = [f"{address} {name}\n" for name, address in self.addresses.items()]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        (folder / "dot-ssh").mkdir(mode=0o700)
        if not self._sshd:
            return
        for key in ("key", "host_key"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(make, check=True)
        public = " ".join((folder / "host_key.pub").read_text().split()[:2])
        known = [f"{name},{address} {public}\n" for name, address in self.addresses.items()]
        (folder / "known_hosts").write_text("".join(known))
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
        (folder / "dot-ssh" / "config").write_text(SSH_CONFIG.format(folder=folder))


def _tied(argv: Sequence[str], stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", f"{process.args} did not start"
