"""Implements `vpred-launch serve FOLDER`: metrics, targets and live pages of the runs in a folder."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from launcher.contract.command_line import command_line
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.live.answers import Answers
from launcher.live.runs import find_runs
from launcher.live.server import LiveServer, is_loopback
from launcher.planning.trainer import Trainer
from launcher.preflight.host_probe import why_closed

logger = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:9399"


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `serve` to the launcher's commands."""
    text = "serve the runs in a folder: live pages for people, metrics and targets for Prometheus"
    parser = commands.add_parser("serve", help=text, description=text, allow_abbrev=False)
    _add_options(parser)
    parser.set_defaults(command=_serve)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with run directories, or one of them")
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="ADDRESS:PORT", help=LISTEN_HELP)


LISTEN_HELP = (
    "address and port; anybody who reaches them can read names, logs and pictures of the runs, so the default is this "
    "machine alone (default: 127.0.0.1:9399)"
)


def _serve(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    serve(options.folder, options.listen)
    return ExitCode.OK


@command_line(ConfigError)
def main(argv: Sequence[str] | None = None) -> int:
    """Serve one run beside its launcher."""
    parser = argparse.ArgumentParser(prog="launcher.live.serve", allow_abbrev=False)
    _add_options(parser)
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    serve(options.folder, options.listen)
    return ExitCode.OK


def serve(folder: Path, listen: str) -> None:
    """Serve until the process is ended. Raises ConfigError: when `folder` holds no run or `listen` cannot be opened."""
    address, port = parse_listen(listen)
    folder = require_folder(folder)
    try:
        server = LiveServer(address, port, Answers(folder))
    except OSError as error:
        raise ConfigError(
            f"--listen: found {listen} ({error.strerror})", "choose another port: --listen 127.0.0.1:PORT"
        ) from None
    with server:
        bound = server.server_address[1]
        shown = "127.0.0.1" if address in ("0.0.0.0", "::") else f"[{address}]" if ":" in address else address  # noqa: S104
        logger.warning("live page of %s: http://%s:%s/", folder, shown, bound)
        if not is_loopback(address):
            logger.warning(
                "listens on %s: whoever reaches it can read names, logs and pictures of all runs there", listen
            )
        server.serve_forever()


def require_folder(folder: Path) -> Path:
    """Return the folder as an absolute path. Raises ConfigError: when it is no folder, or holds no run."""
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise ConfigError(f"{folder}: {what}", "give a folder with run directories, or a run directory")
    resolved = folder.resolve()
    if not find_runs(resolved):
        raise ConfigError(f"{folder}: holds no run", "give the folder above your --run-dir, such as runs")
    return resolved


def parse_listen(text: str) -> tuple[str, int]:
    """Parse ADDRESS:PORT, where an IPv6 address stands in brackets. Raises ConfigError: on other text."""
    address, _, port = text.rpartition(":")
    bare = address.removeprefix("[").removesuffix("]")
    bracketed = address.startswith("[") and address.endswith("]")
    if not bare or (":" in bare) != bracketed or not port.isdecimal() or not port.isascii() or int(port) > 65535:
        raise ConfigError(f"--listen: found {text!r}", "write ADDRESS:PORT, such as 127.0.0.1:9399 or [::1]:9399")
    return bare, int(port)


def checked_listen(text: str) -> str:
    """Return `text` if a server can listen there now. Raises ConfigError: when it cannot."""
    address, port = parse_listen(text)
    if reason := why_closed(address, port):
        raise ConfigError(f"--serve: found {text} ({reason})", "choose another port: --serve 127.0.0.1:PORT")
    return text
