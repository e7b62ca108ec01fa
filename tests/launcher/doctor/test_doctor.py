"""`vpred-launch doctor` with real mpirun and ranks that have a small table of checks: every fault is named."""

import json
import signal

import pytest

from launcher.contract.doctor_record import DoctorRecord
from launcher.contract.exit_codes import ExitCode
from launcher.processes.tied import workers_of

AS_ROOT = "cluster.launcher.allow_run_as_root=true"
QUICK = "cluster.supervision.timeouts.step_s=3"


def findings(answer):
    return [line.removeprefix("finding  ") for line in answer.stdout.splitlines() if line.startswith("finding")]


def test_the_doctor_reports_sound_machines(bench):
    answer = bench.launch(AS_ROOT, command="doctor")
    assert answer.returncode == ExitCode.OK, answer.stdout + answer.stderr
    assert findings(answer) == []
    words = [line.split() for line in answer.stdout.splitlines()]
    assert ["ok", "operations", "sum", "1", "+", "1", "is", "2", "2"] in words
    assert ["ok", "speed", "copy", "5", "to", "5.1", "GB/s"] in words
    assert ["left", "out", "left", "nothing", "not", "here"] in words
    assert ["ok", "restart", "graph", "the", "same", "bits"] in words
    # Ranks share the items of one check.
    record = DoctorRecord.read(bench.run.attempt(1).doctor(1))
    assert [each.subject for each in record.results if each.check == "shared"] == ["item 1", "item 3"]
    assert "these machines can train: " in answer.stdout and " of 2 ranks in " in answer.stdout
    assert workers_of(bench.run.root) == []


def test_the_doctor_reports_to_programs(bench):
    fine = bench.launch(AS_ROOT, "--json", command="doctor")
    report = json.loads(fine.stdout)
    assert fine.returncode == ExitCode.OK
    assert (report["ok"], report["ranks"], report["findings"]) == (True, 2, [])
    line = next(each for each in report["checks"] if each["check"] == "speed")
    assert line["state"] == "ok" and line["ranks"] == 2 and line["figure"] == 5.1


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("wrong", "operations: sum: rank 1 on host localhost: 1 + 1 is 3 (wanted: 2); update the adder"),
        (
            "raise",
            "operations: sum: rank 1 on host localhost: ValueError: cannot add (wanted: no error); update the adder",
        ),
        (
            "slow",
            "speed: copy: rank 1 on host localhost: 1 GB/s, below 50% of the other ranks' median of 5 GB/s; "
            "bind the rank",
        ),
        (
            "differs",
            "versions: packages: rank 1 on host localhost: 2.10.1, but 2.10.0 on rank 0; install the same everywhere",
        ),
        (
            "refuse",
            "exchange: barrier: rank 1 on host localhost: RuntimeError: no route (wanted: no error); repair the link",
        ),
        ("again", "restart: graph: rank 1 on host localhost: other bits; remove it"),
    ],
)
def test_a_fault_of_one_rank_is_named_with_its_remedy(bench, fault, found):
    answer = bench.launch(AS_ROOT, f"fault={fault}", command="doctor")
    assert answer.returncode == ExitCode.FAILED, answer.stdout + answer.stderr
    assert findings(answer) == [found]
    assert "\n1 finding: " in answer.stdout
    assert workers_of(bench.run.root) == []


def test_a_fault_of_all_ranks_is_named_for_each(bench):
    answer = bench.launch(AS_ROOT, "fault=everywhere", "--json", command="doctor")
    assert answer.returncode == ExitCode.FAILED
    found = json.loads(answer.stdout)["findings"]
    assert [(each["check"], each["subject"], each["rank"], each["host"]) for each in found] == [
        ("operations", "sum", 0, "localhost"),
        ("operations", "sum", 1, "localhost"),
    ]


def test_a_rank_that_dies_is_named_with_its_check(bench):
    answer = bench.launch(AS_ROOT, "fault=kill", command="doctor")
    assert answer.returncode == ExitCode.FAILED
    (found,) = findings(answer)
    assert found.startswith("operations: sum: rank 1 on host localhost: ended with SIGKILL")
    assert str(bench.run.attempt(1).log(1)) in found
    rows = [line.split()[:3] for line in answer.stdout.splitlines()]
    assert ["ok", "versions", "packages"] in rows  # what was found before stays in the table
    assert workers_of(bench.run.root) == []


@pytest.mark.parametrize(("fault", "place"), [("hang", "operations: sum"), ("absent", "exchange: barrier")])
def test_a_rank_that_hangs_is_named_with_its_check(bench, fault, place):
    answer = bench.launch(AS_ROOT, f"fault={fault}", QUICK, command="doctor")
    assert answer.returncode == ExitCode.FAILED
    (found,) = findings(answer)
    assert found.startswith(f"{place}: rank 1 on host localhost: made no progress for 3 s"), found
    assert "fake_doctor.py" in bench.run.attempt(1).log(1).read_text()  # the stack, to which the remedy points
    assert workers_of(bench.run.root) == []


def test_an_interrupted_doctor_leaves_no_process(bench):
    process = bench.start(AS_ROOT, "fault=hang", command="doctor")

    def is_hanging() -> bool:
        record = DoctorRecord.read(bench.run.attempt(1).doctor(1))
        return record is not None and record.check == "operations"

    bench.wait_until(is_hanging)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == ExitCode.FAILED, errors
    assert "stopped on request before the end; start the doctor again" in output
    assert workers_of(bench.run.root) == []


def test_wrong_documents_are_refused_before_anything_starts(bench):
    for words, told in (
        (["cluster.workers_per_hots=3"], "workers_per_hots"),
        (["unknown=3"], "unknown: unknown key"),
    ):
        answer = bench.launch(AS_ROOT, *words, command="doctor")
        assert answer.returncode == ExitCode.BAD_CONFIG
        assert told in answer.stderr and "Traceback" not in answer.stderr
        assert not bench.run.root.exists()


def test_a_folder_that_holds_something_is_refused(bench):
    bench.run.root.mkdir()
    (bench.run.root / "notes").write_text("mine")
    answer = bench.launch(AS_ROOT, command="doctor")
    assert answer.returncode == ExitCode.BAD_CONFIG
    assert answer.stderr.splitlines() == [
        f"{bench.run.root}: holds something already; give the doctor a --run-dir that does not exist"
    ]
    assert [path.name for path in bench.run.root.iterdir()] == ["notes"]


def test_an_error_of_the_preflight_is_a_finding_and_nothing_starts(bench):
    answer = bench.launch(AS_ROOT, f"cluster.metrics.targets_folder={bench.root}/none", command="doctor")
    assert answer.returncode == ExitCode.FAILED
    (found,) = findings(answer)
    assert found.startswith(f"preflight: metrics targets: metrics.targets_folder: {bench.root}/none is no folder")
    assert not bench.run.root.exists()
