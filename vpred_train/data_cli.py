"""`vpred-data`: the commands of the data room, and `encode`, which needs networks."""

from collections.abc import Sequence

from data.cli import COMMANDS, Command
from data.cli import main as run_command
from vpred_train import encode

ENCODE = Command("make a cache of moments and text features to train from", encode.add_arguments, encode.run)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; never returns."""
    run_command(argv, {**COMMANDS, "encode": ENCODE})


if __name__ == "__main__":
    main()
