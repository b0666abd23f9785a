"""Geometry of the report's drawings in percent of their width and height; the template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from law_synth.experiment.results import Results, SynthesisResult
from law_synth.experiment.statistics import Estimate
from nnunet_order.comparing.scores import CaseScores, nan_mean
from nnunet_order.metrics import FOREGROUND_MEAN

FIXED_NOISE = ("lesion", "background", "all")  # and lesion_NAME of several labels
AGREEMENT_BINS = np.linspace(0, 1, 21)
SIZE_BINS = np.logspace(-3, 0, 13)  # shares of the image, four to a decade


@dataclass(frozen=True)
class Axis:
    """A linear scale from 0 to 100 %."""

    low: float
    high: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """Place of a value in percent, kept on the axis."""
        return round(float(np.clip(100 * (value - self.low) / (self.high - self.low), 0, 100)), 3)


def make_axis(values: Sequence[float], margin: float = 0.04, ticks: int = 5) -> Axis:
    """An axis over finite values, with round ticks inside it."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    span = high - low or max(abs(high), 1e-3)
    low, high = low - margin * span, high + margin * span
    inside = [float(tick) for tick in MaxNLocator(ticks).tick_values(low, high) if low <= tick <= high]
    return Axis(low, high, inside)


def forest_axis(estimates: Sequence[Estimate]) -> Axis | None:
    """One axis of differences in points for every forest plot, 0 on it; None without a finite interval."""
    ends = [100 * end for one in estimates for end in (one.low, one.high, one.value) if math.isfinite(end)]
    return make_axis([0.0, *ends]) if ends else None


def scatters(group: CaseScores, arms: Sequence[str], reference: str) -> list[dict]:
    """Per arm the cases' Dice against the reference's, each averaged over the trainings that both have."""
    panels = []
    for arm in arms:
        if arm == reference or reference not in group.values or arm not in group.values:
            continue
        pair = np.stack([group.of_cases(name, "Dice") for name in (reference, arm)])  # (2, trainings, cases)
        both = np.isfinite(pair).all(axis=0)
        x, y = nan_mean(np.where(both, pair, np.nan), axis=1)
        known = np.isfinite(x)
        if not known.any():
            continue
        # Unknown cases stay in the path, out of sight, so that its points count the cases.
        points = [
            (100 * a, 100 - 100 * b) if ok else (-99, -99) for a, b, ok in zip(x, y, known, strict=True)
        ]
        path = "".join(f"M{a:.4g} {b:.4g}h0" for a, b in points)
        better, worse = int((y > x)[known].sum()), int((y < x)[known].sum())
        panels.append({"arm": arm, "path": path, "better": better, "worse": worse, "cases": int(known.sum())})
    return panels


def agreement_histograms(results: Results) -> dict[str, list[dict]]:
    """Label -> per arm: shares of images by the judge's Dice with their own mask and with another image's."""
    charts = {label: _agreement(results, suffix) for label, suffix in label_suffixes(results).items()}
    return {label: panels for label, panels in charts.items() if panels}


def size_histograms(results: Results) -> dict[str, list[dict]]:
    """Label -> per arm: its sizes in the synthetic masks, and in the real training masks as an outline."""
    charts = {
        label: _sizes(results, f"lesion_ratio{suffix}", results.training_shares.get(label, np.empty(0)))
        for label, suffix in label_suffixes(results).items()
    }
    return {label: panels for label, panels in charts.items() if panels}


def label_suffixes(results: Results) -> dict[str, str]:
    """Label -> end of the names of its columns in per_case.csv; the mean, or an only label, first."""
    regions = list(results.real.regions) if results.real else []
    return {FOREGROUND_MEAN: "", **({name: f"_{name}" for name in regions} if len(regions) > 1 else {})}


def _agreement(results: Results, suffix: str) -> list[dict]:
    panels = []
    for arm, cases in cases_by_arm(results).items():
        own, shuffled = column(cases, f"dice{suffix}"), column(cases, f"dice_shuffled{suffix}")
        if own.size:
            panels.append({"arm": arm, "own": own, "shuffled": shuffled})
    top = max((_shares(panel["own"], AGREEMENT_BINS).max() for panel in panels), default=1.0)
    top = max([top, *(_shares(panel["shuffled"], AGREEMENT_BINS).max() for panel in panels)])
    return [
        {
            "arm": panel["arm"],
            "bars": _bars(panel["own"], AGREEMENT_BINS, top),
            "outline": _steps(panel["shuffled"], AGREEMENT_BINS, top),
            "top": top,
            "own": float(panel["own"].mean()),
            "shuffled": float(panel["shuffled"].mean()) if panel["shuffled"].size else None,
            "cases": int(panel["own"].size),
        }
        for panel in panels
    ]


