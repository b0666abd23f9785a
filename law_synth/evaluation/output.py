"""What `law-synth evaluate` leaves behind: JSON, CSV, two pictures, and a table on the screen."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataset_conversion.system.errors import printable
from dataset_conversion.system.folders import report_folder
from dataset_conversion.system.json_files import as_json
from dataset_conversion.system.provenance import package_versions
from dataset_conversion.system.terminal import verbatim
from law_synth.evaluation.agreement_chart import draw_agreement
from law_synth.evaluation.case_grid import draw_grid
from law_synth.evaluation.measurement import Measurement
from law_synth.evaluation.per_image import SIMILARITIES, PerImageResults, clip_similarities, nearest_training
from law_synth.records.run import config_as_json
from nnunet_order.evaluation_output import write_csv

FILES = ("evaluation.json", "per_case.csv", "grid.png", "agreement.png")
PACKAGES = ("law-order", "torch", "nnunetv2", "timm", "torch-fidelity", "open_clip_torch", "numpy", "scipy")


def write_report(
    results: PerImageResults, measurements: Sequence[Measurement], settings: dict, out: Path
) -> None:
    """Write all files; none is ever half-written."""
    with report_folder(out, FILES) as partial:
        write_csv(partial / "per_case.csv", per_case_rows(results))
        content = json.dumps(report_content(results, measurements, settings), indent=2, default=str)
        (partial / "evaluation.json").write_text(content + "\n", encoding="utf-8")
        draw_grid(results, partial / "grid.png")
        if results.segmenter is not None:
            draw_agreement(results, partial / "agreement.png")


def per_case_rows(results: PerImageResults) -> list[dict]:
    """One row per synthetic image."""
    sets = results.sets
    columns: dict[str, Sequence] = {
        "case": [one.case for one in sets.synthetic.slices],
        "source_case": [source and source.case for source in sets.sources],
    }
    if sets.synthetic.view.is_volumetric:
        columns["source_slice"] = [source and source.index for source in sets.sources]
    columns |= {name: values.tolist() for name, values in results.mask_columns["synthetic"].items()}
    columns["clip_i"] = clip_similarities(results).tolist()
    train = sets.references["train"].ids
    for kind, (label, _) in SIMILARITIES.items():
        index, similarity = nearest_training(results, kind)
        columns[f"nearest_train_{label}"] = [train[i] for i in index]
        columns[f"similarity_{label}"] = similarity.tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def report_content(results: PerImageResults, measurements: Sequence[Measurement], settings: Mapping) -> dict:
    """Everything that is needed to compute the same numbers again; NaN becomes null."""
    sets, judge = results.sets, results.segmenter
    images = {"synthetic": sets.synthetic} | sets.references
    return {
        "format": 1,
        "settings": dict(settings),
        "sets": {
            name: {
                "folder": str(one.dataset.folder.resolve()),
                "N": len(one),
                "cases": len({slice_.case for slice_ in one.slices}),
                "content_sha256": one.content,
            }
            for name, one in images.items()
        },
        "view": as_json(sets.synthetic.view.record),
        "regions": sets.real.regions,
        "run": sets.record and config_as_json(sets.record.run),
        "extractors": {
            extractor.name: {
                "weights_sha256": extractor.weights_sha256,
                "preprocessing": extractor.preprocessing,
            }
            for extractor in results.extractors.values()
        },
        "segmenter": judge
        and {
            "name": judge.name,
            "folder": str(judge.folder.resolve()),
            "sha256": judge.hash,
            "train_dataset": judge.train_dataset,
        },
        "measures": [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in asdict(measurement).items()
            }
            for measurement in measurements
        ],
        "skipped": results.missing,
        "versions": package_versions(*PACKAGES),
    }


def print_tables(results: PerImageResults, measurements: Sequence[Measurement], out: Path) -> None:
    """Print all measurements. Each protocol appears once, below the tables, under its number."""
    protocols = list(dict.fromkeys(measurement.protocol for measurement in measurements))
    console = Console()
    realism = [measurement for measurement in measurements if measurement.section == "Realism"]
    heads = ("Realism", "Against", "Value", "Range", "N")
    console.print(_table(heads, [_row(measurement, protocols) for measurement in realism], left=2))
    for section in ("Masks", "Copies"):
        if of_section := [one for one in measurements if one.section == section]:
            console.print(_pivot(of_section, protocols))
    for number, protocol in enumerate(protocols, 1):
        console.print(verbatim(f"{number:2d} {protocol}"), style="dim", highlight=False)
    for metric, reason in results.missing.items():
        console.print(verbatim(f"No {metric}: {reason}."), highlight=False)
    console.print(verbatim(f"Results in {out}"), soft_wrap=True)


def _row(measurement: Measurement, protocols: Sequence[str]) -> list[Text]:
    n = " | ".join(str(count) for count in measurement.n.values())
    name = Text.assemble(verbatim(measurement.name), (f" {1 + protocols.index(measurement.protocol)}", "dim"))
    against = (
        measurement.against
        if measurement.images == "synthetic"
        else f"{measurement.images}, {measurement.against}"
    )
    spread = Text(_spread(measurement), "dim")
    return [name, verbatim(against), Text(_number(measurement.value)), spread, Text(n)]


def _pivot(measurements: Sequence[Measurement], protocols: Sequence[str]) -> Table:
    """One row per name and images, one column per `against`; value, interval and N in each cell."""
    columns = list(dict.fromkeys(measurement.against for measurement in measurements))
    cells = {
        (measurement.name, measurement.images, measurement.against): measurement
        for measurement in measurements
    }
    rows = []
    for name, images in dict.fromkeys((measurement.name, measurement.images) for measurement in measurements):
        row = [cells.get((name, images, against)) for against in columns]
        number = 1 + protocols.index(next(cell for cell in row if cell).protocol)
        words = Text.assemble(verbatim(name), (f" {number}", "dim"), "\n", verbatim(images))
        rows.append([words, *map(_cell, row)])
    return _table([measurements[0].section, *columns], rows, left=1)


def _cell(measurement: Measurement | None) -> Text:
    if measurement is None:
        return Text()
    n = " | ".join(str(count) for count in measurement.n.values())
    lines = [_number(measurement.value), *filter(None, [_spread(measurement)]), f"N {n}"]
    return Text.assemble(lines[0], *((f"\n{line}", "dim") for line in lines[1:]))


def _table(heads: Sequence[str], rows: Sequence[Sequence[Text]], left: int) -> Table:
    """A table whose first `left` columns hold words; of these all but the first may wrap."""
    table = Table(box=SIMPLE_HEAD, padding=0)
    for index, head in enumerate(heads):
        lines = [line for row in rows for line in row[index].plain.split("\n")]
        fixed = index == 0 or index >= left
        width = max(1, *map(len, lines))  # a column may be empty: a single image has no interval
        shown = Text(textwrap.fill(printable(head), width, break_long_words=False))
        table.add_column(shown, justify="left" if index < left else "right", no_wrap=fixed)
    for row in rows:
        table.add_row(*row)
    return table


def _spread(measurement: Measurement) -> str:
    return "" if measurement.low is None else f"{_number(measurement.low)}..{_number(measurement.high)}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return (
        f"{value:.1f}" if abs(value) >= 100 else f"{value:.2g}" if 0 < abs(value) < 0.005 else f"{value:.2f}"
    )
