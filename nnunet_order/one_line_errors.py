"""One line for a UserError under nnU-Net's commands as well, which would print a traceback."""

from __future__ import annotations

import sys
from types import TracebackType

from dataset_conversion.system.errors import UserError, run_command


def one_line_errors() -> None:
    """From now on an uncaught UserError of this process prints one line and exits with code 2."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, UserError):
            previous(kind, error, traceback)
            return

        def fail() -> None:
            raise error

        run_command(fail)

    sys.excepthook = hook
