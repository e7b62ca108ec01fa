"""Runs a command on many hosts at once: over ssh, or directly where the host is this one."""

import os
import shlex
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from launcher.cluster.hosts import LOCAL_ADDRESSES

CONNECT_TIMEOUT_S = 5
# ssh notices a cut cable after three unanswered probes, two seconds apart.
SSH_OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"),
    *("-o", "ServerAliveInterval=2"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "LogLevel=ERROR"),
)
_AT_ONCE = 64
_KILL_AFTER_S = 2
_SSH_FAILED = 255
_TIMED_OUT = (124, 137, -signal.SIGKILL)  # coreutils' timeout: ended by TERM, by KILL
# Text in ssh's message -> remedy. The first match counts.
_REMEDIES = {
    "host key verification failed": "compare and accept the host's key once: ssh {host}",
    "permission denied": "let this user log in without a password: ssh-copy-id {host}",
    "could not resolve": "write {host} into /etc/hosts or DNS, or correct the cluster file",
    "connection refused": "start sshd on {host}",
}
_TRY_IT = "try `ssh {host} true`"


@dataclass(frozen=True)
class Unreachable:
    """Says why a host could not be reached, in ssh's words, and what helps."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


@dataclass(frozen=True)
class Answer:
    """Says how a command ended on `host`.

    returncode: as a shell reports it, None when the command did not end in time
    over_ssh: it came through ssh
    refused: the words with which another channel than ssh did not reach the host
    """

    host: str
    returncode: int | None
    stdout: str
    stderr: str
    over_ssh: bool = False
    refused: Unreachable | None = None

    @property
    def unreachable(self) -> Unreachable | None:
        """Say why the host could not be reached. It is None when it was reached, however the command ended."""
        if self.refused is not None:
            return self.refused
        if not self.over_ssh or self.returncode != _SSH_FAILED:
            return None
        said = self.stderr.strip().splitlines() or ["ssh gave no reason"]
        remedies = (text for sign, text in _REMEDIES.items() if sign in self.stderr.lower())
        return Unreachable(said[-1].strip(), next(remedies, _TRY_IT).format(host=self.host))


class Remote(Protocol):
    """Runs commands on hosts."""

    def run(self, commands: Mapping[str, Sequence[str]], timeout_s: float) -> dict[str, Answer]:
        """Run an argv on each host (key: its address), all at the same time. Every host gets an answer."""


class Channel(ABC):
    """Runs commands on hosts at the same time, each through a program here. On this host it runs them directly."""

    def run(self, commands: Mapping[str, Sequence[str]], timeout_s: float) -> dict[str, Answer]:
        """Run the commands and kill those that have not ended after `timeout_s`, on the other hosts too.

        Raises OSError: when the channel's program cannot be started.
        """
        if not commands:
            return {}
        calls = _Calls()
        with ThreadPoolExecutor(min(_AT_ONCE, len(commands)), "remote") as pool:
            try:
                answers = pool.map(lambda host: self._run_one(host, commands[host], timeout_s, calls), commands)
                return {answer.host: answer for answer in answers}
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                calls.end()
                raise

    @abstractmethod
    def words(self, host: str, bounded: Sequence[str]) -> list[str]:
        """Return the argv that runs `bounded` on `host`."""

    @abstractmethod
    def heard(self, host: str, ended: "subprocess.CompletedProcess[str]") -> Answer:
        """Make the answer of what the channel's program returned and printed."""

    def _run_one(self, host: str, argv: Sequence[str], timeout_s: float, calls: "_Calls") -> Answer:
        here = is_here(host)
        # `timeout` runs on the host itself: a cut connection must not leave the command there for ever.
        bounded = ["timeout", "-k", str(_KILL_AFTER_S), f"{timeout_s:g}", *argv]
        words = bounded if here else self.words(host, bounded)
        slack_s = _KILL_AFTER_S + (1 if here else 2 * CONNECT_TIMEOUT_S)
        begin_s = time.monotonic()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        calls.add(process)
        try:
            output, errors = process.communicate(timeout=timeout_s + slack_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            output, errors = process.communicate()
        said, errors_said = (text.decode(errors="replace") for text in (output, errors))
        if here:
            answer = Answer(host, process.returncode, said, errors_said)
        else:
            answer = self.heard(host, subprocess.CompletedProcess(words, process.returncode, said, errors_said))
        if time.monotonic() - begin_s >= timeout_s and {answer.returncode, process.returncode} & set(_TIMED_OUT):
            return replace(answer, returncode=None, refused=None)
        return answer


class Ssh(Channel):
    """Reaches hosts by OpenSSH's client. Users, ports and keys come from ~/.ssh/config."""

    def __init__(self, program: str = "ssh") -> None:
        self._program = program

    def words(self, host: str, bounded: Sequence[str]) -> list[str]:
        # The shell stays, so a command ended by a signal returns 128 + n and does not look like a failure of ssh.
        line = shlex.join(["sh", "-c", f"{shlex.join(bounded)}; exit $?"])
        return [self._program, *SSH_OPTIONS, "--", host, line]

    def heard(self, host: str, ended: "subprocess.CompletedProcess[str]") -> Answer:
        return Answer(host, ended.returncode, ended.stdout, ended.stderr, over_ssh=True)


class _Calls:
    """Holds the processes in flight, so that Ctrl-C can kill them and free the threads that wait for them."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self._ended = False

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        self._started.append(process)
        if self._ended:  # `end` sets it before it reads the list: one of the two sees this process
            _kill(process)

    def end(self) -> None:
        """Kill all processes, also those that are added later."""
        self._ended = True
        for process in self._started:
            if process.returncode is None:
                _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def is_here(host: str) -> bool:
    """Return whether `host`, a name or an address, is this machine: one of its addresses can be bound."""
    if host in LOCAL_ADDRESSES or host in {socket.gethostname(), socket.getfqdn()}:
        return True
    try:
        places = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, place in places:
        with socket.socket(family, kind, protocol) as probe, suppress(OSError):
            probe.bind(place)
            return True
    return False
