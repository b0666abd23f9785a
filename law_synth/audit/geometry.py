"""Are synthetic images stored as the real ones are: type of the values, one slice, its place in space?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.raw.geometry import Grid
from dataset_conversion.system.errors import UserError
from law_synth.audit.finding import Finding, changed
from law_synth.records.synthetic import SynthesisRow, source_slice
from law_synth.view.places import Geometry
from law_synth.view.slices import volume_grid
from law_synth.view.window import stored_dtype

if TYPE_CHECKING:
    from law_synth.audit.audit import Audit
    from law_synth.audit.subject import Subject

TOLERANCE = 1e-3  # mm; file formats store some numbers in single precision


def check_geometry(subject: Subject, options: Audit) -> tuple[list[Finding], str]:
    """Images have the type of the source's; volumes one slice, with its spacing, origin and direction."""
    findings = []
    for case_id, row in subject.kept.items():
        try:
            differences = _differences(subject, row)
        except (UserError, OSError, RuntimeError):  # check_images says so
            continue
        findings += [changed(case_id, what, "a segmenter would see it otherwise") for what in differences]
    dtype = subject.run.view.window.dtype
    place = " volumes of one slice, where their sources are" if subject.view.is_volumetric else " images"
    return findings, f"{len(subject.kept)}{place}, {dtype}"


def _differences(subject: Subject, row: SynthesisRow) -> list[str]:
    case, view = subject.dataset.case(row.case), subject.view
    dtype = stored_dtype(case)
    found = [] if dtype == view.window.dtype else [f"its values are {dtype}, not {view.window.dtype}"]
    if not view.is_volumetric:
        return found
    expected = _expected(subject, row)
    for path in (*case.images, case.label):
        grid = volume_grid(subject.dataset, path)
        found += [f"{path.parent.name}: {what}" for what in _differences_of_file(grid, expected)]
    return found


def _expected(subject: Subject, row: SynthesisRow) -> Geometry:
    """Place of the source; of a mask from elsewhere the image's own, which the label must share."""
    source, size = source_slice(row), subject.run.size
    if source is None:
        return subject.view.geometry(subject.sample(row.case))
    geometry = subject.real_view.geometry(source)
    return geometry if subject.options.original_size else geometry.resized((size, size))


def _differences_of_file(grid: Grid, expected: Geometry) -> list[str]:
    slices = grid.shape[expected.axis]
    found = [] if slices == 1 else [f"{slices} slices, not one"]
    places = {
        "spacing": (grid.spacing[::-1], expected.spacing),
        "origin": (grid.origin, expected.origin),
        "direction": (grid.direction, expected.direction),
    }
    for name, (here, there) in places.items():
        if not np.allclose(here, there, rtol=0, atol=TOLERANCE):
            found.append(f"its {name} is {_shown(here)}, not {_shown(there)}")
    return found


def _shown(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)
