"""The table that `compare` ends with: means, intervals over cases and seeds, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataset_conversion.system.folders import report_folder
from dataset_conversion.system.terminal import verbatim
from nnunet_order.bootstrap import mean_over_cases, resampled_means, with_interval
from nnunet_order.comparing.comparison import Comparison
from nnunet_order.comparing.latency import LATENCY_SIDE, read_latencies
from nnunet_order.comparing.scores import CaseScores, read_scores
from nnunet_order.comparing.size_chart import draw_sizes
from nnunet_order.comparing.trainer_lookup import family, short_name
from nnunet_order.complexity import gflops, parameters
from nnunet_order.evaluation_output import per_label, write_csv
from nnunet_order.metrics import FOREGROUND_MEAN, MEANS
from nnunet_order.model_folder import open_model_folder
from nnunet_order.registry import counting_options

TABLE, CHART = Path("results") / "table.csv", Path("results") / "sizes.png"
COUNTED_SIDE = 256  # px, as the paper's GFLOPs
SHOWN = ("mDice", "mIoU")


def table_rows(out: Path, comparison: Comparison) -> list[dict]:
    """`score_rows` with sizes and latencies of the networks, also as results/table.csv and sizes.png.

    UserError: a damaged latency.json.
    """
    scores = read_scores(out, comparison.record(), missing=[])
    models = comparison.models
    sizes = {trainer: network_size(out / model, trainer) for trainer, model in models.items()}
    if comparison.options.measures_latency:
        for trainer, latency in read_latencies(out, models).items():
            sizes[trainer] |= latency
    rows = [
        row | sizes[row["trainer"]] for row in score_rows(scores, comparison.paper, comparison.source.groups)
    ]
    with report_folder(out / TABLE.parent, [TABLE.name, CHART.name]) as partial:
        write_csv(partial / TABLE.name, rows)
        draw_sizes(rows, {trainer: family(trainer) for trainer in models}, partial / CHART.name)
    return rows


def score_rows(
    scores: Sequence[CaseScores],
    paper: Mapping[str, tuple[float, float] | None],
    groups: Mapping[str, str],
) -> list[dict]:
    """A row per test set, label and trainer; shares between 0 and 1.

    Of several labels their mean comes first, which is what the paper's numbers are of. `delta_` is the
    difference of the mean to the first trainer's, its interval that of the paired bootstrap.

    Args:
        paper: trainer -> the paper's mDice and mIoU in percent.
        groups: case -> its patient or video.
    """
    found: dict[tuple[str, str], dict[str, CaseScores]] = {}
    for one in scores:
        found.setdefault((one.test_set, one.label), {})[one.trainer] = one
    rows = []
    for (test_set, label), of_trainers in found.items():
        first = of_trainers[next(iter(paper))]
        of_cases = [groups[case] for case in first.cases]
        for trainer, published in paper.items():
            scored = of_trainers[trainer]
            row = {"test_set": test_set, "label": label, "trainer": trainer, "cases": len(of_cases)}
            row |= {"groups": len(set(of_cases)), "runs": len(scored.trainings)}
            for place, name in enumerate(SHOWN):
                mean, samples = _of_cases(scored, name, of_cases)
                numbers = with_interval(name, mean, samples)
                if scored is not first:
                    first_mean, first_samples = _of_cases(first, name, of_cases)
                    numbers |= with_interval(f"delta_{name}", mean - first_mean, samples - first_samples)
                row |= {column: round(value, 6) for column, value in numbers.items()}
                known = published is not None and label == FOREGROUND_MEAN
                row[f"paper_{name}"] = round(published[place] / 100, 6) if known else None
            rows.append(row)
    return rows


def network_size(model: Path, trainer: str) -> dict[str, float]:
    """Parameters and GFLOPs at 256 x 256 px (see `complexity`) of a trained network, by its plans.json."""
    folder = open_model_folder(model)
    _, configuration = folder.configuration("2d")
    options = configuration.network_arch_init_kwargs
    options.update(counting_options(options.get("network", configuration.network_arch_class_name)))
    network = folder.build_network(configuration, trainer)
    channels = len(folder.data.channel_names)
    try:
        counted = gflops(network, COUNTED_SIDE, channels)
    except ValueError:  # nnU-Net's nine stages leave one pixel, of which there is no variance
        counted = gflops(network, 2 * COUNTED_SIDE, channels) / 4  # convolutions go with the area
    return {"parameters": parameters(network), f"gflops_{COUNTED_SIDE}px": round(counted, 4)}


def print_table(rows: Sequence[Mapping], out: Path) -> None:
    """Print a table per test set and label, overlap in percent, the paper's numbers in brackets.

    N in G: so many cases of so many patients or videos.
    """
    console = Console()
    console.print(
        "Mean and 95 % interval over cases and seeds, in %; the paper's in brackets", style="italic"
    )
    if any("latency_ms" in row for row in rows):
        console.print(f"ms: an image of {LATENCY_SIDE} px, one CPU thread", style="italic")
    for title, of_label in per_label(rows).items():
        table = Table(title=verbatim(title), box=SIMPLE_HEAD, padding=(0, 0))
        table.add_column("Trainer", overflow="fold")
        size = "Size\nGFLOPs" + "\nms" * ("latency_ms" in rows[0])
        for head in (size, "N x runs"):
            table.add_column(head, justify="right", no_wrap=True)
        for name in SHOWN:
            table.add_column(name, justify="right", no_wrap=True)
            table.add_column(f"{name}\n- first", justify="right", no_wrap=True)
        for row in of_label:
            table.add_row(*_cells(row))
        console.print(table)
    console.print(verbatim(f"Results in {out / TABLE}, drawn in {out / CHART}"), soft_wrap=True)


def _cells(row: Mapping) -> list[Text | str]:
    parameters = row["parameters"]
    size = f"{parameters / 1e3:.1f} K" if parameters < 1e6 else f"{parameters / 1e6:.1f} M"
    size += f"\n[dim]{row[f'gflops_{COUNTED_SIDE}px']:.3g}[/dim]"
    if "latency_ms" in row:
        size += f"\n[dim]{row['latency_ms']:.3g}[/dim]"
    number = f"{row['cases']} x {row['runs']}"
    number += f"\n[dim]in {row['groups']}[/dim]" * (row["groups"] < row["cases"])
    cells = [verbatim(short_name(row["trainer"])), size, number]
    for name in SHOWN:
        published = row[f"paper_{name}"]
        beside = "" if published is None else f" ({100 * published:.1f})"
        cells += [_cell(row, name, "", beside), _cell(row, f"delta_{name}", "+")]
    return cells


def _of_cases(scores: CaseScores, name: str, groups: Sequence[str]) -> tuple[float, np.ndarray]:
    """One of MEANS and its bootstrap samples; `compare` knows one arm."""
    (values,) = scores.values.values()
    of_metric = values[MEANS[name]]
    return mean_over_cases(of_metric), resampled_means(of_metric, groups=groups)


def _cell(row: Mapping, name: str, sign: str, beside: str = "") -> str:
    if name not in row:
        return ""
    value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:{sign}.1f}{beside}\n[dim]{low:{sign}.1f}..{high:{sign}.1f}[/dim]"
