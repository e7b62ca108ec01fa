"""`vpred-data` runs the commands of the `data` package with SD2's tokenizer, and `encode`, which needs networks."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from data.commands import check as check_command
from data.commands.cli import COMMANDS, Command
from data.commands.cli import main as run_command
from launcher.contract.command_line import command_line
from vpred_train.config.model import TextEncoderConfig
from vpred_train.errors import USER_ERRORS
from vpred_train.latent_cache import encode
from vpred_train.text.tokenizer import Tokenizer

# A factory, so that each worker process makes its own tokenizer. The context length is SD2's: the demonstration's is
# shorter.
CHECK = replace(
    COMMANDS["check"],
    run=partial(check_command.run, make_tokenizer=partial(Tokenizer, TextEncoderConfig().context_length)),
)
ENCODE = Command("encode images and captions into a cache that training reads", encode.add_arguments, encode.run)


@command_line(*USER_ERRORS)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    return run_command(argv, {**COMMANDS, "check": CHECK, "encode": ENCODE})


if __name__ == "__main__":
    sys.exit(main())
