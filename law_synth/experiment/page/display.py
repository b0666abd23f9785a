"""What of a case is shown: which slice, in which window of grey values, with which labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.geometry import label_spacing
from law_synth.experiment.page.data_uris import Painted
from law_synth.experiment.page.sentences import MINUS
from law_synth.experiment.results import Results
from nnunet_order.examples import foreground_values, shown_plane, shown_slice
from nnunet_order.pictures import displayable, label_colour


class Plane(NamedTuple):
    """A slice of a case, ready to be drawn."""

    image: np.ndarray  # (H, W) or (H, W, 3) in [0, 1]
    truth: dict[str, np.ndarray]  # label or region -> boolean (H, W)
    index: int  # of the slice
    aspect: float  # height of a pixel by its width


@dataclass(frozen=True)
class Display:
    """How an experiment's cases are shown: along one axis and, where LAW was trained, as it sees them."""

    axis: int
    """The axis of the slices in arrays (Z, Y, X)."""
    window: tuple[float, float] | None
    """The grey values to show; None for colours, 8 bit, and where no LAW model has settled them."""
    colours: Mapping[str, str]
    """Label or region -> colour; empty where there is only one."""

    def plane(self, dataset: RawDataset, case: Case, index: int | None = None) -> Plane:
        """A slice of a labelled case; by default the one with the most of the case's rarest label."""
        label = dataset.read_label(case.label)
        if index is None:
            index = shown_slice([label], dataset.regions, self.axis)
        if self.window is None:
            foreground = np.isin(label, foreground_values(dataset))
            image, _ = shown_plane(dataset, case, foreground, self.axis, index)
        else:
            image = displayable(dataset.read_image(case).take(index, self.axis + 1), False, self.window)
        height, width = np.delete(label_spacing(dataset, case.label), self.axis)
        return Plane(image, self._masks(dataset, label, index), index, height / width)

    def labels(self, dataset: RawDataset, path: Path, index: int) -> dict[str, np.ndarray]:
        """Label or region -> boolean (H, W), of one slice of a label file."""
        return self._masks(dataset, dataset.read_label(path), index)

    def painted(self, masks: Mapping[str, np.ndarray], single: str) -> Painted:
        """Masks with their colours; `single` is that of an only label. Regions come before their parts."""
        largest_first = sorted(masks.items(), key=lambda item: -int(item[1].sum()))
        return [(mask, self.colours.get(name, single)) for name, mask in largest_first]

    def _masks(self, dataset: RawDataset, label: np.ndarray, index: int) -> dict[str, np.ndarray]:
        plane = label.take(index, self.axis)
        return {name: np.isin(plane, values) for name, values in dataset.regions.items()}


def display_of(results: Results) -> Display:
    """The display of an experiment's real and synthetic cases."""
    regions = list(results.real.regions) if results.real else []
    colours = {name: label_colour(place) for place, name in enumerate(regions)}
    axis = results.axis if results.real else 0
    return Display(axis, _model_window(results), colours if len(regions) > 1 else {})


def display_note(results: Results, display: Display) -> str:
    """Which slices and which grey values are shown, in a sentence; empty for colour pictures."""
    if results.real is None:
        return ""
    notes = []
    if results.real.holds_volumes:
        notes.append("A volume is shown by the slice that has the most of its rarest label.")
    if display.window is not None:
        low, high = (f"{end:.0f}".replace("-", MINUS) for end in display.window)
        notes.append(
            f"Values of {results.real.channel_names[0]} are shown from {low} (black) to {high} (white), as "
            "LAW's models see them."
        )
    elif results.real.holds_volumes:
        notes.append(
            "CT is shown in a window around the values of its labels, other images from the 0.5th to the "
            "99.5th percentile of the slice."
        )
    return " ".join(notes)


def _model_window(results: Results) -> tuple[float, float] | None:
    """In which LAW's models see grey values; None for colours and 8 bit."""
    window = next((one.config.view.window for one in results.syntheses if one.config is not None), None)
    if window is None or len(window.low) > 1 or window.dtype == "uint8":
        return None
    return window.low[0], window.high[0]
