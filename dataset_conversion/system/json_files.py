"""JSON files read as the types that their format has; what does not fit is refused in one line.

A format is a frozen dataclass, and its module is the only one that reads or writes such files. msgspec checks
types, names the place of a wrong one, needs no other package and is quick to import.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import write_atomically

Kind = TypeVar("Kind")

RESTORE = "restore the file"
WRONG_TYPE = re.compile(r"Expected `(?P<expected>.+)`(?: \S+ \S+)?, got `(?P<found>.+)`")
PLACE = re.compile(r" - at `(?:key )?\$?\.?(?P<place>.*)`$")


def read_json(path: Path, kind: type[Kind], remedy: str = RESTORE) -> Kind:
    """The content of a JSON file as `kind`: a dataclass, or what msgspec knows, such as dict[str, str].

    Keys that `kind` does not know are left out. UserError: no such file, no JSON, a wrong type or a missing
    key; it names the file and the key and ends in `remedy`.
    """
    return parse_json(_read_bytes(path, remedy), kind, path, remedy)


def read_lenient_json(path: Path, kind: type[Kind], remedy: str = RESTORE) -> Kind:
    """As `read_json`, by Python's own reader: it takes the NaN and Infinity that nnU-Net's files may hold."""
    content = _read_bytes(path, remedy)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed ({error}), expected JSON; {remedy}") from None
    return converted(found, kind, path, remedy)


def parse_json(content: bytes | str, kind: type[Kind], path: Path | str, remedy: str = RESTORE) -> Kind:
    """As `read_json`, of a text; `path` says in errors where it stands."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {_explained(error)}; {remedy}") from None


def converted(
    content: Any, kind: type[Kind], path: Path | str, remedy: str = RESTORE, quoted_numbers: bool = False
) -> Kind:
    """As `read_json`, of what another reader has made of a file: TOML, or JSON as dicts and lists.

    `quoted_numbers`: a text such as "3e-4" counts as the number where one is expected.
    """
    try:
        return msgspec.convert(content, type=kind, strict=not quoted_numbers)
    except msgspec.MsgspecError as error:
        raise UserError(f"{path}: {_explained(error)}; {remedy}") from None


def write_json(path: Path, content: dict | list) -> None:
    """As `write_atomically`."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def as_json(record: Any) -> Any:
    """A dataclass, and what it holds, as dicts, lists, tuples, numbers and texts, for `write_json`."""
    return msgspec.to_builtins(record, enc_hook=_number)


def _number(scalar: Any) -> int | float | bool | str:
    """numpy's scalar as Python has it."""
    if hasattr(scalar, "item"):
        return scalar.item()
    raise TypeError(f"{type(scalar).__name__} has no form in JSON")


def _read_bytes(path: Path, remedy: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: not found, expected a JSON file; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def _explained(error: Exception) -> str:
    """msgspec's words as found and expected, with the place in the file."""
    text = f"{error}"
    place = ""
    if match := PLACE.search(text):
        text, place = text[: match.start()], f" at {match['place']}" if match["place"] else ""
    if match := WRONG_TYPE.fullmatch(text):
        kinds = match["expected"].replace("` or `", " or ").replace(" | ", " or ")
        return f"found {match['found']}{place}, expected {kinds}"
    if match := re.fullmatch(r"Object missing required field `(.+)`", text):
        return f"found no key {match[1]}{place}, expected one"
    if isinstance(error, msgspec.ValidationError):
        return f"found another value{place} ({text[:1].lower()}{text[1:]})"
    return f"malformed ({text[:1].lower()}{text[1:]}), expected JSON"
