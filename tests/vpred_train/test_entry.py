"""What holds for every command: ours before namesakes, UTF-8, closed and full streams, inherited signals."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from launcher.contract.command_line import exit_code
from launcher.contract.environment import environment
from support import CHECKOUT

SCRIPTS = sorted(tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"])
BIN = Path(sys.executable).parent
DEMO = CHECKOUT / "vpred_train" / "recipes" / "tiny_emoji.yaml"
IMAGES = CHECKOUT / "data" / "fluent_emoji"
PACKAGES = ("data", "launcher", "monitoring", "checkpoints_mgr", "tests", "docs", "cluster_configs")
MODULES = ("random", "queue", "secrets", "shlex", "difflib")  # of the standard library, needed after Python has begun
# What may lie beside `python -m`: not the package that is run, nor what it imports before our first line.
BY_MODULE = {
    "vpred_train": (*PACKAGES, *MODULES),
    "vpred_train.train_text_to_image": (*PACKAGES, *MODULES),
    "vpred_train.text_to_image": (*PACKAGES, *MODULES),
    "checkpoints_mgr": tuple(name for name in PACKAGES if name != "checkpoints_mgr"),
}


def decoys(folder: Path, names: tuple[str, ...] = (*PACKAGES, *MODULES), as_files: bool = False) -> Path:
    """A folder in which importing any of `names` ends the program."""
    for name in names:
        target = folder / f"{name}.py"
        if not as_files and name in PACKAGES:
            (folder / name).mkdir(parents=True)
            target = folder / name / "__init__.py"
        target.write_text("raise SystemExit('a namesake was imported')\n")
    return folder


def start(*words: str | Path | bytes, cwd: Path, code: int = 0, **variables: str) -> subprocess.CompletedProcess[bytes]:
    env = {name: value for name, value in environment().items() if not name.startswith("PYTHON")} | variables
    answer = subprocess.run(
        [*words], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
    )
    assert answer.returncode == code, (answer.stdout, answer.stderr)
    assert b"Traceback" not in answer.stderr
    return answer


@pytest.mark.parametrize("as_files", [False, True])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_finds_our_packages_first(tmp_path, script, as_files):
    folder = decoys(tmp_path, as_files=as_files)
    answer = start(BIN / script, "--help", cwd=folder, PYTHONPATH=str(folder))
    assert answer.stdout.startswith(b"usage: vpred-")


@pytest.mark.parametrize("module", BY_MODULE)
def test_modules_run_by_name_find_our_packages_first(tmp_path, module):
    answer = start(sys.executable, "-m", module, "--help", cwd=decoys(tmp_path, BY_MODULE[module]))
    assert answer.stdout.startswith(b"usage: vpred-")


def test_work_is_done_in_a_folder_of_namesakes(tmp_path):
    folder = decoys(tmp_path)
    images = folder / "images"  # new images, which are looked at by processes of their own
    images.mkdir()
    rows = ["dir,text"]
    for number in range(40):
        name = f"{number}.jpg"
        (images / name).write_bytes(sorted(IMAGES.glob("*.jpg"))[number].read_bytes())
        rows.append(f"{name},picture {number}")
    (images / "img_txt.csv").write_text("\n".join(rows) + "\n")
    checked = start(BIN / "vpred-data", "check", images, "--json", cwd=folder, PYTHONPATH=str(folder))
    assert json.loads(checked.stdout)["images"] == 40
    start(BIN / "vpred-train", "--check", "--recipe", DEMO, cwd=folder, PYTHONPATH=str(folder))
    planned = start(BIN / "vpred-launch", "plan", "--json", "cluster.launcher.allow_run_as_root=true", cwd=folder)
    argv = json.loads(planned.stdout)["argv"]
    assert argv[argv.index("vpred_train.entry") - 2 :][:2] == ["-P", "-m"]


def test_parts_of_a_run_find_our_packages_first(tmp_path):
    folder = decoys(tmp_path)
    program = [sys.executable, "-P", "-m", "vpred_train.entry"]
    start(*program, "launcher.processes.sweep", "--run-dir", tmp_path, cwd=folder, PYTHONPATH=str(folder))
    start(*program, "launcher.rank.shim", "--help", cwd=folder, PYTHONPATH=str(folder))
    answer = start(*program, "launcher.nothing", cwd=folder, code=2)
    assert answer.stderr.startswith(
        b"vpred_train.entry: found 'launcher.nothing'; known: data.loading.worker, launcher.live.serve, "
    )


@pytest.mark.parametrize("script", ["vpred-sample", "vpred-launch", "vpred-data", "vpred-text-to-image"])
def test_an_argument_that_is_not_utf8_is_refused_before_anything_else(tmp_path, script):
    answer = start(BIN / script, b"--prompt", b"a \xb9\xb7 dog", cwd=tmp_path, code=2)
    said = f"{script}: argument 2: found 'a \\udcb9\\udcb7 dog', which is not UTF-8; set the terminal to UTF-8, or "
    assert answer.stderr.startswith(said.encode())
    assert answer.stderr.count(b"\n") == 1


def test_a_current_directory_that_is_not_utf8_is_refused(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xb9\xb7")
    folder.mkdir()
    answer = start(BIN / "vpred-launch", "plan", cwd=folder, code=2)
    assert answer.stderr.startswith(b"vpred-launch: the current directory: found '") and answer.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "gbk"},
        {"PYTHONIOENCODING": "ascii:strict"},
        # As a Latin-1 or GBK locale, which this machine may lack: Python decodes names of files by another encoding.
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    ],
)
def test_names_and_captions_of_any_script_under_any_locale(tmp_path, variables):
    images = tmp_path / "猫 é"
    images.mkdir()
    first = sorted(IMAGES.glob("*.jpg"))[0]
    (images / "🐈.jpg").write_bytes(first.read_bytes())
    (images / "img_txt.csv").write_text(f"dir,text\n🐈.jpg,{'🐈 ' * 90}\n", encoding="utf-8")
    answer = start(BIN / "vpred-data", "check", "猫 é", "--json", cwd=tmp_path, **variables)
    assert "🐈" in answer.stdout.decode() and json.loads(answer.stdout)["images"] == 1


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_streams_are_no_fault(tmp_path, closed):
    command = f"exec {BIN / 'vpred-data'} check {IMAGES} " + " ".join(f"{number}>&-" for number in closed)
    start("sh", "-c", command, cwd=tmp_path)
    # What is opened next must not become standard output: a library that prints would write into it.
    lines = [
        "import os",
        "from vpred_train.entry import prepare",
        "prepare()",
        f"os._exit(min(os.open({str(IMAGES / 'img_txt.csv')!r}, os.O_RDONLY), 3))",
    ]
    program = "; ".join(lines)
    redirected = " ".join(f"{number}>&-" for number in closed)
    start("sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-c", program, cwd=tmp_path, code=3)


def test_a_full_disk_under_standard_output_is_told_in_one_line(tmp_path):
    answer = start("sh", "-c", f"exec {BIN / 'vpred-train'} --print-schema >/dev/full", cwd=tmp_path, code=1)
    assert answer.stderr == b"standard output: cannot be written (No space left on device)\n"


@pytest.mark.parametrize("pipe", ["|", "2>&1 |"])
def test_a_reader_that_has_enough_is_no_error(tmp_path, pipe):
    command = f"{BIN / 'vpred-train'} --print-schema {pipe} true; exit ${{PIPESTATUS[0]}}"
    answer = start("bash", "-c", command, cwd=tmp_path, code=128 + signal.SIGPIPE)
    assert answer.stderr == b""


def test_a_name_that_is_too_long_is_told_in_one_line(tmp_path):
    answer = start(BIN / "vpred-launch", "plan", "--run-dir", "x" * 300, cwd=tmp_path, code=2)
    assert answer.stderr.count(b"\n") == 1 and answer.stderr.endswith(b"xxx/train.yaml: File name too long\n")


def test_signals_that_a_parent_ignored_or_blocked_are_received(tmp_path):
    ignored = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP}

    def as_a_shell_in_the_background() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, ignored)

    program = (
        "import signal; from vpred_train.entry import prepare; prepare(); "
        "print(sorted(signal.Signals(n).name for n in signal.valid_signals() "
        "if signal.getsignal(n) is signal.SIG_IGN and n not in (signal.SIGPIPE, signal.SIGXFSZ)), "
        "sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=as_a_shell_in_the_background,
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=True,
    )
    assert told.stdout == "['SIGHUP'] []\n"  # which nohup means


def test_a_machine_without_a_writable_folder_for_temporary_files_is_one_line(tmp_path, monkeypatch, capsys):
    """As in a container with a read-only root: tempfile finds no folder, in whichever command asks it."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    assert exit_code(tempfile.mkdtemp, is_part=True) == 2
    said = capsys.readouterr().err
    assert said == "no folder for temporary files can be written; mount a writable /tmp, or set TMPDIR\n"
