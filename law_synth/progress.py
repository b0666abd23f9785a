"""One look for all progress bars."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress(*columns: str, disable: bool = False) -> Progress:
    """Description, bar, count, remaining time, then `columns`: texts like `loss {task.fields[loss]}`."""
    standard = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*standard, *map(TextColumn, columns), disable=disable)
