"""agreement.png of `law-synth evaluate`: do images agree with their masks?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from law_synth.evaluation.mask_means import SMALL_LESION
from law_synth.evaluation.mask_metrics import several
from law_synth.evaluation.per_image import PerImageResults
from nnunet_order.pictures import METHOD_COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST_GROUP = 8


def draw_agreement(results: PerImageResults, path: Path) -> None:
    """Write Dice histograms (own and shuffled masks, real ceiling) and Dice against the lesion's size.

    With several regions, each has a row.
    """
    regions = several(results.sets.real.regions) or ("",)
    figure = new_figure(9.6 if len(regions) == 1 else 11.5, 0.9 + 3.0 * len(regions))
    grid = figure.subplots(len(regions), 2, width_ratios=(1, 1.1), squeeze=False)
    for row, region in zip(grid, regions, strict=True):
        _draw_agreement(row, results, region)
    title = f"Does the lesion lie where the mask says? {results.segmenter.name}"
    figure.suptitle(title, fontsize=10)
    if len(regions) == 1:
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=8,
        )
    figure.savefig(path)


def _draw_agreement(row: Sequence[Axes], results: PerImageResults, region: str) -> None:
    left, right = row
    suffix = f"_{region}" if region else ""
    bins = np.linspace(0, 1, 21 if len(results.sets.synthetic) >= 200 else 11)
    for (label, layout, metric), colour in zip(_series(results), METHOD_COLOURS, strict=False):
        dice = layout[metric + suffix]
        dice = dice[np.isfinite(dice)]
        if not dice.size:
            continue
        real = label.startswith("ceiling")
        style = {"histtype": "step" if real else "stepfilled", "linewidth": 1.8, "alpha": 1 if real else 0.45}
        share = np.full(dice.size, 100 / dice.size)
        left.hist(dice, bins, weights=share, color=colour, label=f"{label}, mean {dice.mean():.2f}", **style)
        left.axvline(dice.mean(), color=colour, linewidth=1.2, linestyle=":")
        if metric == "dice":
            ratio = layout[f"lesion_ratio{suffix}"]
            _draw_against_size(right, ratio, layout[metric + suffix], colour, not real)
    what = region or "lesion"
    left.set(xlabel=f"Dice of the segmenter's {region or 'prediction'}", ylabel="images (%)", xlim=(0, 1))
    right.set(
        xlabel=f"{what}'s share of the image (%), lines: medians", ylabel="Dice, own mask", ylim=(-0.02, 1.02)
    )
    if region:
        handles = left.get_legend_handles_labels()
        right.legend(*handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    else:
        right.axvline(100 * SMALL_LESION, color="#999999", linewidth=0.8, linestyle="--")
        right.text(100 * SMALL_LESION, 0.01, " small ", fontsize=8, color="#666666", ha="right")
    _log_percent(right)
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)


def _series(results: PerImageResults) -> list[tuple[str, dict[str, np.ndarray], str]]:
    """(label, layout, name in it) of each histogram."""
    synthetic = results.mask_columns["synthetic"]
    series = [("own mask", synthetic, "dice"), ("shuffled mask", synthetic, "dice_shuffled")]
    return series + [
        (f"ceiling: real {name}", results.mask_columns[name], "dice") for name in results.references
    ]


def _draw_against_size(axes: Axes, ratio: np.ndarray, dice: np.ndarray, colour: str, dots: bool) -> None:
    """Dots for single images, and a line through the medians of up to eight groups of similar size."""
    known = np.isfinite(dice) & (ratio > 0)
    percent, dice = 100 * ratio[known], dice[known]
    if dots:
        axes.scatter(percent, dice, s=9, color=colour, alpha=0.45, linewidths=0)
    count = min(8, len(dice) // SMALLEST_GROUP)
    if count > 1:
        groups = np.array_split(np.argsort(percent), count)
        middle = [[np.median(values[group]) for group in groups] for values in (percent, dice)]
        axes.plot(*middle, color=colour, linewidth=1.8)


def _log_percent(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low <= tick <= high]
    if len(ticks) < 2:
        ticks = np.geomspace(low, high, 5)[1:-1]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
