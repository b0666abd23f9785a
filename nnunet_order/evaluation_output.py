"""What `evaluate` leaves behind: CSV tables, summary.json, two pictures, and a table on the screen."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dataset_conversion.system.folders import report_folder
from dataset_conversion.system.terminal import verbatim
from nnunet_order.bootstrap import RESAMPLES, UNITS
from nnunet_order.evaluation import Evaluation
from nnunet_order.examples import chosen_examples
from nnunet_order.metrics import EMPTY_MASKS, FOREGROUND_MEAN, METRIC_TABLE, METRICS
from nnunet_order.pictures import compare_bars, draw_examples

FILES = ("per_case.csv", "summary.csv", "summary.json", "examples.png", "comparison.png")


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Write all files; none is ever half-written."""
    with report_folder(out, FILES) as partial:
        write_csv(partial / "per_case.csv", per_case_rows(evaluation))
        write_csv(partial / "summary.csv", evaluation.rows)
        summary = {"protocol": protocol(evaluation), "rows": [_finite(row) for row in evaluation.rows]}
        (partial / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        if examples := chosen_examples(evaluation):
            draw_examples(examples, partial / "examples.png")
        if len(evaluation.folders) > 1:
            compare_bars(bar_rows(evaluation), partial / "comparison.png")


def bar_rows(evaluation: Evaluation) -> list[dict]:
    """The rows of comparison.png: a group of bars per test set, and per label where there are several."""
    if len(evaluation.dataset.regions) == 1:
        return [row for row in evaluation.rows if row["label"] == FOREGROUND_MEAN]
    several = len(evaluation.test_sets) > 1
    return [
        row | {"test_set": f"{row['test_set']}\n{row['label']}" if several else row["label"]}
        for row in evaluation.rows
    ]


def write_csv(path: Path, rows: Sequence[Mapping]) -> None:
    """Write rows under the union of their columns; NaN and missing values as empty cells."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(_finite(row) for row in rows)


def per_case_rows(evaluation: Evaluation) -> list[dict]:
    """One row per test set, case, prediction and label."""
    position = {case: index for index, case in enumerate(evaluation.truths)}
    return [
        {"test_set": test_set, "case": case, "prediction": name, "label": label}
        | dict(zip(METRICS, values[position[case], column].tolist(), strict=True))
        for test_set, members in evaluation.test_sets.items()
        for case in members
        for name, values in evaluation.scores.items()
        for column, label in enumerate(evaluation.dataset.regions)
    ]


def protocol(evaluation: Evaluation) -> dict:
    """What somebody needs to compute the same numbers again."""
    return {
        "mean": "per image and label, averaged over the images; the foreground mean is the average over the "
        "labels without background (as nnU-Net's evaluate_predictions)",
        "empty masks": EMPTY_MASKS,
        "HD95": "larger of the two directed 95th percentiles of boundary distances, in mm, or in pixels "
        "where the files have no spacing",
        "NSD": f"share of both boundaries within {evaluation.nsd_tolerance:g} of the other",
        "interval": f"95 %, percentile bootstrap over {UNITS}, {RESAMPLES} resamples; differences (delta) "
        "are to the first prediction, paired by image",
        "seed": evaluation.seed,
        "dataset": str(evaluation.dataset.folder),
        "labels": sorted({str(path.parent) for path in evaluation.truths.values()}),
        "predictions": {name: str(folder) for name, folder in evaluation.folders.items()},
        "N": {test_set: len(members) for test_set, members in evaluation.test_sets.items()},
    }


def print_summary(evaluation: Evaluation, out: Path) -> None:
    """Print a table per test set (and label, of several), a row per prediction, overlap in percent.

    N in G: so many images of so many patients or videos.
    """
    console = Console()
    console.print("Mean and 95 % interval (HD95 in mm or pixels, else %)", style="italic")
    heads = [
        "N",
        *(metric.mean for metric in METRIC_TABLE),
        *["mDice\n- first"] * (len(evaluation.folders) > 1),
    ]
    for title, rows in per_label(evaluation.rows).items():
        table = Table(title=verbatim(title), box=SIMPLE_HEAD, padding=(0, 0))
        table.add_column("Prediction", overflow="fold")
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True)
        for row in rows:
            number = f"{row['N']}" if row["N"] == row["N_scored"] else f"{row['N_scored']} of {row['N']}"
            number += f"\n[dim]in {row['groups']}[/dim]" * (row["groups"] < row["N"])
            cells = [_cell(row, metric.mean, metric.scale) for metric in METRIC_TABLE]
            cells += [_cell(row, "delta_mDice", 100, "+")] if "delta_mDice" in row else []
            table.add_row(verbatim(row["prediction"]), number, *cells)
        console.print(table)
    console.print(verbatim(f"Results in {out}"), soft_wrap=True)


def per_label(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """Title of a table -> its rows: one per test set, and per label where there are several."""
    labels = {row["label"] for row in rows} - {FOREGROUND_MEAN}
    tables: dict[str, list[Mapping]] = {}
    for row in rows:
        if len(labels) > 1:
            tables.setdefault(f"{row['test_set']}: {row['label']}", []).append(row)
        elif row["label"] == FOREGROUND_MEAN:
            tables.setdefault(row["test_set"], []).append(row)
    return tables


def _cell(row: Mapping, column: str, scale: float, sign: str = "") -> str:
    value, low, high = (scale * row[key] for key in (column, f"{column}_low", f"{column}_high"))
    return f"{value:{sign}.1f}\n[dim]{low:{sign}.1f}..{high:{sign}.1f}[/dim]"


def _finite(row: Mapping) -> dict:
    """JSON and spreadsheets know no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
