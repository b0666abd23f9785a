"""One line instead of a traceback when the user's input, not our code, is at fault."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset_conversion.interrupts import INTERRUPTED, Interrupts
from dataset_conversion.standard_streams import READER_GONE, OutputLost, standard_streams


class UserError(ValueError):
    """Bad input. The message is one line: what was found, what was expected, what to do."""


ANOTHER = "choose another place or correct its permissions"
# Safetensors quotes the system's words; torch.save only says that its file did not grow.
NO_SPACE = ("No space left", "quota exceeded", "unexpected pos", "iostream error", "PytorchStreamWriter")

OURS = ("dataset_conversion", "nnunet_order", "law_synth")
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def check_writable(path: Path) -> None:
    """UserError where no file or folder `path` can be made, so that hours of work do not end in one."""
    path = Path(path).absolute()
    place = path if path.is_dir() else next(above for above in path.parents if os.path.lexists(above))
    if not place.is_dir():
        raise UserError(f"{place}: found a file, expected a folder to write {path.name} into; {ANOTHER}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place}: found no permission to write, expected it for {path.name}; {ANOTHER}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """UserError when what is written in the block, a file or folder `path`, is refused or finds no space."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise kinds of their own
        number = getattr(error, "errno", None)
        if number in REFUSED:
            raise UserError(
                f"{error.filename or path}: found {error.strerror!r} while writing {path.name}; {ANOTHER}"
            ) from error
        if number not in FULL and not any(words in f"{error}" for words in NO_SPACE):
            raise
        raise UserError(
            f"found no space left for {path}; free some disk space and give the same command again"
        ) from error


def run_command(command: Callable[[], None]) -> None:
    """Run a console script's body with its log on stderr; a `UserError` becomes a line there and exit code 2.

    Other exceptions keep their traceback: they are ours to mend. Ctrl-C exits with 130, as shells expect.
    Where the reader of stdout has gone (`| head`) the exit code is 141. Where stdout is closed or full it is
    2, with a line on stderr. What stderr does not take is dropped. A process calls this as its last act: it
    keeps answering Ctrl-C.
    """
    interrupts = Interrupts()
    interrupts.watch()
    with standard_streams():
        code = _run(command, interrupts)
        interrupts.unwatch()
    if code:
        sys.exit(code)


def _run(command: Callable[[], None], interrupts: Interrupts) -> int:
    """Exit code of `command`, or whatever it raises that needs a traceback."""
    try:
        _start_log()
        try:
            command()
        except SystemExit:  # after a verb's help, or what it found
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BaseException as error:
        if interrupts.pressed:
            interrupts.tell()
            return INTERRUPTED
        if isinstance(error, OutputLost) and error.reader_has_gone:
            return READER_GONE
        if not isinstance(error, (UserError, OutputLost)):
            raise
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 2
    return 0


def printable(text: str) -> str:
    """`text` on one line that moves no cursor and changes no colour: Python's escapes of such characters."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


class _PrintableLines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _start_log() -> None:
    """Log to stderr: stdout is for what a command is asked to print, a script or a list for a cluster."""
    import rich

    rich.reconfigure(stderr=True)  # one console for the log and all bars, so that neither tears the other
    if rich.get_console().is_terminal:
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(show_time=False, show_path=False)
        handler.setFormatter(_PrintableLines("%(message)s"))
    else:  # whole lines, which a file can be searched for
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableLines("%(levelname)-8s %(message)s"))
    logging.basicConfig(handlers=[handler])
    for package in OURS:  # of others, only their warnings
        logging.getLogger(package).setLevel(logging.INFO)
    for library in ("PIL", "tifffile"):  # of a damaged file they log and warn of what they raise
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
