"""How trainings see a data set: `init-base` and `train` choose window and slices in the same way."""

from __future__ import annotations

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.system.errors import UserError
from law_synth.base.options import SLICES_PER_CASE
from law_synth.records.base import read_base_config
from law_synth.view.slices import Slice, SliceView, view_from, view_of


def view_with_base(
    dataset: RawDataset, case_ids: list[str], window: tuple[float, float] | None, source: str
) -> SliceView:
    """The view of a training on the base `source`: the base's, where that was made from the same data set.

    UserError: then another window is asked for; as `view_of`.
    """
    of_base = read_base_config(source)
    if of_base is None or of_base.origin != dataset.origin or of_base.view is None:
        return view_of(dataset, case_ids, window)
    view = view_from(dataset, of_base.view)
    own = set(zip(view.window.low, view.window.high, strict=True))
    if window is not None and own != {window}:
        low, high = min(own)
        raise UserError(
            f"found --window {window[0]:g} {window[1]:g}, expected that of the base {source}, {low:g} to "
            f"{high:g}; drop it or make another base"
        )
    return view


def chosen_slices(view: SliceView, case_ids: list[str], per_case: int) -> list[Slice]:
    """Slices to train on: at most `per_case` with lesions of each volume, evenly spaced; else the cases.

    UserError: `per_case` is not the default for pictures, which have no slices; no volume has a lesion.
    """
    if not view.is_volumetric and per_case != SLICES_PER_CASE:
        raise UserError(
            f"found --slices-per-case {per_case} with {view.dataset.file_ending} pictures, expected it with "
            "volumes only; drop it"
        )
    slices = view.slices(case_ids, per_case)
    if not slices:
        raise UserError(
            f"{view.dataset.folder}: found no slice with a lesion in {len(case_ids)} training cases, "
            "expected one; check the labels"
        )
    return slices
