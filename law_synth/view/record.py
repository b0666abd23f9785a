"""What a base or a run writes down of its view of a data set, so that others see the data in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from law_synth.view.window import Window


@dataclass(frozen=True)
class ViewRecord:
    """The `view` in base_config.json and law_config.json; `SliceView.record` makes it."""

    window: Window
    axis: Literal[0, 1, 2] | None
    """The axis of the slices in arrays (Z, Y, X); None for pictures."""
    classes: dict[str, int]
    """Name -> label value."""
