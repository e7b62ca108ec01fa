"""The wheel in an environment of its own: nothing of the checkout is on the path, and the demonstration begins."""

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from launcher.contract.run_dir import RunDir, Summary
from launcher.planning.mpirun import find_mpirun
from support import CHECKOUT
from support.jobs import DEADLINE_S, free_ports, losses

PACKAGES = ("checkpoints_mgr", "data", "launcher", "monitoring", "vpred_train")
WHERE = f"""
import json, sys
from importlib import import_module, metadata
files = [import_module(name).__file__ for name in {PACKAGES!r}]
print(json.dumps([files, sys.path, metadata.version("vpred")]))
"""


TYPED = """
from pathlib import Path
import vpred_train
from checkpoints_mgr import Checkpoint
from data import open_source
from launcher.contract.run_dir import RunDir
from monitoring import History
reveal_type(vpred_train.load_recipe(Path("x")))
reveal_type(vpred_train.TextToImage.from_weights)
reveal_type((Checkpoint.open, open_source, RunDir, History))
"""


def run(*words: str | Path, cwd: Path) -> str:
    """What a command prints, in a shell that knows nothing of Python and of MPI; it must end well."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMPI_"))}
    answer = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git knows, so that what only lies about here is no part of it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in run("git", "ls-files", "-z", cwd=CHECKOUT).rstrip("\0").split("\0"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, source / name, follow_symlinks=False)
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", target)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=target)
    (path,) = target.glob("vpred-*.whl")
    return path


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a new environment with the wheel, which borrows this one's other packages."""
    home = tmp_path_factory.mktemp("home") / "env"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    # Of a folder that a .pth file names, Python reads no .pth files: this checkout's own installation is not seen.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_the_packages_come_from_the_wheel(commands: Path, wheel: Path, tmp_path: Path) -> None:
    files, path, version = json.loads(run(commands / "python", "-P", "-c", WHERE, cwd=tmp_path))
    root = commands.parent.resolve()
    assert [Path(each).resolve().is_relative_to(root) for each in files] == [True] * len(PACKAGES)
    assert all((Path(each).parent / "py.typed").is_file() for each in files)
    assert str(CHECKOUT) not in path
    assert wheel.name.startswith(f"vpred-{version}-")


def test_plan_and_check_need_no_checkout(commands: Path, tmp_path: Path) -> None:
    """Cluster files, recipes and images are part of the wheel."""
    plan = json.loads(run(commands / "vpred-launch", "plan", "--json", cwd=tmp_path))
    assert str(CHECKOUT) not in json.dumps(plan["files"])
    packages = commands.parent / "lib"
    recipe = next(packages.glob("python*/site-packages/vpred_train/recipes/tiny_emoji.yaml"))
    run(commands / "vpred-train", "--check", "--recipe", recipe, cwd=tmp_path)
    names = {path.name for path in packages.glob("python*/site-packages/launcher/cluster_configs/*")}
    assert names == {path.name for path in (CHECKOUT / "cluster_configs").iterdir()}


def test_a_strict_type_checker_knows_our_types(commands: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TYPED)
    options = ("--strict", "--ignore-missing-imports", "--python-executable", commands / "python")
    recipe, images, faces, _ = run(sys.executable, "-m", "mypy", *options, "program.py", cwd=tmp_path).splitlines()
    assert '"vpred_train.config.train.TrainConfig"' in recipe
    assert images.endswith('-> vpred_train.sampling.pipeline.TextToImage"')
    assert "Any" not in faces
    (tmp_path / "program.py").write_text("import vpred_train\nvpred_train.Trainer\n")
    with pytest.raises(AssertionError, match='Module has no attribute "Trainer"'):
        run(sys.executable, "-m", "mypy", *options, "program.py", cwd=tmp_path)


def test_the_demonstration_begins(commands: Path, tmp_path: Path) -> None:
    """Four steps of two ranks, then images, weights and the report."""
    overrides = [
        "total_samples=64",
        "schedule.warmup_samples=16",
        "checkpoint.every_samples=32",
        "final_samples=2",
        "sampling.steps=2",
    ]
    # The borrowed mpi4py is built for the borrowed Open MPI.
    overrides += [f"cluster.launcher.mpirun={find_mpirun(None, os.environ).path}"]
    overrides += [f"cluster.metrics.base_port={free_ports(2)}"]
    run(commands / "vpred-launch", "run", "--run-dir", tmp_path / "run", *overrides, cwd=tmp_path)
    done = RunDir(tmp_path / "run")
    summary = Summary.read(done.summary_json)
    assert summary is not None
    assert summary.samples_seen == 64
    assert len(losses(done.root)) == 4
    assert all(map(math.isfinite, losses(done.root)))
    assert len([*done.samples.glob("*.png")]) == 2
    assert done.report_html.is_file()
    assert (done.weights / "ema.safetensors").is_file()
