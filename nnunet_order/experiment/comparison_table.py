"""The table that `compare` ends with: means, intervals over cases and seeds, paired differences."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nnunet_order.evaluation_report import write_csv
from nnunet_order.experiment.segmentation import Segmentation
from nnunet_order.metrics import MEANS, interval_over_seeds_and_cases

TABLE = Path("results") / "table.csv"
COUNTED_SIDE = 256  # px, as the paper's GFLOPs
SHOWN = ("mDice", "mIoU")


def table_rows(
    out: Path,
    segmentations: Sequence[Segmentation],
    paper: Mapping[str, tuple[float, float] | None],
) -> list[dict]:
    """A row per test set and trainer, also written to results/table.csv; shares between 0 and 1.

    `delta_` is the difference to the first trainer on the same case, fold and seed.
    """
    scores = {trainer: seeds_by_cases(out, segmentations, trainer) for trainer in paper}
    sizes = {trainer: network_size(out, segmentations, trainer) for trainer in paper}
    first = next(iter(paper))
    rows = []
    for test_set in scores[first]:
        for trainer, numbers in paper.items():
            values = scores[trainer][test_set]  # (runs, cases, SHOWN)
            row = {"test_set": test_set, "trainer": trainer, **sizes[trainer]}
            row |= {"cases": values.shape[1], "runs": values.shape[0]}
            for place, name in enumerate(SHOWN):
                row |= _with_interval(name, values[..., place])
                if trainer != first:
                    row |= _with_interval(f"delta_{name}", (values - scores[first][test_set])[..., place])
                row[f"paper_{name}"] = None if numbers is None else round(numbers[place] / 100, 6)
            rows.append(row)
    path = out / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write_csv(partial, rows)
    partial.replace(path)
    return rows


def seeds_by_cases(out: Path, segmentations: Sequence[Segmentation], trainer: str) -> dict[str, np.ndarray]:
    """Test set -> (runs, cases, SHOWN) of a trainer, each the mean over the case's labels.

    On validation cases a run is a seed and has the cases of all folds; on test cases it is a seed of a fold.
    """
    scores: dict[str, dict[tuple, dict[str, np.ndarray]]] = {}
    for one in (one for one in segmentations if one.trainer == trainer):
        run = (one.seed,) if one.on == "validation" else (one.seed, one.fold)
        for test_set, cases in read_scores(out / one.scores / "per_case.csv").items():
            name = "validation" if one.on == "validation" else test_set
            scores.setdefault(name, {}).setdefault(run, {}).update(cases)
    return {
        test_set: np.array([[runs[run][case] for case in sorted(runs[run])] for run in sorted(runs, key=str)])
        for test_set, runs in scores.items()
    }


def read_scores(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Test set -> case -> SHOWN, averaged over the labels that are in truth or prediction, else NaN."""
    labels: dict[str, dict[str, list[list[float]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = [float(row[MEANS[name]] or "nan") for name in SHOWN]
            labels.setdefault(row["test_set"], {}).setdefault(row["case"], []).append(values)
    return {
        test_set: {case: _mean(np.array(values), axis=0) for case, values in cases.items()}
        for test_set, cases in labels.items()
    }


def network_size(out: Path, segmentations: Sequence[Segmentation], trainer: str) -> dict[str, float]:
    """Parameters and GFLOPs at 256 x 256 px (see `complexity`) of a trainer's network, by its plans.json."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_order.complexity import gflops, parameters
    from nnunet_order.export import build_network, read_json

    model = out / next(one.model for one in segmentations if one.trainer == trainer)
    content, dataset_json = read_json(model / "plans.json"), read_json(model / "dataset.json")
    architecture = content["configurations"]["2d"]["architecture"]
    options = architecture["arch_kwargs"]
    order = "nnunet_order.networks.ORDER"
    if order in (architecture["network_class_name"], options.get("network")):
        options["attention_path"] = "materialized"  # as the paper counts; the fused one counts differently
    plans = PlansManager(content)
    configuration = plans.get_configuration("2d")
    network = build_network(plans, configuration, dataset_json, trainer)
    channels = determine_num_input_channels(plans, configuration, dataset_json)
    counted = round(gflops(network, COUNTED_SIDE, channels), 4)
    return {"parameters": parameters(network), f"gflops_{COUNTED_SIDE}px": counted}


def print_table(rows: Sequence[Mapping], out: Path) -> None:
    """Print the rows, overlap in percent, the paper's numbers in brackets."""
    title = "Mean and 95 % interval over cases and seeds, in %; the paper's in brackets"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("Test set", "Trainer", "Parameters", "GFLOPs", "N", "Runs"):
        table.add_column(
            head, justify="left" if head in ("Test set", "Trainer") else "right", overflow="fold"
        )
    for name in SHOWN:
        table.add_column(name, justify="right")
        table.add_column(f"{name} - first", justify="right")
    last = rows[-1]["trainer"]
    for row in rows:
        size = f"{row['parameters']:,}", f"{row[f'gflops_{COUNTED_SIDE}px']:.3g}"
        cells = [row["test_set"], row["trainer"].removeprefix("nnUNetTrainer") or "nnUNetTrainer", *size]
        cells += [str(row["cases"]), str(row["runs"])]
        for name in SHOWN:
            published = row[f"paper_{name}"]
            beside = "" if published is None else f" ({100 * published:.1f})"
            cells += [_cell(row, name, "") + beside, _cell(row, f"delta_{name}", "+")]
        table.add_row(*cells, end_section=row["trainer"] == last)
    console = Console()
    console.print(table)
    console.print(f"Results in {out / TABLE}", soft_wrap=True)


def _with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean of (runs, cases) and its interval as three columns."""
    low, high = interval_over_seeds_and_cases(values)
    mean = float(_mean(values.ravel(), axis=0))
    return {name: round(mean, 6), f"{name}_low": round(low, 6), f"{name}_high": round(high, 6)}


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN; NaN where there is nothing else."""
    finite = np.isfinite(values)
    total, number = np.where(finite, values, 0).sum(axis), finite.sum(axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _cell(row: Mapping, name: str, sign: str) -> str:
    if name not in row:
        return ""
    value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:{sign}.1f} [dim]\\[{low:{sign}.1f}, {high:{sign}.1f}][/dim]"