def _sizes(results: Results, name: str, training: np.ndarray) -> list[dict]:
    """`training`: shares of the real training slices."""
    real = np.clip(training[training > 0], SIZE_BINS[0], SIZE_BINS[-1])
    sizes = {arm: column(cases, name) for arm, cases in cases_by_arm(results).items()}
    sizes = {arm: np.clip(found[found > 0], SIZE_BINS[0], SIZE_BINS[-1]) for arm, found in sizes.items()}
    sizes = {arm: found for arm, found in sizes.items() if found.size}
    top = max((_shares(values, SIZE_BINS).max() for values in [*sizes.values(), real]), default=1.0)
    return [
        {
            "arm": arm,
            "bars": _bars(found, SIZE_BINS, top),
            "outline": _steps(real, SIZE_BINS, top),
            "top": top,
            "median": float(np.median(found)),
            "cases": int(found.size),
        }
        for arm, found in sizes.items()
    ]


def losses(results: Results) -> list[dict]:
    """Panels of the fixed-noise loss by region: a line per arm, the mean of its runs at the steps of all."""
    panels = []
    for region in _logged_regions(results):
        lines = {}
        for arm, runs in runs_by_arm(results).items():
            logs = [
                {
                    row["step"]: row[f"fixed_noise/{region}"]
                    for row in run.log
                    if f"fixed_noise/{region}" in row
                }
                for run in runs
            ]
            shared = sorted(set.intersection(*map(set, logs)))
            if len(shared) > 1:
                lines[arm] = [(step, float(np.mean([log[step] for log in logs]))) for step in shared]
        if lines:
            panels.append({"region": region, **_line_chart(lines)})
    return panels


def _logged_regions(results: Results) -> list[str]:
    """Regions of the fixed-noise loss, those of single labels first."""
    names = {name for one in results.syntheses for row in one.log for name in row}
    labels = sorted(name.partition("/")[2] for name in names if name.startswith("fixed_noise/lesion_"))
    return [*labels, *FIXED_NOISE]


def cases_by_arm(results: Results) -> dict[str, list[dict]]:
    """Rows of the evaluations' per_case.csv, all syntheses of an arm together."""
    found = {
        arm: [row for one in results.syntheses if one.arm == arm for row in one.cases] for arm in results.arms
    }
    return {arm: rows for arm, rows in found.items() if rows}


def runs_by_arm(results: Results) -> dict[str, list[SynthesisResult]]:
    """Syntheses of an arm whose run has a log; the rounds of an experiment share runs, which count once."""
    seen: set[tuple] = set()
    runs: dict[str, list[SynthesisResult]] = {}
    for one in results.syntheses:
        key = (one.run, one.seed, one.fold)
        if one.log and key not in seen:
            seen.add(key)
            runs.setdefault(one.arm, []).append(one)
    return runs


def column(rows: Sequence[Mapping[str, str]], name: str) -> np.ndarray:
    """Finite numbers of a column of a CSV file."""
    return np.array([float(row[name]) for row in rows if row.get(name)])


def _line_chart(lines: Mapping[str, list[tuple[int, float]]]) -> dict:
    horizontal = make_axis([step for line in lines.values() for step, _ in line], margin=0, ticks=4)
    vertical = make_axis([value for line in lines.values() for _, value in line], margin=0.06, ticks=4)
    paths = {
        arm: " ".join(f"{horizontal.at(step)},{100 - vertical.at(value):.3f}" for step, value in line)
        for arm, line in lines.items()
    }
    last = {arm: line[-1][1] for arm, line in lines.items()}
    return {"x": horizontal, "y": vertical, "paths": paths, "last": last}


def _shares(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    return np.histogram(values, bins)[0] / max(len(values), 1)


def _bars(values: np.ndarray, bins: np.ndarray, top: float) -> list[float]:
    """Heights in percent of the tallest bar of all panels."""
    return [round(100 * share / top, 2) for share in _shares(values, bins).tolist()]


def _steps(values: np.ndarray, bins: np.ndarray, top: float) -> str:
    """Outline of a histogram as the points of a polyline; empty without values."""
    if not values.size:
        return ""
    heights, width = _bars(values, bins, top), 100 / (len(bins) - 1)
    corners = [(0.0, 0.0)]
    for index, height in enumerate(heights):
        corners += [(index * width, height), ((index + 1) * width, height)]
    return " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in [*corners, (100.0, 0.0)])
