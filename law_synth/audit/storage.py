"""Are synthetic images stored like the real ones: type of the values, one slice, its place in space?"""

from __future__ import annotations

import numpy as np

from dataset_conversion.raw.geometry import Grid
from dataset_conversion.system.errors import UserError
from law_synth.audit.audited_data import AuditedData
from law_synth.audit.finding import Finding, changed
from law_synth.audit.options import Audit
from law_synth.records.synthetic import SynthesisRow, source_slice
from law_synth.view.places import Geometry
from law_synth.view.slices import volume_grid
from law_synth.view.window import stored_dtype

TOLERANCE = 1e-3  # mm; file formats store some numbers in single precision


def check_geometry(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """Images have the source's type of values; volumes one slice with its spacing, origin and direction."""
    findings = []
    for case_id, row in audited.kept.items():
        try:
            differences = _differences(audited, row)
        except (UserError, OSError, RuntimeError):  # check_images reports it
            continue
        findings += [changed(case_id, what, "a segmenter would see it differently") for what in differences]
    dtype = audited.run.view.window.dtype
    place = " volumes of one slice, where their sources are" if audited.view.is_volumetric else " images"
    return findings, f"{len(audited.kept)}{place}, {dtype}"


def _differences(audited: AuditedData, row: SynthesisRow) -> list[str]:
    case, view = audited.dataset.case(row.case), audited.view
    dtype = stored_dtype(case)
    found = [] if dtype == view.window.dtype else [f"its values are {dtype}, not {view.window.dtype}"]
    if not view.is_volumetric:
        return found
    expected = _expected(audited, row)
    for path in (*case.images, case.label):
        grid = volume_grid(audited.dataset, path)
        found += [f"{path.parent.name}: {what}" for what in _differences_of_file(grid, expected)]
    return found


def _expected(audited: AuditedData, row: SynthesisRow) -> Geometry:
    """Place of the source. For a mask from a folder: that of the image itself, which the label must share."""
    source, size = source_slice(row), audited.run.size
    if source is None:
        return audited.view.geometry(audited.sample(row.case))
    geometry = audited.real_view.geometry(source)
    return geometry if audited.options.original_size else geometry.resized((size, size))


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
