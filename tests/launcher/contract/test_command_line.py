"""What every command answers to a user's mistake, an interrupt, a closed pipe and errors of the machine."""

import errno
import os
import subprocess
import sys

import pytest

from launcher.contract.command_line import command_line, exit_code
from launcher.contract.config import ConfigError


def ending(error: BaseException | None) -> int:
    @command_line(ConfigError, prefix="cmd: ")
    def main() -> int:
        if error is not None:
            raise error
        return 3

    return main()


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (None, 3, ""),
        (ConfigError("x: found 1; give 2"), 2, "cmd: x: found 1; give 2\n"),
        (SystemExit(2), 2, ""),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), 2, "/runs/a: No space left on device\n"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "a file: Read-only file system\n"),
    ],
)
def test_the_end_of_a_command(
    capsys: pytest.CaptureFixture[str], error: BaseException | None, code: int, printed: str
) -> None:
    assert (ending(error), capsys.readouterr().err) == (code, printed)


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), OSError(errno.ENOENT, "gone", "/x"), ValueError("found 1"), BrokenPipeError("a socket")],
)
def test_an_error_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        ending(error)


def test_a_part_of_a_run_shows_errors_of_the_machine() -> None:
    def fail() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        exit_code(fail, is_part=True)


def test_a_closed_pipe_is_no_error() -> None:
    program = (
        "import sys; from launcher.contract.command_line import command_line\n"
        "@command_line()\n"
        "def main():\n    [print('x' * 1000) for _ in range(1000)]\n    return 0\n"
        "sys.exit(main())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")
