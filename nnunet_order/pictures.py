"""Pictures of results: example grids as in the paper's Fig. 7, and bars with intervals. Needs no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# Okabe & Ito's colours: distinct for colour-blind readers, bright enough on pink mucosa and on grey CT.
LABEL_COLOURS = ("#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
METHOD_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
IGNORE_COLOUR = "#FFFFFF"
PANEL_INCHES = 2.0
DPI = 130


@dataclass(frozen=True)
class Example:
    """One row of `draw_examples`."""

    caption: str
    """Shown to the left of the row: test set, rank and case id."""
    image: np.ndarray
    """(H, W) or (H, W, 3) in [0, 1]."""
    truth: np.ndarray
    """(H, W) label map."""
    predictions: Mapping[str, tuple[np.ndarray, Mapping[str, float]]]
    """Name -> (H, W) label map and the case's Dice per label; the same names in every row."""
    labels: Mapping[str, Sequence[int]]
    """Name of a label or region -> its values in the label maps; the same in every row."""
    ignore_label: int | None = None
    pixel_aspect: float = 1.0
    """Height of a pixel by its width."""

    @property
    def aspect(self) -> float:
        """Height of the image by its width."""
        return self.pixel_aspect * self.image.shape[0] / self.image.shape[1]


def displayable(image: np.ndarray, colour: bool, window: tuple[float, float] | None = None) -> np.ndarray:
    """(C, H, W) intensities -> (H, W, 3) in [0, 1] if `colour`, else the first channel (H, W) in a window.

    The window of grey images is by default that of their own `intensity_window`.
    """
    if colour:
        full = 255 if image.max() <= 255 else 65535
        return np.moveaxis(image[:3], 0, -1) / full
    low, high = intensity_window(image[0]) if window is None else window
    return np.clip((image[0] - low) / max(high - low, 1e-6), 0, 1)


def intensity_window(values: np.ndarray, margin: float = 0.0) -> tuple[float, float]:
    """0.5th to 99.5th percentile of `values`, wider by `margin` of that range at either end."""
    low, high = np.percentile(values, [0.5, 99.5])
    return float(low - margin * (high - low)), float(high + margin * (high - low))


def label_colour(number: int) -> str:
    """Colour of a label or region by its place among them."""
    return LABEL_COLOURS[number % len(LABEL_COLOURS)]


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_outline(axes: Axes, mask: np.ndarray, colour: str, style: str = "solid") -> None:
    """Outline a boolean mask (H, W) on axes that show its image; an empty mask leaves them as they are."""
    if not mask.any():
        return
    # Zeros around it close the outline of a lesion that the image border cuts.
    padded = np.pad(mask, 1).astype(float)
    y, x = (np.arange(side) - 1 for side in padded.shape)
    axes.contour(x, y, padded, [0.5], colors=[colour], linewidths=1.4, linestyles=style)
    axes.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def draw_examples(examples: Sequence[Example], path: Path) -> None:
    """Write a grid image | truth | predictions, one row per example, with outlines and Dice in percent."""
    names = list(examples[0].predictions)
    columns = 2 + len(names)
    aspect = float(np.median([example.aspect for example in examples]))
    size = (PANEL_INCHES * columns + 0.9, (PANEL_INCHES * aspect + 0.06) * len(examples) + 0.35)
    figure = new_figure(*size)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for axes, title in zip(grid[0], ["Image", "Ground truth", *names], strict=True):
        axes.set_title(title, fontsize=10, fontweight="bold")
    for row, example in zip(grid, examples, strict=True):
        _draw_example(row, example)
    if handles := _legend_handles(examples[0]):
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 2 * columns),
            title="Dice (%) per label, of the whole case",
            title_fontsize=8,
            fontsize=8,
            frameon=False,
        )
    figure.savefig(path)


