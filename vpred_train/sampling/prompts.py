"""Reads the prompts of `vpred-sample` from the command line and from files, and warns of cut ones."""

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from launcher.contract.config import ConfigError
from vpred_train.config.model import TextEncoderConfig
from vpred_train.foreign import require_regular
from vpred_train.text.tokenizer import Tokenizer


def read_prompts(given: Sequence[str], path: Path | None) -> list[str]:
    """Read the prompts of --prompt, then those of --prompts-file without blank lines. Raises ConfigError: for none."""
    for prompt in given:
        require_text(prompt, "--prompt")
    prompts = list(given)
    if path is not None:
        from_file = [line for line in read_lines(path) if line]
        if not from_file:
            raise ConfigError(f"{path}: holds no prompt; write one on each line")
        prompts += from_file
    if not prompts:
        raise ConfigError("no prompt: give --prompt TEXT or --prompts-file FILE")
    return prompts


def read_negative_prompts(given: str | None, path: Path | None, count: int) -> list[str]:
    """Return one negative prompt for each of `count` prompts. Raises ConfigError: for two sources or another number."""
    require_text(given or "", "--negative-prompt")
    if path is None:
        return [given or ""] * count
    if given is not None:
        raise ConfigError("--negative-prompt and --negative-prompts-file: give one of them")
    lines = read_lines(path)
    if len(lines) != count:
        raise ConfigError(f"{path}: holds {len(lines)} lines for {count} prompts; write one for each")
    return lines


def require_text(given: str, option: str) -> None:
    """Raise ConfigError when an option's text is not UTF-8: it came in another encoding than the terminal's."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{option}: found {given!a}, which is not UTF-8; set the terminal to UTF-8, or give a file of prompts"
        ) from None


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, without the white space around them and without a byte-order mark.

    Lines end at LF, CR LF or CR only: a prompt may hold the other characters that Unicode counts as line ends.
    Raises ConfigError: when the file cannot be read as UTF-8 text.
    """
    try:
        require_regular(path)
        text = path.read_text(encoding="utf-8-sig")  # turns CR LF and CR into LF
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from None
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def warn_of_long_prompts(prompts: Sequence[str], config: TextEncoderConfig) -> None:
    """Print to stderr the ends of prompts that the text encoder does not see."""
    tokenizer = Tokenizer(config.context_length)
    for prompt in dict.fromkeys(prompts):
        if cut := tokenizer.cut_off(prompt):
            print(
                f"warning: the prompt {shorten(prompt, 60)!r} has more than {config.context_length - 2} tokens; "
                f"cut off: {cut!r}",
                file=sys.stderr,
            )
