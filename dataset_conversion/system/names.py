"""Ids of cases, names of groups and paths in records: safe to make files of, and never two for one thing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from dataset_conversion.system.errors import UserError

# Spaces and characters that no editor shows: zero-width ones, marks of writing direction, byte order marks.
UNSEEN_AT_ENDS = re.compile(r"^[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+$")
LONGEST = 200  # bytes of an id; file systems take 255, of which endings and temporary names need some
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, half characters, ends of lines


def tidy_name(text: str) -> str:
    """A name without unseen characters at its ends, in Unicode's composed form (NFC).

    Two spellings that look alike are then equal: `P1` and `P1 `, and both forms of `é`.
    """
    return unicodedata.normalize("NFC", UNSEEN_AT_ENDS.sub("", text))


def match_key(name: str) -> str:
    """A key that is equal for names which people or file systems take for the same name.

    Such names differ only in letter case, in the number of spaces, or in the form of a letter.
    """
    return " ".join(unicodedata.normalize("NFKC", tidy_name(name)).casefold().split())


def check_name(name: object, what: str, source: Path) -> str:
    """A name as `tidy_name` leaves it. UserError: not a text, empty, with control characters.

    Args:
        what: what it names, for the message, such as "group".
        source: file or folder that it was read from.
    """
    tidy = tidy_name(name) if isinstance(name, str) else ""
    if not tidy or any(unicodedata.category(letter) in UNPRINTABLE for letter in tidy):
        raise UserError(
            f"{source}: found the {what} {_shown(name)}, expected a name without control characters; "
            "correct it"
        )
    return tidy


def check_case_id(case_id: object, source: Path) -> str:
    """A case's id as `tidy_name` leaves it; files of any folder may be named after it.

    UserError: as `check_name`; with / or backslash or a drive, which lead to other folders; hidden by a dot
    in front; longer than file systems take.
    """
    tidy = check_name(case_id, "case id", source)
    if re.search(r"^\.|[/\\]", tidy) or PureWindowsPath(tidy).drive or len(tidy.encode()) > LONGEST:
        raise UserError(
            f"{source}: found the case id {_shown(case_id)}, expected one that a file's name can begin with: "
            f"no / or \\, no dot in front, at most {LONGEST} bytes; correct it"
        )
    return tidy


def check_case_ids(case_ids: object, source: Path) -> list[str]:
    """As `check_case_id`, for a list of ids. UserError: also for anything but a list."""
    if not isinstance(case_ids, list):
        raise UserError(f"{source}: found {_shown(case_ids)}, expected a list of case ids; correct it")
    return [check_case_id(case_id, source) for case_id in case_ids]


def check_inside(path: object, source: Path) -> str:
    """A relative path as a record has it. UserError: it is no text or does not lead into the folder."""
    parts = Path(path).parts if isinstance(path, str) else ()
    if not parts or ".." in parts or Path(path).anchor or "\0" in path:
        raise UserError(
            f"{source}: found the path {_shown(path)}, expected one below its folder; remove that file"
        )
    return path


def refuse_lookalikes(names: Iterable[str], what: str, source: Path) -> None:
    """UserError: two different names have one `match_key`; `what` is their plural, for the message."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(match_key(name), name)
        if other != name:
            raise UserError(
                f"{source}: found the {what} {_shown(other)} and {_shown(name)}, expected names that differ "
                "in more than letter case, spaces or the form of a letter; rename one of them"
            )


def _shown(name: object) -> str:
    """A name on one line that is not too long; two forms of a letter look different."""
    text = repr(name)
    if isinstance(name, str) and unicodedata.normalize("NFC", name) != name:
        text = ascii(name)
    return text if len(text) <= 100 else f"{text[:100]}..."
