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
from law_synth.evaluation.charts import draw_agreement, draw_grid
from law_synth.evaluation.measure import Measure
from law_synth.evaluation.per_image import COPY_MEASURES, Findings, clip_similarities, nearest_training
from law_synth.records.run import config_as_json
from nnunet_order.evaluation_output import write_csv

FILES = ("evaluation.json", "per_case.csv", "grid.png", "agreement.png")
PACKAGES = ("law-order", "torch", "nnunetv2", "timm", "torch-fidelity", "open_clip_torch", "numpy", "scipy")


def write_report(findings: Findings, measures: Sequence[Measure], settings: dict, out: Path) -> None:
    """Write all files; none is ever half-written."""
    with report_folder(out, FILES) as partial:
        write_csv(partial / "per_case.csv", per_case_rows(findings))
        content = json.dumps(as_record(findings, measures, settings), indent=2, default=str)
        (partial / "evaluation.json").write_text(content + "\n", encoding="utf-8")
        draw_grid(findings, partial / "grid.png")
        if findings.segmenter is not None:
            draw_agreement(findings, partial / "agreement.png")


def per_case_rows(findings: Findings) -> list[dict]:
    """One row per synthetic image."""
    subject = findings.subject
    columns: dict[str, Sequence] = {
        "case": [one.case for one in subject.synthetic.slices],
        "source_case": [source and source.case for source in subject.sources],
    }
    if subject.synthetic.view.is_volumetric:
        columns["source_slice"] = [source and source.index for source in subject.sources]
    columns |= {name: values.tolist() for name, values in findings.layouts["synthetic"].items()}
    columns["clip_i"] = clip_similarities(findings).tolist()
    train = subject.references["train"].ids
    for kind, (label, _) in COPY_MEASURES.items():
        index, similarity = nearest_training(findings, kind)
        columns[f"nearest_train_{label}"] = [train[i] for i in index]
        columns[f"similarity_{label}"] = similarity.tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_record(findings: Findings, measures: Sequence[Measure], settings: Mapping) -> dict:
    """Everything that somebody needs to compute the same numbers again; NaN becomes null."""
    subject, judge = findings.subject, findings.segmenter
    images = {"synthetic": subject.synthetic} | subject.references
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
        "view": as_json(subject.synthetic.view.record),
        "regions": subject.real.regions,
        "run": subject.record and config_as_json(subject.record.run),
        "extractors": {
            extractor.name: {
                "weights_sha256": extractor.weights_sha256,
                "preprocessing": extractor.preprocessing,
            }
            for extractor in findings.extractors.values()
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
                for key, value in asdict(measure).items()
            }
            for measure in measures
        ],
        "skipped": findings.skipped,
        "versions": package_versions(*PACKAGES),
    }


def print_tables(findings: Findings, measures: Sequence[Measure], out: Path) -> None:
    """Print all measures; each protocol once, below the tables under its number."""
    protocols = list(dict.fromkeys(measure.protocol for measure in measures))
    console = Console()
    realism = [measure for measure in measures if measure.section == "Realism"]
    heads = ("Realism", "Against", "Value", "Range", "N")
    console.print(_table(heads, [_row(measure, protocols) for measure in realism], left=2))
    for section in ("Masks", "Copies"):
        if of_section := [one for one in measures if one.section == section]:
            console.print(_pivot(of_section, protocols))
    for number, protocol in enumerate(protocols, 1):
        console.print(verbatim(f"{number:2d} {protocol}"), style="dim", highlight=False)
    for measure, reason in findings.skipped.items():
        console.print(verbatim(f"No {measure}: {reason}."), highlight=False)
    console.print(verbatim(f"Results in {out}"), soft_wrap=True)


def _row(measure: Measure, protocols: Sequence[str]) -> list[Text]:
    n = " | ".join(str(count) for count in measure.n.values())
    name = Text.assemble(verbatim(measure.name), (f" {1 + protocols.index(measure.protocol)}", "dim"))
    against = measure.against if measure.images == "synthetic" else f"{measure.images}, {measure.against}"
    spread = Text(_spread(measure), "dim")
    return [name, verbatim(against), Text(_number(measure.value)), spread, Text(n)]


def _pivot(measures: Sequence[Measure], protocols: Sequence[str]) -> Table:
    """One row per name and images, one column per `against`; value, interval and N in each cell."""
    columns = list(dict.fromkeys(measure.against for measure in measures))
    cells = {(measure.name, measure.images, measure.against): measure for measure in measures}
    rows = []
    for name, images in dict.fromkeys((measure.name, measure.images) for measure in measures):
        row = [cells.get((name, images, against)) for against in columns]
        number = 1 + protocols.index(next(cell for cell in row if cell).protocol)
        words = Text.assemble(verbatim(name), (f" {number}", "dim"), "\n", verbatim(images))
        rows.append([words, *map(_cell, row)])
    return _table([measures[0].section, *columns], rows, left=1)


def _cell(measure: Measure | None) -> Text:
    if measure is None:
        return Text()
    n = " | ".join(str(count) for count in measure.n.values())
    lines = [_number(measure.value), *filter(None, [_spread(measure)]), f"N {n}"]
    return Text.assemble(lines[0], *((f"\n{line}", "dim") for line in lines[1:]))


def _table(heads: Sequence[str], rows: Sequence[Sequence[Text]], left: int) -> Table:
    """The first `left` columns hold words, the others numbers; only words but the first column's may wrap."""
    table = Table(box=SIMPLE_HEAD, padding=0)
    for index, head in enumerate(heads):
        lines = [line for row in rows for line in row[index].plain.split("\n")]
        fixed = index == 0 or index >= left
        width = max(1, *map(len, lines))  # a column may be empty: one image has no interval
        shown = Text(textwrap.fill(printable(head), width, break_long_words=False))
        table.add_column(shown, justify="left" if index < left else "right", no_wrap=fixed)
    for row in rows:
        table.add_row(*row)
    return table


def _spread(measure: Measure) -> str:
    return "" if measure.low is None else f"{_number(measure.low)}..{_number(measure.high)}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return (
        f"{value:.1f}" if abs(value) >= 100 else f"{value:.2g}" if 0 < abs(value) < 0.005 else f"{value:.2f}"
    )
