"""Pictures of `law-synth evaluate`: a grid of cases, and how images agree with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from law_synth.evaluation.findings import LAYOUT, Findings, column, nearest_training
from law_synth.evaluation.measures import SMALL_LESION
from nnunet_order.figures import DPI, LABEL_COLOURS, METHOD_COLOURS, PANEL_INCHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN, JUDGE = LABEL_COLOURS[0], LABEL_COLOURS[2]  # contours of the mask and of the judge's prediction
RANKS = ("best", "upper quartile", "median", "lower quartile", "worst")
CAPTION_LENGTH = 20
SMALLEST_GROUP = 8


def draw_grid(findings: Findings, path: Path) -> None:
    """Write mask | generated | overlay | own real image | nearest real image for five cases, best to worst.

    Ordered by the judge's Dice, or by index where there is no judge. Real images are left out of columns
    that no case can fill.
    """
    rows = ranked_cases(findings)
    has_own = any(findings.subject.sources[index] is not None for _, index in rows)
    titles = ["Mask", "Generated", "Overlay", *["Own real image"] * has_own, "Nearest real image"]
    aspect = float(np.median([np.divide(*findings.subject.synthetic.read(i)[1].shape) for _, i in rows]))
    height = (PANEL_INCHES * aspect + 0.24) * len(rows) + 0.45
    figure = _figure(PANEL_INCHES * len(titles) + 0.5, height)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10, fontweight="bold")
    for axes_row, (rank, index) in zip(grid, rows, strict=True):
        _draw_case(axes_row, findings, rank, index, has_own)
    handles = [figure.axes[0].plot([], [], color=OWN, label="mask")[0]]
    if findings.segmenter is not None:
        handles += figure.axes[0].plot(
            [], [], color=JUDGE, linestyle="--", label="the segmenter's prediction"
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path)


def ranked_cases(findings: Findings) -> list[tuple[str, int]]:
    """(caption, index) of the cases to show, no case twice."""
    dice = column(findings.layouts["synthetic"], "dice")
    judged = np.isfinite(dice)
    order = np.argsort(-dice[judged], kind="stable") if judged.any() else np.arange(len(dice))
    indices = np.flatnonzero(judged)[order] if judged.any() else order
    positions = np.linspace(0, len(indices) - 1, len(RANKS)).round().astype(int)
    chosen: dict[int, str] = {}
    for rank, position in zip(RANKS, positions, strict=True):
        chosen.setdefault(int(indices[position]), rank if judged.any() else "")
    return [(rank, index) for index, rank in chosen.items()]


def draw_agreement(findings: Findings, path: Path) -> None:
    """Write Dice histograms (own and shuffled masks, real ceiling) and Dice against the lesion's size."""
    figure = _figure(9.6, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    bins = np.linspace(0, 1, 21 if len(findings.layouts["synthetic"]) >= 200 else 11)
    for (label, layout, metric), colour in zip(_series(findings), METHOD_COLOURS, strict=False):
        dice = column(layout, metric)
        dice = dice[np.isfinite(dice)]
        if not dice.size:
            continue
        real = label.startswith("ceiling")
        style = {"histtype": "step" if real else "stepfilled", "linewidth": 1.8, "alpha": 1 if real else 0.45}
        share = np.full(dice.size, 100 / dice.size)
        left.hist(dice, bins, weights=share, color=colour, label=f"{label}, mean {dice.mean():.2f}", **style)
        left.axvline(dice.mean(), color=colour, linewidth=1.2, linestyle=":")
        if metric == "dice":
            _draw_against_size(
                right, column(layout, "lesion_ratio"), column(layout, metric), colour, not real
            )
    left.set(xlabel="Dice of the segmenter's prediction", ylabel="images (%)", xlim=(0, 1))
    right.set(
        xlabel="lesion's share of the image (%), lines: medians", ylabel="Dice, own mask", ylim=(-0.02, 1.02)
    )
    right.axvline(100 * SMALL_LESION, color="#999999", linewidth=0.8, linestyle="--")
    right.text(100 * SMALL_LESION, 0.01, " small ", fontsize=8, color="#666666", ha="right")
    _log_percent(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    figure.suptitle(f"Does the lesion lie where the mask says? {findings.segmenter.name}", fontsize=10)
    figure.savefig(path)


def _series(findings: Findings) -> list[tuple[str, np.ndarray, str]]:
    """(label, layout, column) of each histogram."""
    synthetic = findings.layouts["synthetic"]
    series = [("own mask", synthetic, "dice"), ("shuffled mask", synthetic, "dice_shuffled")]
    return series + [
        (f"ceiling: real {name}", findings.layouts[name], "dice") for name in findings.references
    ]


def _draw_against_size(axes: Axes, ratio: np.ndarray, dice: np.ndarray, colour: str, dots: bool) -> None:
    """Dots of single images, and as a line the medians of up to eight groups of like size."""
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
    ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100) if low <= tick <= high]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_case(row: Sequence[Axes], findings: Findings, rank: str, index: int, has_own: bool) -> None:
    subject, train = findings.subject, findings.subject.references["train"]
    image, mask = subject.synthetic.read(index)
    dice = findings.layouts["synthetic"][index][LAYOUT.index("dice")]
    panels: list[tuple[np.ndarray | None, str]] = [(mask, f"{mask.mean():.1%} lesion"), (image, "")]
    panels.append((image, f"Dice {dice:.2f}" if np.isfinite(dice) else ""))
    if has_own:
        own = dict(subject.pairs).get(index)
        panels.append((None, "unknown") if own is None else (train.read(own)[0], _short(train.ids[own])))
    nearest, similarity = (values[index] for values in nearest_training(findings, "efficientnet"))
    panels.append((train.read(int(nearest))[0], f"{_short(train.ids[nearest])}, cos {similarity:.2f}"))
    for axes, (picture, caption) in zip(row, panels, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(caption, fontsize=7.5, labelpad=2)
        if picture is not None:
            axes.imshow(picture, cmap="gray", vmin=0, vmax=picture.max() if picture is mask else 255)
    row[0].set_ylabel(f"{rank}\n{_short(subject.synthetic.ids[index])}".strip(), fontsize=8)
    _contour(row[2], mask, OWN, "solid")
    if findings.segmenter is not None:
        _contour(row[2], findings.segmenter.lesion_mask(image), JUDGE, "dashed")


def _contour(axes: Axes, mask: np.ndarray, colour: str, style: str) -> None:
    """Outline a mask; nothing for an empty one."""
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(float)  # zeros close the outline of a lesion that the border cuts
    y, x = (np.arange(side) - 1 for side in padded.shape)
    axes.contour(x, y, padded, [0.5], colors=[colour], linewidths=1.4, linestyles=style)
    axes.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _short(name: str) -> str:
    return name if len(name) <= CAPTION_LENGTH else name[: CAPTION_LENGTH - 3] + "..."


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
