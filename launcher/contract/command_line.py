"""Turns the end of a command into an exit code: its result, a user's mistake, a closed pipe, Ctrl-C or a full disk.

Every `main` that people run is decorated. `vpred_train.entry` gives the parts of a run the same answers.
"""

import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from launcher.contract.exit_codes import ExitCode

STREAMS = {1: "standard output", 2: "standard error"}  # errors of streams that `entry` has opened have these names
# These file system errors concern the machine and not our code.
OF_THE_SYSTEM = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR),
}
NO_TEMPORARY_FOLDER = "No usable temporary directory"  # in tempfile's error
P = ParamSpec("P")


def command_line(*mistakes: type[Exception], prefix: str = "") -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorate a `main` whose users' errors are `mistakes`: each is printed in one line, after `prefix`; exit code 2.

    The decorated `main` returns its exit code also where argparse ends the program.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def run(*arguments: P.args, **named: P.kwargs) -> int:
            def attempt() -> int:
                try:
                    return main(*arguments, **named)
                except mistakes as error:
                    print(f"{prefix}{error}", file=sys.stderr)
                    return ExitCode.BAD_CONFIG

            code: int = exit_code(attempt)
            return code

        return run

    return decorate


def exit_code(main: Callable[[], Any], is_part: bool = False) -> Any:
    """Return the exit code of `main`, or that of an interrupt or an error of the machine. Other errors leave it.

    is_part: `main` is a part of a run, which reports errors of the machine by their traceback
    """
    try:
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        if error.filename in STREAMS.values() or (isinstance(error, BrokenPipeError) and _output_is_closed()):
            return _without_output(error)
        if error.errno == errno.ENOENT and str(error.strerror).startswith(NO_TEMPORARY_FOLDER):
            print("no folder for temporary files can be written; mount a writable /tmp, or set TMPDIR", file=sys.stderr)
            return ExitCode.BAD_CONFIG
        if is_part or error.errno not in OF_THE_SYSTEM:
            raise
        print(f"{error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return ExitCode.BAD_CONFIG


def _output_is_closed() -> bool:
    """Return whether nobody reads standard output any more; otherwise the broken pipe was another, such as a socket."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _without_output(error: OSError) -> int:
    """Return the exit code after `error` of a standard stream.

    Unwritten output is discarded, because Python would fail to flush it at exit.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    if error.filename == STREAMS[2]:
        os.dup2(null, 2)
    os.dup2(null, 1)
    if error.errno == errno.EPIPE:  # the reader, such as `| head`, is done, which is no fault
        return 128 + signal.SIGPIPE
    print(f"{error.filename}: cannot be written ({error.strerror})", file=sys.stderr)
    return ExitCode.FAILED
