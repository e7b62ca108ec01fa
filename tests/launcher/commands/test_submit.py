"""`submit`, `cancel` and the job line of `status`, with stand-ins for Slurm's programs that do as a file says."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.contract.exit_codes import ExitCode
from launcher.submit.submitted import read_submitted
from support import PROGRAMS

FAKE_LAUNCH = (sys.executable, "-P", str(PROGRAMS / "fake_launch.py"))
QUEUE = """
name: queue
accelerator: cpu
workers_per_host: 2
launcher: {kind: srun}
metrics: {address: 0.0.0.0}
submit: {nodes: 1, slurm: {time: "00:30:00"}}
"""
# sbatch notes its words and takes the script of a test from standard input; squeue shows the file `queue`.
SBATCH = """echo "sbatch $*" >>"{folder}/asked"
if [ -e "{folder}/refusal" ]; then cat "{folder}/refusal" >&2; exit 1; fi
case "$*" in *--test-only*) cat >"{folder}/tested"; exit 0;; esac
if [ -e "{folder}/late_refusal" ]; then cat "{folder}/late_refusal" >&2; exit 1; fi
echo 41
"""
SQUEUE = """if [ -e "{folder}/queue" ]; then cat "{folder}/queue"; exit 0; fi
echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1
"""
SCANCEL = 'echo "scancel $*" >>"{folder}/asked"\n'


class Site:
    """A login node: `bench` with Slurm's programs on PATH."""

    def __init__(self, bench, folder: Path) -> None:
        self.bench, self.run, self.folder = bench, bench.run, folder
        self.cluster = folder / "cluster.yaml"
        self.cluster.write_text(QUEUE)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
            self.program(name, text)
        bench.env["PATH"] = str(self.bin)  # this machine may have a Slurm

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text("#!/bin/sh\nPATH=/usr/bin:/bin\n" + text.format(folder=self.folder))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def submit(self, *words: str):
        return self.bench.launch("--cluster", str(self.cluster), *words, command="submit")

    def command(self, name: str, *words: str):
        argv = [*FAKE_LAUNCH, name, *words]
        return subprocess.run(argv, capture_output=True, text=True, env=self.bench.env, cwd=self.folder, check=False)

    def queue(self, *lines: str) -> None:
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def site(bench, tmp_path: Path) -> Site:
    return Site(bench, tmp_path)


def refused(site: Site, *words: str) -> str:
    """The single line of a submission that is refused and writes nothing."""
    result = site.submit(*words)
    assert result.returncode == ExitCode.BAD_CONFIG, (result.stdout, result.stderr)
    assert not site.run.root.exists() and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_a_dry_run_prints_all_files_and_writes_none(site):
    result = site.submit("--dry-run", "--chain", "2")
    assert result.returncode == 0 and not site.run.root.exists() and site.asked() == []
    for name in ("cluster.yaml", "recipe.yaml", "job.sh"):
        assert f"==> {site.run.root}/submit/{name} <==" in result.stdout
    assert result.stdout.endswith(f"==> command, 2 times <==\nsbatch --parsable {site.run.submit.script}\n")
    document = json.loads(site.submit("--dry-run", "--json").stdout)
    assert document["command"] == ["sbatch", "--parsable", str(site.run.submit.script)]
    assert [Path(path).name for path in document["files"]] == ["cluster.yaml", "recipe.yaml", "job.sh"]
    assert not site.run.root.exists()


def test_what_is_submitted_is_what_the_dry_run_shows(site):
    shown = json.loads(site.submit("--dry-run", "--json").stdout)["files"]
    result = site.submit()
    assert (result.returncode, result.stdout) == (0, f"41 {site.run.root}\n")
    assert {str(path): path.read_text() for path in site.run.submit.root.iterdir() if path.suffix != ".json"} == shown
    assert (site.folder / "tested").read_text() == site.run.submit.script.read_text()
    assert site.asked() == ["sbatch --test-only", f"sbatch --parsable {site.run.submit.script}"]
    record = read_submitted(site.run)
    assert (record.scheduler, record.job_ids, record.cluster) == ("slurm", ("41",), "queue")


def test_variables_of_sbatch_do_not_change_the_job(site):
    site.program("sbatch", 'env | grep SBATCH_ >>"{folder}/asked"; echo 41\n')
    site.bench.env |= {"SBATCH_PARTITION": "other", "SBATCH_TIMELIMIT": "1"}
    assert site.submit().returncode == 0 and site.asked() == []


