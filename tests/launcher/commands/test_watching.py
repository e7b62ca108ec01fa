"""What people see of a run: its state, its logs, the lines of a failure; and the kernel's word on want of memory."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import AttemptDir, RunDir
from launcher.rank.oom import killed_for_memory
from launcher.records.attempt_record import AttemptRecord
from launcher.records.log_stream import LogStream, parse_ranks
from launcher.records.run_lock import is_locked, locked
from launcher.supervision.failure import Failure, blames_peer, last_traceback, read_log
from launcher.supervision.hccl_codes import HCCL_CODES, find_code

EAT = (
    "import os, sys\n"
    "from launcher.rank.oom import KernelLog\n"
    "from launcher.rank.oom import evidence, oom_kills\n"
    "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
    "before, log = oom_kills(), KernelLog()\n"
    "pid = os.fork()\n"
    "if pid == 0:\n"
    "    open('/proc/self/oom_score_adj', 'w').write('1000')\n"
    "    kept = [bytearray(b'x') * (1 << 20) for _ in range(512)]\n"
    "    os._exit(0)\n"
    "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    "print(evidence(before), pid, log.killed_for_memory(pid), sep='\\n')\n"
)
FIRST_NAMESPACE = Path("/proc/self/ns/pid").readlink().name == "pid:[4026531836]"
# As the kernels 5.10 and 6.1 (dmesg, /dev/kmsg) and 4.18 write them.
OF_A_GROUP = """\
[  812.4] python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
[  812.4] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/job,task_memcg=/job,\
task=python3,pid=4242,uid=1000
[  812.4] Memory cgroup out of memory: Killed process 4242 (python3) total-vm:531204kB, anon-rss:130288kB, \
file-rss:5644kB, shmem-rss:0kB, UID:1000 pgtables:348kB oom_score_adj:0
"""
OF_THE_HOST = """\
4,1203,912345678,-;python invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER_MOVABLE|__GFP_COMP|__GFP_ZERO), order=0
6,1240,912345701,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task=python,\
pid=4242,uid=0
3,1241,912345702,-;Out of memory: Killed process 4242 (python) total-vm:26214400kB, anon-rss:24117248kB, file-rss:0kB, \
shmem-rss:0kB, UID:0 pgtables:48000kB oom_score_adj:0
 SUBSYSTEM=memory
