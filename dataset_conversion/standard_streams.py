"""Standard output and error that may be lost: a reader that has gone (`| head`), a full disk, `>&-`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

READER_GONE = 141  # exit code, as shells have it of a process that SIGPIPE ends


class OutputLost(Exception):
    """Standard output takes nothing more."""

    def __init__(self, cause: OSError):
        super().__init__(
            f"standard output: found {cause.strerror!r} while writing to it, expected a place for what this "
            "command prints; send it elsewhere"
        )
        self.reader_has_gone = cause.errno in (errno.EPIPE, errno.EINVAL)  # the second on Windows


class _Stream:
    """A text stream that calls `lose` where the system refuses what is written."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self.lose(error)
            return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.lose(error)

    def lose(self, cause: OSError) -> None:
        """Drop what is written from now on, and what still waits: Python's end would complain about it."""
        with suppress(OSError):  # a stream in memory has no descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Output(_Stream):
    """Standard output: what a command is asked for. Nobody may miss that it was lost."""

    _cause: OSError | None = None

    def flush(self) -> None:
        if self._cause is not None:  # also where a library has swallowed the first error
            raise OutputLost(self._cause)
        super().flush()

    def lose(self, cause: OSError) -> NoReturn:
        super().lose(cause)
        self._cause = cause
        raise OutputLost(cause) from None


@contextmanager
def standard_streams() -> Iterator[None]:
    """In the block, stdout raises `OutputLost` where it is lost; stderr is dropped, and the work goes on.

    Characters that a stream's encoding does not have are escaped there.
    """
    _open_closed_ones()
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _Output(sys.stdout), _Stream(sys.stderr)
    ours = sys.stdout, sys.stderr
    try:
        yield
    finally:
        for stream in ours:
            with suppress(OutputLost):
                stream.flush()
        sys.stdout, sys.stderr = before


def _open_closed_ones() -> None:
    """Python has None for a stream that was closed before its start (`>&-`).

    Its descriptor must not become that of the next file which is opened, or a library that prints would write
    into that file.
    """
    # Standard output for reading: what is written there is refused, and so noticed.
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free
            os.set_inheritable(descriptor, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
