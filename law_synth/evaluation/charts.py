"""Pictures of `law-synth evaluate`: a grid of cases, and how images agree with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from law_synth.evaluation.mask_measures import SMALL_LESION
from law_synth.evaluation.per_image import Findings, nearest_training, several
from law_synth.judging.agreement import region_masks
from nnunet_order.pictures import DPI, LABEL_COLOURS, METHOD_COLOURS, PANEL_INCHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from law_synth.evaluation.image_sets import ImageSet
    from law_synth.view.places import Geometry
    from law_synth.view.slices import SliceView

OWN, JUDGE = LABEL_COLOURS[0], LABEL_COLOURS[2]  # contours of the mask and of the judge's, of one region
NEITHER = "#888888"  # a line in the legend that stands for all regions
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
    aspect = float(np.median([_aspect(findings, index) for _, index in rows]))
    height = (PANEL_INCHES * aspect + 0.24) * len(rows) + 0.45
    figure = _figure(PANEL_INCHES * len(titles) + 0.5, height)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10, fontweight="bold")
    for axes_row, (rank, index) in zip(grid, rows, strict=True):
        _draw_case(axes_row, findings, rank, index, has_own)
    handles = _legend(findings)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=9
    )
    figure.savefig(path)


def _legend(findings: Findings) -> list[Line2D]:
    """Lines of the overlays, and the window of the values that are shown."""
    from matplotlib.lines import Line2D

    regions, judged = several(tuple(findings.subject.real.regions)), findings.segmenter is not None
    handles = [
        Line2D([], [], color=_colour(number), linewidth=4, label=name) for number, name in enumerate(regions)
    ]
    mask, found = (NEITHER, NEITHER) if regions else (OWN, JUDGE)
    handles.append(Line2D([], [], color=mask, label="mask"))
    if judged:
        handles.append(Line2D([], [], color=found, linestyle="--", label="the segmenter's prediction"))
    if window := findings.subject.synthetic.window:
        handles.append(Line2D([], [], linestyle="none", label=f"shown: {window}"))
    return handles


def ranked_cases(findings: Findings) -> list[tuple[str, int]]:
    """(caption, index) of the cases to show, no case twice."""
    dice = findings.layouts["synthetic"]["dice"]
    judged = np.isfinite(dice)
    order = np.argsort(-dice[judged], kind="stable") if judged.any() else np.arange(len(dice))
    indices = np.flatnonzero(judged)[order] if judged.any() else order
    positions = np.linspace(0, len(indices) - 1, len(RANKS)).round().astype(int)
    chosen: dict[int, str] = {}
    for rank, position in zip(RANKS, positions, strict=True):
        chosen.setdefault(int(indices[position]), rank if judged.any() else "")
    return [(rank, index) for index, rank in chosen.items()]


def draw_agreement(findings: Findings, path: Path) -> None:
    """Write Dice histograms (own and shuffled masks, real ceiling) and Dice against the lesion's size.

    One row for each region where there are several.
    """
    regions = several(tuple(findings.subject.real.regions)) or ("",)
    figure = _figure(9.6 if len(regions) == 1 else 11.5, 0.9 + 3.0 * len(regions))
    grid = figure.subplots(len(regions), 2, width_ratios=(1, 1.1), squeeze=False)
    for row, region in zip(grid, regions, strict=True):
        _draw_agreement(row, findings, region)
    title = f"Does the lesion lie where the mask says? {findings.segmenter.name}"
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


def _draw_agreement(row: Sequence[Axes], findings: Findings, region: str) -> None:
    left, right = row
    suffix = f"_{region}" if region else ""
    bins = np.linspace(0, 1, 21 if len(findings.subject.synthetic) >= 200 else 11)
    for (label, layout, metric), colour in zip(_series(findings), METHOD_COLOURS, strict=False):
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


def _series(findings: Findings) -> list[tuple[str, dict[str, np.ndarray], str]]:
    """(label, layout, name in it) of each histogram."""
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
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low <= tick <= high]
    if len(ticks) < 2:
        ticks = np.geomspace(low, high, 5)[1:-1]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_case(row: Sequence[Axes], findings: Findings, rank: str, index: int, has_own: bool) -> None:
    subject, train = findings.subject, findings.subject.references["train"]
    image, mask = subject.synthetic.read(index)
    panels: list[tuple[np.ndarray | None, str, float]] = []
    aspect, view = _pixel_aspect(subject.synthetic.geometry(index)), subject.synthetic.view
    sizes = _sizes(mask, view, subject.synthetic.geometry(index))
    panels += [(_mask_picture(mask, view), sizes, aspect), (image, "", aspect)]
    panels.append((image, _dice_caption(findings, index), aspect))
    if has_own:
        own = dict(subject.pairs).get(index)
        panels.append((None, "unknown", 1.0) if own is None else _real_panel(train, own, ""))
    nearest, similarity = (values[index] for values in nearest_training(findings, "efficientnet"))
    panels.append(_real_panel(train, int(nearest), f", cos {similarity:.2f}"))
    for axes, (picture, caption, pixel_aspect) in zip(row, panels, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(caption, fontsize=7.5, labelpad=2)
        if picture is not None:
            axes.imshow(picture, aspect=pixel_aspect)
    row[0].set_ylabel(f"{rank}\n{_short(subject.synthetic.slices[index].case)}".strip(), fontsize=8)
    _outline(row[2], mask, view, OWN, "solid")
    if findings.segmenter is not None:
        _outline(row[2], subject.synthetic.find(findings.segmenter, index, image), view, JUDGE, "dashed")


def _real_panel(images: ImageSet, index: int, note: str) -> tuple[np.ndarray, str, float]:
    aspect = _pixel_aspect(images.geometry(index))
    return images.read(index)[0], _short(images.ids[index]) + note, aspect


def _mask_picture(mask: np.ndarray, view: SliceView) -> np.ndarray:
    """uint8 (Y, X, 3): white, or of several regions each in its colour, the smaller ones on top."""
    from matplotlib.colors import to_rgb

    regions = region_masks(mask, view)
    picture = np.zeros((*mask.shape, 3))
    for number, name in sorted(enumerate(regions), key=lambda item: -len(view.dataset.regions[item[1]])):
        picture[regions[name]] = to_rgb(_colour(number)) if len(regions) > 1 else 1.0
    return np.rint(255 * picture).astype(np.uint8)


def _sizes(mask: np.ndarray, view: SliceView, geometry: Geometry | None) -> str:
    """Share of the image, or area where there is a spacing, of each region."""
    regions = region_masks(mask, view)
    if geometry is None:
        sizes = {name: f"{inside.mean():.1%}" for name, inside in regions.items()}
    else:
        pixel = np.prod(_pixel_size(geometry)) / 100
        sizes = {name: f"{inside.sum() * pixel:.2g} cm²" for name, inside in regions.items()}
    if len(regions) == 1:
        return f"{next(iter(sizes.values()))} lesion"
    return ", ".join(f"{name} {size}" for name, size in sizes.items() if regions[name].any())


def _dice_caption(findings: Findings, index: int) -> str:
    layout = findings.layouts["synthetic"]
    names = {name: f"dice_{name}" for name in several(tuple(findings.subject.real.regions))} or {"": "dice"}
    known = {name: layout[key][index] for name, key in names.items() if np.isfinite(layout[key][index])}
    return "Dice " + ", ".join(f"{name} {dice:.2f}".strip() for name, dice in known.items()) if known else ""


def _outline(axes: Axes, mask: np.ndarray, view: SliceView, colour: str, style: str) -> None:
    """Outline what a mask holds: one region in `colour`, several in their own."""
    regions = region_masks(mask, view)
    for number, inside in enumerate(regions.values()):
        _contour(axes, inside, colour if len(regions) == 1 else _colour(number), style)


def _colour(region: int) -> str:
    return LABEL_COLOURS[region % len(LABEL_COLOURS)]


def _aspect(findings: Findings, index: int) -> float:
    """Height of a synthetic image by its width, in mm where there is a spacing."""
    images = findings.subject.synthetic
    height, width = images.read(index)[1].shape
    return height / width * _pixel_aspect(images.geometry(index))


def _pixel_aspect(geometry: Geometry | None) -> float:
    return 1.0 if geometry is None else float(np.divide(*_pixel_size(geometry)))


def _pixel_size(geometry: Geometry) -> tuple[float, ...]:
    """(Y, X) of the slice, in mm."""
    return tuple(size for axis, size in enumerate(geometry.spacing[::-1]) if axis != geometry.axis)


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
