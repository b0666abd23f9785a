"""What a terminal shows: one look for all progress bars, and words from elsewhere as they are."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from dataset_conversion.system.errors import printable

logger = logging.getLogger(__name__)

EVERY = 10  # seconds between two lines


class _Lines(Progress):
    """Where no terminal shows a bar (in log files, on clusters, in an experiment's stages): lines in the log.

    `training 120 of 400 (30 %), 0:02:10 left, loss 0.1234`: an experiment looks for "120 of 400 (".
    """

    def __init__(self, texts: tuple[TextColumn, ...]):
        super().__init__(disable=True, speed_estimate_period=math.inf)
        self._texts, self._left, self._told = texts, TimeRemainingColumn(), time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        task = self._tasks[task_id]
        if task.finished or time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            left = [] if task.time_remaining is None or task.finished else [f"{self._left.render(task)} left"]
            done = f"{task.completed:.0f} of {task.total:.0f} ({task.percentage:.0f} %)"
            text = [str(column.render(task)) for column in self._texts]
            logger.info("%s %s", task.description, ", ".join([done, *left, *text]))


def pace(count: float, seconds: float) -> str:
    """How fast images go: `1.25 images/s` or, below one a second, `40 s per image`; `-` at first."""
    if count <= 0 or seconds <= 0:
        return "-"
    faster = count >= seconds
    number = count / seconds if faster else seconds / count
    text = f"{number:.0f}" if number >= 100 else f"{number:.3g}"
    return f"{text} images/s" if faster else f"{text} s per image"


def progress(*columns: str, disable: bool = False) -> Progress:
    """Description, bar, count, remaining time, then `columns`: texts like `loss {task.fields[loss]}`."""
    texts = tuple(TextColumn(column, markup=False) for column in columns)
    standard = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # Over all that is done: in the usual window of 30 seconds slow work ends nothing, and no end is in sight.
    bar = Progress(*standard, *texts, disable=disable, speed_estimate_period=math.inf)
    return bar if disable or bar.console.is_interactive else _Lines(texts)


def verbatim(text: object) -> Text:
    """A name, an id or a path for a cell, a title or a line, with its brackets and :colons: as they are."""
    return Text(printable(f"{text}"))
