"""grid.png of `law-synth evaluate`: five cases, best to worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from law_synth.evaluation.image_sets import ImageSet
from law_synth.evaluation.mask_metrics import several
from law_synth.evaluation.per_image import PerImageResults, nearest_training
from law_synth.judging.agreement import region_masks
from law_synth.view.places import Geometry
from law_synth.view.slices import SliceView
from nnunet_order.pictures import LABEL_COLOURS, PANEL_INCHES, draw_outline, label_colour, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

OWN, JUDGE = (
    LABEL_COLOURS[0],
    LABEL_COLOURS[2],
)  # contours of mask and judge, of one region
NEITHER = "#888888"  # colour in the legend of a line that stands for all regions
RANKS = ("best", "upper quartile", "median", "lower quartile", "worst")
CAPTION_LENGTH = 20


def draw_grid(results: PerImageResults, path: Path) -> None:
    """Write mask | generated | overlay | own real image | nearest real image for five cases, best to worst.

    The cases are ordered by the judge's Dice, or by index where there is no judge. The column of own real
    images is left out if no case has one.
    """
    rows = ranked_cases(results)
    has_own = any(results.sets.sources[index] is not None for _, index in rows)
    titles = ["Mask", "Generated", "Overlay", *["Own real image"] * has_own, "Nearest real image"]
    aspect = float(np.median([_aspect(results, index) for _, index in rows]))
    height = (PANEL_INCHES * aspect + 0.24) * len(rows) + 0.45
    figure = new_figure(PANEL_INCHES * len(titles) + 0.5, height)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10, fontweight="bold")
    for axes_row, (rank, index) in zip(grid, rows, strict=True):
        _draw_case(axes_row, results, rank, index, has_own)
    handles = _legend(results)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=9
    )
    figure.savefig(path)


def _legend(results: PerImageResults) -> list[Line2D]:
    """Legend entries: the lines of the overlays, and the window of the values."""
    from matplotlib.lines import Line2D

    regions, judged = several(results.sets.real.regions), results.segmenter is not None
    handles = [
        Line2D([], [], color=label_colour(number), linewidth=4, label=name)
        for number, name in enumerate(regions)
    ]
    mask, found = (NEITHER, NEITHER) if regions else (OWN, JUDGE)
    handles.append(Line2D([], [], color=mask, label="mask"))
    if judged:
        handles.append(Line2D([], [], color=found, linestyle="--", label="the segmenter's prediction"))
    if window := results.sets.synthetic.window:
        handles.append(Line2D([], [], linestyle="none", label=f"shown: {window}"))
    return handles


def ranked_cases(results: PerImageResults) -> list[tuple[str, int]]:
    """(caption, index) of the cases to show; no case appears twice."""
    dice = results.mask_columns["synthetic"]["dice"]
    judged = np.isfinite(dice)
    order = np.argsort(-dice[judged], kind="stable") if judged.any() else np.arange(len(dice))
    indices = np.flatnonzero(judged)[order] if judged.any() else order
    positions = np.linspace(0, len(indices) - 1, len(RANKS)).round().astype(int)
    chosen: dict[int, str] = {}
    for rank, position in zip(RANKS, positions, strict=True):
        chosen.setdefault(int(indices[position]), rank if judged.any() else "")
    return [(rank, index) for index, rank in chosen.items()]


def _draw_case(row: Sequence[Axes], results: PerImageResults, rank: str, index: int, has_own: bool) -> None:
    sets, train = results.sets, results.sets.references["train"]
    image, mask = sets.synthetic.read(index)
    panels: list[tuple[np.ndarray | None, str, float]] = []
    aspect, view = _pixel_aspect(sets.synthetic.geometry(index)), sets.synthetic.view
    sizes = _sizes(mask, view, sets.synthetic.geometry(index))
    panels += [(_mask_picture(mask, view), sizes, aspect), (image, "", aspect)]
    panels.append((image, _dice_caption(results, index), aspect))
    if has_own:
        own = dict(sets.pairs).get(index)
        panels.append((None, "unknown", 1.0) if own is None else _real_panel(train, own, ""))
    nearest, similarity = (values[index] for values in nearest_training(results, "efficientnet"))
    panels.append(_real_panel(train, int(nearest), f", cos {similarity:.2f}"))
    for axes, (picture, caption, pixel_aspect) in zip(row, panels, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(caption, fontsize=7.5, labelpad=2)
        if picture is not None:
            axes.imshow(picture, aspect=pixel_aspect)
    row[0].set_ylabel(f"{rank}\n{_short(sets.synthetic.slices[index].case)}".strip(), fontsize=8)
    _outline(row[2], mask, view, OWN, "solid")
    if results.segmenter is not None:
        _outline(row[2], sets.synthetic.find(results.segmenter, index, image), view, JUDGE, "dashed")


def _real_panel(images: ImageSet, index: int, note: str) -> tuple[np.ndarray, str, float]:
    aspect = _pixel_aspect(images.geometry(index))
    return images.read(index)[0], _short(images.ids[index]) + note, aspect


def _mask_picture(mask: np.ndarray, view: SliceView) -> np.ndarray:
    """uint8 (Y, X, 3): white, or with several regions each in its colour, smaller ones on top."""
    from matplotlib.colors import to_rgb

    regions = region_masks(mask, view)
    picture = np.zeros((*mask.shape, 3))
    for number, name in sorted(enumerate(regions), key=lambda item: -len(view.dataset.regions[item[1]])):
        picture[regions[name]] = to_rgb(label_colour(number)) if len(regions) > 1 else 1.0
    return np.rint(255 * picture).astype(np.uint8)


def _sizes(mask: np.ndarray, view: SliceView, geometry: Geometry | None) -> str:
    """Each region's share of the image, or its area where there is a spacing."""
    regions = region_masks(mask, view)
    if geometry is None:
        sizes = {name: f"{inside.mean():.1%}" for name, inside in regions.items()}
    else:
        pixel = np.prod(_pixel_size(geometry)) / 100
        sizes = {name: f"{inside.sum() * pixel:.2g} cm²" for name, inside in regions.items()}
    if len(regions) == 1:
        return f"{next(iter(sizes.values()))} lesion"
    return ", ".join(f"{name} {size}" for name, size in sizes.items() if regions[name].any())


