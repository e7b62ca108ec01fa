"""Starts every command and every process of a run. Importing this module loads nothing else of ours.

Foreign packages called `data` or `launcher` may lie in the current directory or on PYTHONPATH. This module therefore
orders `sys.path` before it imports any of ours; no other file may do so. `python -P -m vpred_train.entry PROGRAM ...`
starts a part of a run. It goes through this package, because only its name is sure to be used by nobody else.
"""

import importlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, TextIO

# The `main` of each of these modules is a part of a run, or of the preflight.
PROGRAMS = {
    "data.loading.worker",
    "launcher.live.serve",
    "launcher.rank.node",
    "launcher.preflight.host_probe",
    "launcher.ranktable.npu_probe",
    "launcher.rank.shim",
    "launcher.run.guard",
    "launcher.processes.sweep",
    "monitoring.export",
    "vpred_train.commands.doctor",
}
BAD_INPUT = 2  # ExitCode.BAD_CONFIG, copied because nothing of ours is loaded yet
# A shell's `&`, cron or a supervisor may have ignored these. SIGHUP stays ignored (nohup), and so do the two signals
# that a shim ignores for a trainer that has no handler yet (launcher/rank/run_trainer.py).
_NOT_INHERITED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


def launch() -> NoReturn:
    """Run vpred-launch."""
    _run("launcher.cli")


def train() -> NoReturn:
    """Run vpred-train, python -m vpred_train, and MindONE's train_text_to_image."""
    _run("vpred_train.commands.train")


def sample() -> NoReturn:
    """Run vpred-sample."""
    _run("vpred_train.commands.sample")


def text_to_image() -> NoReturn:
    """Run vpred-text-to-image and python -m vpred_train.text_to_image, the command line of MindONE."""
    _run("vpred_train.commands.mindone_text_to_image")


def weights() -> NoReturn:
    """Run vpred-weights."""
    _run("vpred_train.commands.weights")


def ema() -> NoReturn:
    """Run vpred-ema."""
    _run("vpred_train.commands.ema")


def checkpoints() -> NoReturn:
    """Run vpred-ckpt and python -m checkpoints_mgr."""
    _run("vpred_train.commands.checkpoint")


def images() -> NoReturn:
    """Run vpred-data."""
    _run("vpred_train.commands.data")


def main() -> NoReturn:
    """Run python -P -m vpred_train.entry PROGRAM ...; PROGRAM is one of `PROGRAMS`."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        print(f"vpred_train.entry: found {name!r}; known: {', '.join(sorted(PROGRAMS))}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    _run(name)


def prepare() -> None:
    """Prepare the process for any command: our packages first, open UTF-8 streams, default signal handlers."""
    _put_installation_first()
    _open_standard_streams()
    _speak_utf8()
    for number in _NOT_INHERITED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _run(module: str) -> NoReturn:
    prepare()
    _refuse_other_encodings()
    from launcher.contract.command_line import exit_code

    sys.exit(exit_code(lambda: importlib.import_module(module).main(), is_part=module in PROGRAMS))


def _put_installation_first() -> None:
    """Order `sys.path`: standard library, our packages, then the rest.

    The current directory that `python -m` puts in front is left out.
    """
    root = str(Path(__file__).resolve().parents[1])
    rest = list(sys.path)
    if not sys.flags.safe_path and rest and rest[0] in ("", _current_directory()):
        del rest[0]
    library = os.path.dirname(os.__file__)  # noqa: PTH120  it is compared as text
    own = {library, f"{library}/lib-dynload"}
    sys.path[:] = [*(each for each in rest if each in own), root, *(each for each in rest if each not in own)]


def _current_directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  as Python wrote it into sys.path
    except FileNotFoundError:  # the directory was removed
        return ""


def _open_standard_streams() -> None:
    """Open /dev/null as descriptor 0, 1 or 2 where it is closed.

    Otherwise the next file opened would get this number, and the output of libraries would go into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free one


def _speak_utf8() -> None:
    """Use UTF-8 for input and output under every locale.

    File names, arguments and prompts are UTF-8 in every file that we read or write. A GBK or Latin-1 locale must not
    decode them differently. Python fixes this encoding at its start. Under such a locale this process therefore starts
    again in UTF-8 mode, and PYTHONUTF8 does the same for its children. Output shows bytes that are not UTF-8 as
    \\udcXX, which JSON and YAML read back as the same.
    """
    if sys.getfilesystemencoding() != "utf-8":
        from launcher.contract.environment import environment

        # The arguments are read as bytes, because Python's copy is decoded already.
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]
        argv = [os.fsencode(sys.executable), b"-X", b"utf8", *words]
        os.execve(sys.executable, argv, environment() | {"PYTHONUTF8": "1"})  # noqa: S606  this program
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout, sys.stderr = _text(1, sys.stdout), _text(2, sys.stderr)


class _Output(io.FileIO):
    """Writes to standard output or error; a write error names the stream."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            from launcher.contract.command_line import STREAMS

            error.filename = STREAMS[self.fileno()]
            raise


def _text(descriptor: int, before: Any) -> TextIO:
    """Open a UTF-8 text stream: line-buffered on a terminal and on standard error, unbuffered under `python -u`."""
    output = _Output(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=output.isatty() or descriptor == 2,
        write_through=getattr(before, "write_through", False),
    )


def _refuse_other_encodings() -> None:
    """Exit with one line when an argument or the current directory is not UTF-8, since no file of ours can hold it."""
    for place, text in (*enumerate(sys.argv[1:], 1), ("the current directory", _current_directory())):
        try:
            text.encode()
        except UnicodeEncodeError:
            what = f"argument {place}" if isinstance(place, int) else place
            remedy = "set the terminal to UTF-8, or rename the file"
            print(f"{Path(sys.argv[0]).name}: {what}: found {text!r}, which is not UTF-8; {remedy}", file=sys.stderr)
            sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
