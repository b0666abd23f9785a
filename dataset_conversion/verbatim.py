"""Words from elsewhere (names, ids, paths) on rich's screen: as they are, whatever they look like."""

from __future__ import annotations

from rich.text import Text

from dataset_conversion.user_error import printable


def verbatim(text: object) -> Text:
    """`text` for a cell, a title or a line: neither its brackets nor its :colons: mean anything to rich."""
    return Text(printable(f"{text}"))