def _dice_caption(results: PerImageResults, index: int) -> str:
    layout = results.mask_columns["synthetic"]
    names = {name: f"dice_{name}" for name in several(results.sets.real.regions)} or {"": "dice"}
    known = {name: layout[key][index] for name, key in names.items() if np.isfinite(layout[key][index])}
    return "Dice " + ", ".join(f"{name} {dice:.2f}".strip() for name, dice in known.items()) if known else ""


def _outline(axes: Axes, mask: np.ndarray, view: SliceView, colour: str, style: str) -> None:
    """Outline the regions of a mask: a single one in `colour`, several in their own colours."""
    regions = region_masks(mask, view)
    for number, inside in enumerate(regions.values()):
        draw_outline(axes, inside, colour if len(regions) == 1 else label_colour(number), style)


def _aspect(results: PerImageResults, index: int) -> float:
    """Height of a synthetic image over its width, in mm where there is a spacing."""
    images = results.sets.synthetic
    height, width = images.read(index)[1].shape
    return height / width * _pixel_aspect(images.geometry(index))


def _pixel_aspect(geometry: Geometry | None) -> float:
    return 1.0 if geometry is None else float(np.divide(*_pixel_size(geometry)))


def _pixel_size(geometry: Geometry) -> tuple[float, ...]:
    """Size of a pixel (Y, X) of the slice, in mm."""
    return tuple(size for axis, size in enumerate(geometry.spacing[::-1]) if axis != geometry.axis)


def _short(name: str) -> str:
    return name if len(name) <= CAPTION_LENGTH else name[: CAPTION_LENGTH - 3] + "..."
