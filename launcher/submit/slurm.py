"""Asks Slurm by its commands. Their text is read, not their JSON, which differs from version to version."""

import re
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.processes.programs import ProgramError, ask
from launcher.submit.scheduler import JobState, Phase, Rendered, Submission
from launcher.submit.slurm_script import render_script

_FIELDS = ("%i", "%T", "%r", "%N", "%L")
_PENDING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
_PREEMPTED = re.compile(r"\bPreemptTime=\d")  # else None
_UNKNOWN = re.compile(r"Invalid job id", re.IGNORECASE)
# Words of sbatch -> the key that they are about. The first match counts.
_KEYS = {
    "partition": "submit.slurm.partition",
    "account": "submit.slurm.account",
    "qos": "submit.slurm.qos",
    "generic resource": "submit.slurm.gres",
    "gres": "submit.slurm.gres",
    "time": "submit.slurm.time",
    "feature": "submit.slurm.constraint",
    "constraint": "submit.slurm.constraint",
    "reservation": "submit.slurm.reservation",
    "--mem": "submit.slurm.mem",
    "memory": "submit.slurm.mem",
    "dependency": "submit.slurm.dependency",
    "option": "submit.slurm.arguments",
    "node": "submit.nodes",
}


class Slurm:
    """Hands jobs to sbatch, and asks squeue about them."""

    sees_our_files = True

    def render(self, submission: Submission) -> Rendered:
        script = submission.run.submit.script
        return Rendered({script: render_script(submission)}, ("sbatch", "--parsable", str(script)))

    def check(self, submission: Submission, rendered: Rendered) -> None:
        (script,) = rendered.files.values()
        _sbatch(("sbatch", "--test-only"), submission, stdin=script)

    def submit(self, submission: Submission, rendered: Rendered) -> str:
        # In a federation of clusters the id is followed by the name of one.
        return _sbatch(rendered.argv, submission).strip().partition(";")[0]

    def query(self, job_id: str) -> JobState | None:
        found = ask(["squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--format={'|'.join(_FIELDS)}"])
        if found.returncode != 0:
            if _UNKNOWN.search(found.stderr):
                return _from_records(job_id)
            raise ConfigError(f"squeue: {_last_line(found.stderr)}", "try again later")
        states = [_state(line) for line in found.stdout.splitlines() if line.count("|") >= len(_FIELDS) - 1]
        if not states:
            return _from_records(job_id)
        # The jobs of an array: one that runs speaks for all.
        return min(states, key=lambda state: ("running", "pending", "ended").index(state.phase))

    def cancel(self, job: JobState, *, now: bool) -> None:
        gently = job.phase == "running" and not now
        # The launcher alone gets the signal. It has the ranks save a checkpoint.
        found = ask(["scancel", *(("--signal=TERM", "--batch") if gently else ()), job.job_id])
        if found.returncode != 0:
            raise ConfigError(f"scancel: {_last_line(found.stderr)}", f"try it yourself: scancel {job.job_id}")


def requeue(job_id: str) -> str | None:
    """Put this job, which runs, back into the queue. Return Slurm's words when it refuses, else None."""
    found = ask(["scontrol", "requeue", job_id])
    return None if found.returncode == 0 else _last_line(found.stderr)


def submit_after(script: Path, job_id: str) -> str:
    """Submit the script again, to start after the end of `job_id`, and return the new job's id.

    Raises ConfigError: when Slurm refuses.
    """
    options = ["--parsable", f"--dependency=afterany:{job_id}"]
    task = job_id.partition("_")[2]
    options += [f"--array={task}"] if task else []  # this run alone, not the whole sweep
    found = ask(["sbatch", *options, str(script)], env=_without_defaults())
    if found.returncode != 0:
        raise ConfigError(f"sbatch: {_last_line(found.stderr)}", "submit it again: vpred-launch submit")
    new = found.stdout.strip().partition(";")[0]
    return f"{new}_{task}" if task else new


def host_names(nodes: str) -> list[str]:
    """Return the names in a list of Slurm's such as n[1-3,7]. Raises ConfigError: when it names none."""
    answer = ask(["scontrol", "show", "hostnames", nodes])
    if answer.returncode != 0 or not answer.stdout.split():
        raise ConfigError(f"Slurm's list of nodes: found {nodes!r}; scontrol: {_last_line(answer.stderr)}")
    return answer.stdout.split()


def lost_batch_host(job_id: str) -> list[str] | None:
    """Return the nodes that a running job has left without that of its batch script. None: it has that node.

    Raises ConfigError: when Slurm does not say.
    """
    found = ask(["squeue", "--noheader", f"--jobs={job_id}", "--format=%T|%B|%N"])
    state, _, rest = found.stdout.strip().partition("|")
    host, bar, nodes = rest.partition("|")
    if found.returncode != 0 or not bar:
        raise ConfigError(f"squeue: {_last_line(found.stderr)}", "try again later")
    if state != "RUNNING":  # the list of a job that ends shrinks too
        return None
    living = host_names(nodes)
    return None if host in living else living


def is_preempted(job_id: str) -> bool:
    """Return whether Slurm takes the nodes of this job for another one. It has then sent SIGTERM to all its steps."""
    found = ask(["scontrol", "show", "job", "--oneliner", job_id])
    return found.returncode == 0 and _PREEMPTED.search(found.stdout) is not None


def end_job(job_id: str) -> None:
    """End a job at once. Slurm's refusal is no news: the job is over."""
    ask(["scancel", job_id])


def own_job_id(env: dict[str, str]) -> str | None:
    """Return the id of the job that this process runs in, as squeue takes it. None outside a job."""
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def _sbatch(argv: tuple[str, ...], submission: Submission, stdin: str = "") -> str:
    found = ask(argv, stdin=stdin, env=_without_defaults())
    if found.returncode == 0:
        return found.stdout
    lines = [line.strip() for line in found.stderr.splitlines() if line.strip()]
    # The last line is often general, or about --help.
    said = next((line for line in lines if "error:" in line), lines[0] if lines else f"exit code {found.returncode}")
    said = said.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("allocation failure: ")
    key = next((key for words, key in _KEYS.items() if words in said.lower()), None)
    raise ConfigError(f"{_place(key, submission)}sbatch: {said}")


def _place(key: str | None, submission: Submission) -> str:
    """Return the key with its value, as the beginning of a line."""
    if key is None:
        return ""
    value: object = submission.cluster
    for name in key.split("."):
        value = getattr(value, name)
    return f"{key}: found {str(value)!r}; "


def _without_defaults() -> dict[str, str]:
    """Return the environment without the variables that change sbatch's options, and would win over the script's."""
    return {name: value for name, value in environment().items() if not name.startswith("SBATCH_")}


def _state(line: str) -> JobState:
    job_id, state, reason, nodes, left = line.strip().split("|", len(_FIELDS) - 1)
    phase: Phase = "pending" if state in _PENDING else "running" if state in _RUNNING else "ended"
    words = "" if reason == "None" or phase == "running" else reason
    return JobState(job_id, phase, state, words, nodes, left if phase == "running" else "")


def _from_records(job_id: str) -> JobState | None:
    """Return the end of a job that squeue has forgotten, where the site keeps records and has sacct. Else None."""
    try:
        found = ask(["sacct", "--noheader", "--allocations", "--parsable2", "--format=State,NodeList", "-j", job_id])
    except ProgramError:
        return None
    lines = found.stdout.splitlines()
    if found.returncode != 0 or not lines or "|" not in lines[-1]:
        return None
    state, nodes = lines[-1].split("|", 1)
    return JobState(job_id, "ended", state.split()[0], "", nodes)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
