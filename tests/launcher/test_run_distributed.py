"""run_distributed.sh with a make-believe Python: what is set up, when, and what the first words do."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from support import CHECKOUT

SCRIPT = CHECKOUT / "run_distributed.sh"
TOOLS = ("bash", "env", "cat", "chmod", "cp", "dirname", "flock", "mkdir", "mv", "rm", "sha256sum")

# Answers `-c`, `-m venv DIR` and `-m pip install`; notes every call; a file called `fail` makes pip fail.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"@LOG@"
[[ "$1 $2" != "-m pip" ]] || echo "safe ${PYTHONSAFEPATH-} path ${PYTHONPATH-}" >>"@LOG@"
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip")
        [[ ! -e "@ROOT@/fail" ]] || exit 1
        if [[ "$*" == *"--no-deps -e"* ]]; then
            printf '#!/usr/bin/env bash\\necho "launch:$*"\\n' >"${0%/*}/vpred-launch"
            chmod +x "${0%/*}/vpred-launch"
        fi ;;
    "-m vpred_train.kernels.library") [[ ! -e "@ROOT@/no-compiler" ]] || exit 1 ;;
    "-c "*) exit @SUITABLE@ ;;
esac
"""


class Checkout:
    def __init__(self, root: Path, suitable: bool, name: str = "check out") -> None:
        self.root = root / name
        self.bin = root / "bin"
        self.log = root / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        shutil.copy(SCRIPT, self.root)
        (self.root / "requirements.lock").write_text("one==1\n")
        (self.root / "pyproject.toml").write_text("[project]\n")
        kernels = self.root / "vpred_train" / "kernels"
        kernels.mkdir(parents=True)
        for name in ("requirements.lock", "operations.cpp"):
            (kernels / name).write_text("one")
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)
        python = self.bin / "python3"
        text = PYTHON.replace("@LOG@", str(self.log)).replace("@ROOT@", str(root))
        python.write_text(text.replace("@SUITABLE@", "0" if suitable else "1"))
        python.chmod(python.stat().st_mode | stat.S_IXUSR)

    def start(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "run_distributed.sh"), *words],
            env={"PATH": str(self.bin), **variables},
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def installs(self) -> int:
        """How often the locked requirements were installed since the last question."""
        calls = self.log.read_text() if self.log.exists() else ""
        self.log.write_text("")
        return calls.count("pip install --require-hashes -r")


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path, suitable=True)


def test_the_first_start_sets_up_and_the_second_does_not(checkout):
    first = checkout.start()
    assert (first.returncode, first.stdout) == (0, "launch:run\n"), first.stderr
    assert "setting up" in first.stderr
    assert checkout.installs() == 1
    second = checkout.start("--recipe", "a b.yaml", "seed=1")
    assert (second.stdout, second.stderr) == ("launch:run --recipe a b.yaml seed=1\n", "")
    assert checkout.installs() == 0


def test_without_a_compiler_the_set_up_goes_on(checkout):
    (checkout.root.parent / "no-compiler").touch()
    first = checkout.start()
    assert (first.returncode, first.stdout) == (0, "launch:run\n"), first.stderr
    assert first.stderr.splitlines()[-1] == "run_distributed.sh: going on without compiled operations"


def test_a_command_as_first_word_is_passed_on(checkout):
    assert checkout.start("plan", "--json").stdout == "launch:plan --json\n"
    assert checkout.start("run").stdout == "launch:run\n"
    assert checkout.start("status", "runs/a b").stdout == "launch:status runs/a b\n"
    assert checkout.start("a-command-to-come", "x=1").stdout == "launch:a-command-to-come x=1\n"


@pytest.mark.parametrize("word", ["seed=1", "data.path=a b", "--recipe", "-h", ""])
def test_an_option_or_an_override_as_first_word_starts_a_run(checkout, word):
    assert checkout.start(word).stdout == f"launch:run {word}\n"


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml", "vpred_train/kernels/operations.cpp"])
def test_changed_requirements_are_installed(checkout, name):
    checkout.start()
    checkout.installs()
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    assert checkout.start().stdout == "launch:run\n"
    assert checkout.installs() == 1
    checkout.start()
    assert checkout.installs() == 0


def test_a_set_up_that_failed_is_done_again_from_the_start(checkout):
    (checkout.root.parent / "fail").touch()
    failed = checkout.start()
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.splitlines()[-1].endswith("set-up failed (see above); the next start tries again")
    leftover = checkout.root / ".venv" / "leftover"
    leftover.touch()
    (checkout.root.parent / "fail").unlink()
    assert checkout.start().stdout == "launch:run\n"
    assert not leftover.exists()


def test_no_suitable_python(tmp_path):
    result = Checkout(tmp_path, suitable=False).start()
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("run_distributed.sh: found no Python 3.11 or 3.12 on PATH")


@pytest.mark.parametrize("name", ["a:b", "a\nb", 'a"b', "$x", "a`b", "a\\b"])
def test_a_checkout_without_an_environment_is_refused_at_once(tmp_path, name):
    refused = Checkout(tmp_path, suitable=True, name=name).start()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("run_distributed.sh: move the checkout: no virtual environment works in a path")


@pytest.mark.parametrize("name", ["a,b", "it's", "%s", "a=b", "-x", "a;b&c", "\u732b"])
def test_other_names_of_a_checkout_are_no_matter(tmp_path, name):
    started = Checkout(tmp_path, suitable=True, name=name).start("plan")
    assert (started.returncode, started.stdout) == (0, "launch:plan\n"), started.stderr


def test_the_set_up_takes_no_namesake_for_pythons_own_modules(checkout):
    checkout.start(PYTHONPATH="/decoys")
    assert "-m pip install --require-hashes" in checkout.log.read_text()
    found = {line for line in checkout.log.read_text().splitlines() if line.startswith("safe ")}
    assert found == {"safe 1 path "}