SUBMIT = "cluster.submit."
NO_SUBMIT = ("cluster.submit=null", "cluster.hosts=[{address: a}]", "cluster.launcher.kind=mpirun")
TWICE = ("--chain", "2", "--sweep", "steps=1,2")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (NO_SUBMIT, "CLUSTER: submit: found nothing (submit needs this section); take cluster_configs/slurm_cpu"),
        (("cluster.hosts=[{address: a}]",), "CLUSTER: hosts: remove it (with the section submit"),
        ((f'{SUBMIT}slurm.time="1 hour"',), "command line: submit.slurm.time: found '1 hour' (must be a time"),
        ((f'{SUBMIT}slurm.time="5"',), "CLUSTER: submit.slurm.time: found '5', which is 300 s (the run is"),
        ((f"{SUBMIT}slurm.lead_s=59",), "CLUSTER: submit.slurm.lead_s: found 59 (shorter than launcher.stop"),
        ((f'{SUBMIT}slurm.qos="a\\n#SBATCH x"',), "command line: submit.slurm.qos: found 'a\\n#SBATCH x' (must be"),
        ((f'{SUBMIT}setup=["a\\nb"]',), "command line: submit.setup[0]: found 'a\\nb' (must be one line"),
        ((f"{SUBMIT}slurm.arguments=[--signal=USR1]",), "command line: submit.slurm.arguments: found"),
        ((f"{SUBMIT}scheduler=pbs",), "command line: submit.scheduler: found 'pbs' (not one of the choices)"),
        (("--run-dir", "runs/x"), "--run-dir: found 'runs/x' (give an absolute path, as the nodes see it)"),
        (("--run-dir", "/tmp/a%b"), "--run-dir: found '/tmp/a%b' (give a path without line breaks and without %)"),
        (("--run-dir", "/tmp/a\nb"), "--run-dir: found '/tmp/a\\nb' (give a path without line breaks and without"),
        (("--run-dir", f"/tmp/{'n' * 60}"), f"--run-dir: found '{'n' * 60}' (the job would be called"),
        (("--chain", "0"), "--chain: found 0 (must be 1 or more)"),
        (TWICE, "--chain: found it with --sweep (a sweep is one array of jobs; leave one of them out)"),
        (("--sweep", "steps"), "--sweep: found 'steps' (it is written KEY=a,b"),
        (("--sweep", "stepz=1,2"), "RECIPE: stepz: unknown key"),
        (("--after", "77"), "--after: found 77 (job 77 is not known to the scheduler)"),
        (("--after", "/nowhere"), "/nowhere: was never submitted; submit it"),
        (("speed=9",), "RECIPE: speed: unknown key"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(site, words, line):
    line = line.replace("CLUSTER", str(site.cluster)).replace("RECIPE", str(site.bench.recipe))
    found = refused(site, *words).replace(f"{site.cluster} with the command line", str(site.cluster))
    assert found.startswith(line)
    assert not any("--parsable" in each for each in site.asked())


def test_a_machine_without_slurm_is_named(site):
    (site.bin / "sbatch").unlink()
    assert refused(site) == "sbatch: found none on PATH; run this on a machine that has it"


def test_a_controller_that_does_not_answer_is_named(site):
    (site.folder / "refusal").write_text(
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller\n"
    )
    assert refused(site) == "sbatch: Batch job submission failed: Unable to contact slurm controller"


def test_a_late_refusal_leaves_everything_as_it_was(site):
    (site.folder / "late_refusal").write_text("sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
    assert refused(site) == "submit.slurm.qos: found 'None'; sbatch: QOSMaxSubmitJobPerUserLimit"
    (site.folder / "late_refusal").unlink()
    assert site.submit().returncode == 0
    before = {path: path.read_bytes() for path in site.run.submit.root.iterdir()}
    (site.folder / "late_refusal").write_text("sbatch: error: too many\n")
    assert site.submit("steps=9").returncode == ExitCode.BAD_CONFIG
    assert {path: path.read_bytes() for path in site.run.submit.root.iterdir()} == before


def test_a_run_is_submitted_once(site):
    assert site.submit().returncode == 0
    site.queue("41|PENDING|Priority||30:00")
    again = site.submit()
    assert again.returncode == ExitCode.BAD_CONFIG
    words = (
        f"{site.run.root}: job 41 is PENDING; wait for it, or cancel it first: vpred-launch cancel {site.run.root}\n"
    )
    assert again.stderr == words


def test_cancel_removes_what_waits_and_stops_what_runs(site):
    root = str(site.run.root)
    unknown = site.command("cancel", root)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (ExitCode.BAD_CONFIG, 1)
    assert f"{root}: was never submitted; submit it" in unknown.stderr
    assert site.submit().returncode == 0
    gone = site.command("cancel", root)
    assert (gone.returncode, gone.stdout) == (0, f"{root}: no job to cancel (job 41 is not known any more)\n")
    assert not site.run.submit.cancelled.exists()
    for line, words, asked in (
        ("41|PENDING|Priority||30:00", [], "scancel 41"),
        ("41|RUNNING|None|n1|20:00", [], "scancel --signal=TERM --batch 41"),
        ("41|RUNNING|None|n1|20:00", ["--now"], "scancel 41"),
    ):
        site.queue(line)
        assert site.command("cancel", root, *words).returncode == 0
        assert site.asked()[-1] == asked and site.run.submit.cancelled.exists()


def test_status_has_a_line_for_the_job(site):
    root = str(site.run.root)
    assert site.submit().returncode == 0
    for line, said in (
        ("41|PENDING|PartitionConfig||30:00", "slurm 41: PENDING (PartitionConfig)"),
        ("41|RUNNING|None|n[1-2]|20:00", "slurm 41: RUNNING, on n[1-2], 20:00 left"),
        ("41|TIMEOUT|TimeLimit|n1|0:00", "slurm 41: TIMEOUT (TimeLimit), on n1"),
    ):
        site.queue(line)
        shown = site.command("status", root)
        assert (shown.returncode, f"job         {said}\n" in shown.stdout) == (0, True), shown.stdout
    (site.folder / "queue").unlink()
    assert "slurm 41: not known to Slurm any more" in site.command("status", root).stdout
    site.program("sacct", 'echo "CANCELLED by 0|n3"\n')
    assert "slurm 41: CANCELLED, on n3" in site.command("status", root).stdout
    (site.bin / "squeue").unlink()
    assert "slurm 41: not known (squeue: found none on PATH" in site.command("status", root).stdout
    assert json.loads(site.command("status", root, "--json").stdout)["job"]["job_id"] == "41"


def test_wait_returns_the_code_of_the_run(site):
    job = 'sleep 0.3; sed -i \'s/"exit_code":null/"exit_code":76/\' {folder}/run/submit/submitted.json'
    site.program("sbatch", SBATCH.replace("echo 41", f"({job}) >/dev/null 2>&1 & echo 41"))
    site.queue("41|RUNNING|None|n1|20:00")
    assert site.submit("--wait").returncode == ExitCode.DIVERGED


def test_logs_of_the_launcher_go_over_all_jobs(site):
    assert site.submit().returncode == 0
    record = read_submitted(site.run)
    record.changed(job_ids=("41", "42")).write(site.run.submit.submitted_json)
    for job_id in ("41", "42"):
        site.run.submit.job_log(job_id).write_text(f"job {job_id}\n")
    shown = site.command("logs", str(site.run.root), "--launcher")
    assert (shown.returncode, shown.stdout) == (0, "job 41\njob 42\n")


def test_a_sweep_has_a_run_directory_for_each_value(site):
    result = site.submit("--sweep", "steps=5,7", "--sweep", "save_every=1,2")
    assert (result.returncode, result.stdout) == (0, f"41 {site.run.root}\n")
    assert read_submitted(site.run).sweep == ("0000", "0001", "0002", "0003")
    for number, (steps, save_every) in enumerate(((5, 1), (5, 2), (7, 1), (7, 2))):
        part = type(site.run)(site.run.root / f"{number:04d}")
        recipe = part.submit.recipe_yaml.read_text()
        assert f"steps: {steps}\n" in recipe and f"save_every: {save_every}\n" in recipe
        assert read_submitted(part).job_ids == (f"41_{number}",)


def test_kind_srun_outside_a_job_is_refused(site):
    site.bench.env["PATH"] = "/usr/bin:/bin"
    lines = QUEUE.replace('submit: {nodes: 1, slurm: {time: "00:30:00"}}', "hosts: [{address: localhost}]")
    site.cluster.write_text(lines)
    result = site.bench.launch("--cluster", str(site.cluster))
    assert result.returncode == ExitCode.BAD_CONFIG and not site.run.root.exists()
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert error.startswith(
        "error   launcher.kind: found 'srun' outside a job of Slurm; submit it: vpred-launch submit"
    )
    site.cluster.write_text(QUEUE)
    result = site.bench.launch("--cluster", str(site.cluster))
    assert result.stderr.startswith(
        "submit: found no job of Slurm around this process; hand the run over: vpred-launch"
    )
    assert result.returncode == ExitCode.BAD_CONFIG and not site.run.root.exists()


def test_only_a_job_runs_what_was_submitted(site):
    result = site.command("run", "--submitted", "--run-dir", str(site.run.root))
    assert (result.returncode, result.stderr.count("\n")) == (ExitCode.BAD_CONFIG, 1)
    assert "--submitted: found no job of Slurm around this process" in result.stderr
    result = site.bench.launch("--submitted", "steps=3")
    assert (result.returncode, result.stderr.count("\n")) == (ExitCode.BAD_CONFIG, 1)
    assert not site.run.root.exists()
