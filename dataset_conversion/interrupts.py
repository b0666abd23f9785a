"""Ctrl-C at any moment, also in seconds of imports: one line and exit code 130, never a traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

INTERRUPTED = 130  # exit code, as shells expect


class Interrupts:
    """The first Ctrl-C raises KeyboardInterrupt, so that files and processes are tidied up.

    The next one, and one after the work, ends the process at once.
    """

    def __init__(self) -> None:
        self.pressed = False
        """Whether a Ctrl-C came: a library may turn its KeyboardInterrupt into an error of another kind."""
        self._ends_at_once = False
        self._told = False

    def watch(self) -> None:
        """From now on, answer Ctrl-C, unless the process ignores it, as in the background of a script."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
            return
        signal.signal(signal.SIGINT, self._answer)
        previous = sys.unraisablehook

        def hook(unraisable: sys.UnraisableHookArgs) -> None:
            if unraisable.exc_type is not KeyboardInterrupt:
                previous(unraisable)
            else:  # it came in a callback, of which imports have many: Python would print it and go on
                self._end()

        sys.unraisablehook = hook

    def unwatch(self) -> None:
        """The work is over: a Ctrl-C while Python shuts down finds nothing to tidy up."""
        self._ends_at_once = True

    def tell(self) -> None:
        """Say it, once."""
        if not self._told:
            self._told = True
            with suppress(OSError):  # not sys.stderr: a signal may come while that is being written to
                os.write(2, b"interrupted\n")

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self._ends_at_once:
            self._end()
        self.pressed = self._ends_at_once = True
        raise KeyboardInterrupt

    def _end(self) -> None:
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            with suppress(OSError):
                os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
        self.tell()
        os._exit(INTERRUPTED)