6,1242,912349999,-;oom_reaper: reaped process 4242 (python), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB
"""
OF_AN_OLD_ONE = "[  99.1] Out of memory: Kill process 4242 (python) score 912 or sacrifice child\n"


@pytest.fixture
def small_group() -> Path:
    """A control group that may have 128 MiB of memory."""
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory").is_dir()
    group = (root / "memory" if version_1 else root) / f"vpred_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(128 << 20))
    except OSError as error:
        pytest.skip(f"no control group for memory can be made here: {error}")
    yield group
    group.rmdir()


def test_the_kernels_count_tells_who_died_for_want_of_memory(small_group):
    words = [sys.executable, "-c", EAT, str(small_group)]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    code, told, pid, log = answer.stdout.splitlines()
    assert int(code) == -signal.SIGKILL
    assert told.startswith(f"oom_kill in {small_group}/memory.") and "rose from 0 to 1" in told
    if FIRST_NAMESPACE and os.access("/dev/kmsg", os.R_OK):
        assert log.startswith(f"Memory cgroup out of memory: Killed process {pid} (python")
    else:
        assert log == "None"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (OF_A_GROUP, "Memory cgroup out of memory: Killed process 4242 (python3) total-vm:531204kB, anon-rss:130288kB"),
        (OF_THE_HOST, "Out of memory: Killed process 4242 (python) total-vm:26214400kB, anon-rss:24117248kB"),
        (OF_AN_OLD_ONE, "Out of memory: Kill process 4242 (python)"),
    ],
)
def test_the_kernels_log_names_the_process(log, words):
    assert killed_for_memory(log, 4242) == words
    assert killed_for_memory(log + log.replace("4242", "77"), 4242) == words
    assert killed_for_memory(log, 424) is killed_for_memory(log, 42422) is killed_for_memory("", 4242) is None


def test_status_and_logs_of_a_run_that_failed_and_of_one_that_runs(bench, capfd):
    run = str(bench.run.root)
    recipe = ("fault=raise", "fault_attempts=1", "step_s=0.7")
    bench.launch(*recipe)
    assert main(["status", run]) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[0] == f"run         {run}: ended"
    assert told[1].startswith("step        3 of 6 (50 %), loss 0.2500")
    assert told[2] == "checkpoint  step 2"
    assert told[3].startswith("attempt 1   exit code 1: rank 1 on host ")
    assert told[4].split() == ["rank", "host", "phase", "step", "own", "s/step", "img/s", "reported"]
    assert told[5].startswith("0     localhost  training")

    assert main(["logs", run, "--rank", "1"]) == 0
    assert "ValueError: a tensor went missing" in capfd.readouterr().out.splitlines()
    assert main(["logs", run]) == 0
    assert "[1] ValueError: a tensor went missing" in capfd.readouterr().out.splitlines()

    launcher = bench.start(*recipe)
    second = bench.run.attempt(2)
    bench.wait_until(lambda: all(second.status(rank).exists() for rank in (0, 1)))
    assert main(["status", run, "--json"]) == 0
    state = json.loads(capfd.readouterr().out)
    assert state["state"] == "running"
    assert [(each["attempt"], each["exit_code"]) for each in state["attempts"]] == [(1, 1), (2, None)]
    assert [(each["rank"], each["host"]) for each in state["ranks"]] == [(0, "localhost"), (1, "localhost")]
    launcher.kill()
    launcher.communicate()
    bench.wait_until(lambda: main(["status", run]) == 0 and "its launcher left no verdict" in capfd.readouterr().out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("logs", "RUN", "--rank", "2"), "--rank: found rank 2 (the run has ranks 0 to 1)"),
        (("logs", "RUN", "--attempt", "2"), "--attempt: found 2 (the run has attempts 1 to 1)"),
        (("logs", "RUN", "--attempt", "0"), "--attempt: found 0 (the run has attempts 1 to 1)"),
        (("status", "/nowhere"), "/nowhere: no run was started there; give the --run-dir of a run"),
    ],
)
def test_a_wrong_question_is_one_line(bench, capsys, words, said):
    bench.run.attempt(1).root.mkdir(parents=True)
    bench.run.plan_json.write_text(json.dumps({"ranks": [{"rank": rank, "host": "n"} for rank in (0, 1)]}))
    assert main([word.replace("RUN", str(bench.run.root)) for word in words]) == ExitCode.BAD_CONFIG
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1


def test_a_look_at_a_run_keeps_no_launcher_out(tmp_path):
    run = RunDir(tmp_path)
    with run.lock.open("w") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (looker, fcntl.LOCK_UN)).start()
        with locked(run):
            assert is_locked(run.lock)
    assert not is_locked(run.lock)


def test_logs_are_followed_over_a_restart_and_streamed_by_the_launcher(bench):
    restart = ("cluster.restart.max_restarts=1", "cluster.restart.first_delay_s=1.5")
    launcher = bench.start("fault=raise", "fault_attempts=1", "step_s=0.3", "--stream", "1", *restart)
    bench.wait_until(bench.run.attempt(1).log(1).exists)
    words = [sys.executable, "-P", "-m", "launcher.cli", "logs", str(bench.run.root), "--follow"]
    followed = subprocess.run(words, env=bench.env, capture_output=True, text=True, timeout=60, check=True)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == ExitCode.OK
    lines = followed.stdout.splitlines()
    assert lines.index("[1] ValueError: a tensor went missing") < lines.index("==> attempt 2 <==")
    assert "[1] ValueError: a tensor went missing" in stderr.splitlines()
    assert "[0] " not in stderr


def test_logs_of_an_attempt_that_had_more_ranks_than_the_newest(bench, capsys):
    run = bench.run
    for number, ranks in ((1, 2), (2, 1)):
        attempt = run.attempt(number)
        attempt.root.mkdir(parents=True)
        AttemptRecord(attempt=number, hosts=("n",), world_size=ranks, started_unix_s=0.0).write(attempt.record)
        for rank in range(ranks):
            attempt.log(rank).write_text(f"rank {rank} of {ranks}\n")
    run.plan_json.write_text(json.dumps({"ranks": [{"rank": 0, "host": "n"}]}))
    assert main(["logs", str(run.root), "--attempt", "1", "--rank", "1"]) == ExitCode.OK
    assert capsys.readouterr().out == "rank 1 of 2\n"
    assert main(["logs", str(run.root), "--rank", "1"]) == ExitCode.BAD_CONFIG
    assert capsys.readouterr().err == "--rank: found rank 1 (the run has ranks 0 to 0)\n"


def test_a_reader_that_has_enough_is_no_error(bench):
    attempt = bench.run.attempt(1)
    attempt.root.mkdir(parents=True)
    bench.run.plan_json.write_text(json.dumps({"ranks": [{"rank": 0, "host": "n"}]}))
    attempt.log(0).write_text("a line\n" * 100_000)
    words = [sys.executable, "-P", "-m", "launcher.cli", "logs", str(bench.run.root)]
    with subprocess.Popen(words, env=bench.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as logs:
        logs.stdout.readline()
        logs.stdout.close()
        assert logs.stderr.read() == b""
    assert logs.returncode == 128 + signal.SIGPIPE


def test_a_stream_gives_whole_lines_of_its_ranks(tmp_path):
    attempt = AttemptDir(tmp_path)
    stream = LogStream(attempt, [3, 12])

    def grown(rank: int, more: bytes) -> list[str]:
        with attempt.log(rank).open("ab") as log:
            log.write(more)
        return stream.lines({each: attempt.log(each).stat().st_size for each in (3, 12) if attempt.log(each).exists()})

    assert grown(3, b"one\ntw") == ["[ 3] one"]
    assert grown(3, b"o\n") == ["[ 3] two"]
    assert grown(12, b"\xff\r\n") == ["[12] \ufffd"]
    assert grown(3, b"end") == []
    assert stream.rest() == ["[ 3] end"] and stream.rest() == []
    assert stream.lines({}) == []


def test_ranks_of_an_option():
    assert parse_ranks("all", 3, "--stream") == [0, 1, 2]
    assert parse_ranks("7,0,2-4", 8, "--stream") == [0, 2, 3, 4, 7]
    for wrong in ("", "x", "4-2", "0,", "8", "-1"):
        with pytest.raises(ConfigError, match=r"^--stream: found "):
            parse_ranks(wrong, 8, "--stream")


def test_the_last_traceback_ends_where_the_log_goes_on():
    lines = [
        "Traceback (most recent call last):",
        "ValueError: an earlier one",
        "2026-01-31T12:00:00.123Z rank 0 ERROR vpred_train.worker: rank 0 failed",
        "Traceback (most recent call last):",
        '  File "step.py", line 9, in __call__',
        "    return 1 / 0",
        "ZeroDivisionError: division by zero",
        "mpirun noticed something",
    ]
    assert last_traceback(lines) == tuple(lines[3:7])
    assert last_traceback(["nothing"]) == ()


def test_hccl_codes_are_found_by_their_present_name_and_bring_their_hint(tmp_path):
    assert find_code("[ERROR] EJ0003: bind failed") == "EI0019"
    assert find_code("EI9999 then EI0006 then EI0001") == "EI0006"
    assert find_code("none") is None
    log = tmp_path / "rank_0.log"
    log.write_text("E10: EI0002: wait timeout\nlast words\n")
    assert blames_peer(log)
    failure = read_log(Failure(kind="exit", rank=0, host="n", ended="ended with exit code 1", last_step=5, log=log))
    assert (failure.hccl_code, failure.hint) == ("EI0002", HCCL_CODES["EI0002"].hint)
    assert failure.cause == "HCCL EI0002, a wait for another rank timed out: last words"
    lines = str(failure).splitlines()
    assert len(lines) == 5 and lines[0] == "rank 0 on host n ended with exit code 1 after step 5"
    assert not blames_peer(tmp_path / "rank_1.log")  # there is none


def test_a_users_mistake_is_not_looked_for_in_the_code(tmp_path: Path) -> None:
    log = tmp_path / "rank_0.log"
    log.write_text("data.path: found 'nowhere'; give a folder\n")
    mistake = Failure(kind="exit", rank=0, host="n", ended="ended with exit code 2", returncode=2, last_step=0, log=log)
    lines = str(read_log(mistake)).splitlines()
    assert lines[1:4] == [
        "cause:  data.path: found 'nowhere'; give a folder",
        "where:  the input, not the code",
        "remedy: follow the cause",
    ]
