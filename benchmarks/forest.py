"""Draw what synthetic cases changed in several experiments: one row per experiment and arm.

    python benchmarks/forest.py --out docs/does_it_help.png

The experiments are those of docs/reproduction.md on Kvasir-SEG, from their files in benchmarks/results.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import tyro

from law_synth.experiment.report import COLOURS

RESULTS = Path(__file__).parent / "results"
# Rows of the picture, from the top: heading, or (file, arm).
EXPERIMENTS = {
    "a tenth (90 real images), four unfiltered per real one": (("kvasir_tenth_64px", "law"),),
    "a tenth, about one per real one, filtered": (
        *(("kvasir_tenth_filtered_64px", arm) for arm in ("uniform", "ratio")),
        *(("kvasir_tenth_other_arms_64px", arm) for arm in ("ratio-clamped", "adaptive-distillation")),
        ("kvasir_tenth_filtered_64px", "law"),
        ("kvasir_tenth_other_arms_64px", "difficulty"),
    ),
    "a quarter (220), about one per real one, filtered": (
        *(("kvasir_quarter_64px", arm) for arm in ("uniform", "law")),
    ),
    "all (880), one unfiltered per real one": (*(("kvasir_880_64px", arm) for arm in ("uniform", "law")),),
}
PANELS = (("ORDER", "Kvasir"), ("ORDER", "CVC-ClinicDB"), ("nnU-Net", "Kvasir"), ("nnU-Net", "CVC-ClinicDB"))
TITLES = {"Kvasir": "Kvasir-SEG", "CVC-ClinicDB": "unseen ClinicDB"}


def main(out: Path) -> None:
    """Draw the picture into `out`."""
    rows = [(heading, file, arm) for heading, arms in EXPERIMENTS.items() for file, arm in arms]
    places, place = [], 0.0
    for index, (heading, _, _) in enumerate(rows):
        place += 1 if index and rows[index - 1][0] == heading else 2.2  # room for the heading
        places.append(place)
    figure, axes = plt.subplots(1, len(PANELS), sharey=True, figsize=(11, 0.27 * place + 1.4))
    for axis, (segmenter, test_set) in zip(axes, PANELS, strict=True):
        axis.set_title(f"{segmenter} on {TITLES[test_set]}", fontsize=10, pad=24)
        axis.set_xticks((-10, -5, 0, 5, 10))
        axis.axvline(0, color="#888", linewidth=0.8, linestyle="--")
        for place, (_, file, arm) in zip(places, rows, strict=True):
            found = difference(file, arm, segmenter, test_set)
            if found is None:
                axis.text(
                    0,
                    place,
                    "not run",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="#888",
                    backgroundcolor="w",
                )
                continue
            value, low, high = (100 * found[name] for name in ("difference", "low", "high"))
            colour = COLOURS[arm][0]
            told = low > 0 or high < 0
            axis.plot((low, high), (place, place), color=colour, linewidth=2, solid_capstyle="round")
            axis.plot(value, place, "o", color=colour, markerfacecolor=colour if told else "w", markersize=6)
        axis.set_xlim(-15, 15)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelsize=8)
    axes[0].set_yticks(places, [arm for _, _, arm in rows], fontsize=9)
    axes[0].invert_yaxis()
    for place, (heading, _, _), before in zip(places, rows, [None, *rows], strict=False):
        if before is None or before[0] != heading:
            place_of_heading = axes[0].get_yaxis_transform()
            axes[0].text(-0.6, place - 0.95, heading, transform=place_of_heading, fontsize=9, weight="bold")
    about = (
        "mDice with synthetic images minus real alone, in points, with 95 % interval; filled: leaves out 0"
    )
    figure.supxlabel(about, fontsize=9)
    figure.subplots_adjust(left=0.135, right=0.985, top=0.9, bottom=0.12, wspace=0.08)
    figure.savefig(out, dpi=110)


def difference(file: str, arm: str, segmenter: str, test_set: str) -> dict | None:
    """The arm's difference to real alone over all test images, if that training was run."""
    for row in json.loads((RESULTS / f"{file}.json").read_text())["differences"]:
        trainer = "ORDER" if row.get("trainer", "nnUNetTrainerORDER") == "nnUNetTrainerORDER" else "nnU-Net"
        wanted = (row["arm"], trainer, row["test_set"], row["stratum"], row.get("metric", "mDice"))
        if wanted == (arm, segmenter, test_set, "all", "mDice"):
            return row
    return None


if __name__ == "__main__":
    tyro.cli(main)
