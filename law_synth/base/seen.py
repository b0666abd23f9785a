"""How trainings see a data set: `init-base` and `train` choose window and slices in the same way."""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.description import load_table
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.names import check_case_ids
from law_synth.base.options import SLICES_PER_CASE
from law_synth.view.slices import Slice, SliceView, view_from, view_of

CONFIG = "base_config.json"


def base_config(source: str) -> dict:
    """base_config.json of a base that init-base made; empty for any other. UserError: malformed, odd ids."""
    path = Path(source) / CONFIG
    if not path.is_file():
        return {}
    config = load_table(path, "the record of init-base", "make the base again")
    lists = [name for name in ("train_cases", "held_back_cases") if name in config]
    return config | {name: check_case_ids(config[name], path) for name in lists}


def is_of_same_cases(of_base: dict, origin: str) -> bool:
    """Whether a base (its `base_config`) knows cases by the same ids as a data set of this `origin`."""
    return origin == of_base.get("dataset_origin", of_base.get("dataset"))


def view_with_base(
    dataset: RawDataset, case_ids: list[str], window: tuple[float, float] | None, source: str
) -> SliceView:
    """The view of a training on the base `source`: the base's, where that was made from the same data set.

    UserError: then another window is asked for; as `view_of`.
    """
    of_base = base_config(source)
    if not is_of_same_cases(of_base, dataset.origin) or "view" not in of_base:
        return view_of(dataset, case_ids, window)
    view = view_from(dataset, of_base["view"])
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