def compare_bars(rows: Sequence[Mapping], path: Path, title: str = "Mean Dice, 95 % interval") -> None:
    """Write grouped bars of mDice with intervals: one group per test set, one colour per prediction.

    rows: mappings with test_set, prediction, mDice, mDice_low and mDice_high in [0, 1], such as the rows of
    `evaluate`'s summary whose label is "foreground mean".
    """
    test_sets = list(dict.fromkeys(row["test_set"] for row in rows))
    methods = list(dict.fromkeys(row["prediction"] for row in rows))
    width = 0.8 / len(methods)
    size = (2.4 + 0.5 * len(rows) + 0.4 * len(test_sets), 3.6)
    figure = new_figure(*size)
    axes = figure.subplots()
    for row in rows:
        method = methods.index(row["prediction"])
        x = test_sets.index(row["test_set"]) + (method - (len(methods) - 1) / 2) * width
        _draw_bar(axes, x, width, row, METHOD_COLOURS[method % len(METHOD_COLOURS)])
    axes.set_xticks(range(len(test_sets)), test_sets)
    axes.set_ylabel("mDice (%)")
    axes.set_ylim(0, 100)
    axes.set_title(title, fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    handles = [axes.bar(0, 0, color=METHOD_COLOURS[i % len(METHOD_COLOURS)]) for i in range(len(methods))]
    figure.legend(handles, methods, loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path)


def _draw_example(row: Sequence[Axes], example: Example) -> None:
    maps = [None, example.truth, *(labels for labels, _ in example.predictions.values())]
    dice = [None, None, *(values for _, values in example.predictions.values())]
    row[0].set_ylabel(example.caption, fontsize=8)
    for axes, labels, values in zip(row, maps, dice, strict=True):
        axes.imshow(
            example.image,
            cmap="gray",
            vmin=0,
            vmax=1,
            interpolation="bilinear",
            aspect=example.pixel_aspect,
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if labels is not None:
            _overlay(axes, labels, example)
        if values is not None:
            _write_dice(axes, values)


def _write_dice(axes: Axes, dice: Mapping[str, float]) -> None:
    """Percent in the lower right corner, with a line per label where there are several."""
    lines = [("Dice", "white", value) for value in dice.values()]
    if len(dice) > 1:
        lines = [(name, label_colour(i), value) for i, (name, value) in enumerate(dice.items())]
    for above, (name, colour, value) in enumerate(reversed(lines)):
        axes.annotate(
            f"{name} {100 * value:.1f}" if np.isfinite(value) else f"{name} -",
            (0.97, 0.04),
            xycoords="axes fraction",
            xytext=(0, 13 * above),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=colour,
            bbox={"facecolor": "black", "alpha": 0.6, "pad": 2, "linewidth": 0},
        )


def _overlay(axes: Axes, labels: np.ndarray, example: Example) -> None:
    """Fill each label or region translucently and outline it; the ignore label in grey."""
    masks = [
        (np.isin(labels, values), label_colour(number), 0.2)
        for number, values in enumerate(example.labels.values())
    ]
    if example.ignore_label is not None:
        masks.append((labels == example.ignore_label, IGNORE_COLOUR, 0.35))
    for mask, colour, alpha in masks:
        if mask.any():
            _overlay_mask(axes, mask, colour, alpha, example.pixel_aspect)


def _overlay_mask(axes: Axes, mask: np.ndarray, colour: str, alpha: float, aspect: float) -> None:
    from matplotlib.colors import to_rgba

    fill = mask[..., None] * np.array(to_rgba(colour, alpha))
    axes.imshow(fill, interpolation="nearest", aspect=aspect)
    draw_outline(axes, mask, colour)


def _legend_handles(example: Example) -> list[Patch]:
    """A coloured box per label; none for a single one, which needs no telling apart."""
    from matplotlib.patches import Patch

    named = [(name, label_colour(number)) for number, name in enumerate(example.labels)]
    if example.ignore_label is not None:
        named.append(("ignored", IGNORE_COLOUR))
    outline = {"edgecolor": "#999999", "linewidth": 0.5}
    return [Patch(facecolor=colour, label=name, **outline) for name, colour in named if len(named) > 1]


def _draw_bar(axes: Axes, x: float, width: float, row: Mapping, colour: str) -> None:
    # As float: summary.json has null where an interval is unknown.
    mean, low, high = 100 * np.array([row[key] for key in ("mDice", "mDice_low", "mDice_high")], float)
    axes.bar(x, mean, 0.9 * width, color=colour)
    axes.errorbar(x, mean, [[max(mean - low, 0)], [max(high - mean, 0)]], color="#333333", capsize=3)
    axes.text(x, 2, f"{mean:.1f}", ha="center", va="bottom", color="white", fontsize=8, fontweight="bold")
