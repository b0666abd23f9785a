"""sizes.png of `nnunet-order compare`: mDice against parameters and, where measured, against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_order.comparing.latency import LATENCY_SIDE
from nnunet_order.comparing.trainer_lookup import short_name
from nnunet_order.metrics import FOREGROUND_MEAN
from nnunet_order.pictures import METHOD_COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

PARAMETERS, LATENCY_COLUMN = "parameters", "latency_ms"
LABEL_PLACES = [  # offset in points, horizontal and vertical alignment
    *((7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 7, "center", "bottom")),
    *((0, -7, "center", "top"), (5, 5, "left", "bottom"), (5, -5, "left", "top")),
    *((-5, 5, "right", "bottom"), (-5, -5, "right", "top")),
    *((0, 18, "center", "bottom"), (0, -18, "center", "top")),
]
TICK_STEPS = (1, 2, 5)


def draw_sizes(rows: Sequence[Mapping], families: Mapping[str, str], path: Path) -> None:
    """Write a row of panels per test set, a point with its interval per trainer, a colour per family.

    Args:
        rows: those of `table_rows`; shares between 0 and 1, parameters, and milliseconds if measured.
        families: trainer -> its entry of the legend.
    """
    shown = [row for row in rows if row["label"] == FOREGROUND_MEAN]
    test_sets = list(dict.fromkeys(row["test_set"] for row in shown))
    columns = [PARAMETERS, *[LATENCY_COLUMN] * all(LATENCY_COLUMN in row for row in shown)]
    names = list(dict.fromkeys(families.values()))
    colours = {name: METHOD_COLOURS[place % len(METHOD_COLOURS)] for place, name in enumerate(names)}
    figure = new_figure(1.0 + 5.2 * len(columns), 0.8 + 3.6 * len(test_sets))
    grid = figure.subplots(len(test_sets), len(columns), squeeze=False, sharey="row")
    for test_set, panels in zip(test_sets, grid, strict=True):
        of_set = [row for row in shown if row["test_set"] == test_set]
        panels[0].set_ylabel(f"{test_set}\nmDice (%), 95 % interval")
        for axes, column in zip(panels, columns, strict=True):
            for row in of_set:
                _draw_point(axes, row, column, colours[families[row["trainer"]]])
            _finish(axes, column)
    handles = [grid[0, 0].plot([], [], "o", color=colours[name])[0] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.draw_without_rendering()  # which settles the axes, so that it is known what covers what
    for test_set, panels in zip(test_sets, grid, strict=True):
        for axes, column in zip(panels, columns, strict=True):
            _place_labels(axes, [row for row in shown if row["test_set"] == test_set], column)
    figure.savefig(path)


def _draw_point(axes: Axes, row: Mapping, column: str, colour: str) -> None:
    style = {"color": colour, "linewidth": 1.2}
    axes.plot([row[column]] * 2, _interval(row), **style)
    if column == LATENCY_COLUMN:  # the middle half of the rounds
        axes.plot([row[f"{column}_low"], row[f"{column}_high"]], [100 * row["mDice"]] * 2, **style)
    axes.plot(row[column], 100 * row["mDice"], "o", color=colour, markersize=7)


def _interval(row: Mapping) -> list[float]:
    """Ends of the interval in percent; the mean where they are unknown, as with a single case."""
    ends = np.array([row["mDice_low"], row["mDice_high"]], float)
    return [100 * float(end) for end in np.where(np.isfinite(ends), ends, row["mDice"])]


def _finish(axes: Axes, column: str) -> None:
    """Logarithmic x axis with plain numbers, and the house's look."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.4, high * 1.4)
    axes.xaxis.set_major_locator(LogLocator(subs=TICK_STEPS if high < 100 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    is_latency = column == LATENCY_COLUMN
    axes.set_xlabel(f"ms per image of {LATENCY_SIDE} px, one CPU thread" if is_latency else "parameters")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _plain(value: float, _: int) -> str:
    """200 as 200, 50,000 as 50 K, 2,000,000 as 2 M."""
    for unit, name in ((1e6, " M"), (1e3, " K")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _place_labels(axes: Axes, rows: Sequence[Mapping], column: str) -> None:
    """Write each trainer's name beside its point, where it covers least and stays in the panel."""
    taken = [_covered_by(axes, row, column) for row in rows]
    for row in sorted(rows, key=lambda row: row[column]):
        label = axes.annotate(
            short_name(row["trainer"]),
            (row[column], 100 * row["mDice"]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            in_layout=False,
        )
        # min takes the first of equals: the places are in the order of preference.
        best = min(LABEL_PLACES, key=lambda place: _crowding(_moved(label, place), taken, axes.bbox))
        taken.append(_moved(label, best))


def _covered_by(axes: Axes, row: Mapping, column: str) -> Bbox:
    """The box of a point and its interval, in pixels of the figure."""
    from matplotlib.transforms import Bbox

    ends = axes.transData.transform([(row[column], end) for end in _interval(row)])
    return Bbox([ends[0], ends[1]]).padded(4)


def _moved(label: Annotation, place: tuple[float, float, str, str]) -> Bbox:
    """The box of a label that has been moved to one of `LABEL_PLACES`."""
    x, y, horizontal, vertical = place
    label.set(position=(x, y), horizontalalignment=horizontal, verticalalignment=vertical)
    return label.get_window_extent()


def _crowding(box: Bbox, taken: Sequence[Bbox], panel: Bbox) -> float:
    """How many boxes this one covers; far more where it leaves the panel."""
    is_inside = panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
    return box.count_overlaps(taken) + 100 * (not is_inside)
