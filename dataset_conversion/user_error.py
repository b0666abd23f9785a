"""One line instead of a traceback when the user's input, not our code, is at fault."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler


class UserError(ValueError):
    """Bad input. The message is one line: what was found, what was expected, what to do."""


# Safetensors quotes the system's words; torch.save only says that its file did not grow.
NO_SPACE = ("No space left", "quota exceeded", "unexpected pos", "iostream error", "PytorchStreamWriter")


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """UserError when what is written in the block, a file or folder `path`, finds the disk full."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise kinds of their own
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(words in f"{error}" for words in NO_SPACE):
            raise
        raise UserError(
            f"found no space left for {path}; free some disk space and give the same command again"
        ) from error


def run_command(command: Callable[[], None]) -> None:
    """Run a console script's body with its log on stderr; a `UserError` becomes a line there and exit code 2.

    Other exceptions keep their traceback: they are ours to mend. Ctrl-C exits with 130, as shells expect.
    """
    # Not on stdout, which is for what a command is asked to print: a script, a list for a cluster.
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        command()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
