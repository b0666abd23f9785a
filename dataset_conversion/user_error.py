"""One line instead of a traceback when the user's input, not our code, is at fault."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input. The message is one line: what was found, what was expected, what to do."""


def run_command(command: Callable[[], None]) -> None:
    """Run a console script's body; a `UserError` becomes one line on stderr and exit code 2.

    Other exceptions keep their traceback: they are ours to mend. Ctrl-C exits with 130, as shells expect.
    """
    try:
        command()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
