"""Draw what synthetic cases changed in the experiments on Kvasir-SEG: one row per experiment and arm.

    python benchmarks/forest.py --out docs/does_it_help.png

The experiments are those of docs/reproduction.md, from their files in benchmarks/results.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import tyro
from matplotlib.axes import Axes

from law_synth.experiment.page.report import COLOURS

HALF = "half"  # real images alone, half of the iterations
RESULTS = Path(__file__).parent / "results"
# From the top: heading, arms, and the files that hold their trainings.
EXPERIMENTS = (
    ("a tenth (90 images), four unfiltered ones per real one", ("law",), ("tenth_64px",)),
    (
        "a tenth, about one filtered image per real one",
        ("uniform", "ratio", "ratio-clamped", "adaptive-distillation", "law", "difficulty"),
        ("tenth_filtered_64px", "tenth_other_arms_64px"),
    ),
    (
        "the same, a base that has seen all 880 images",
        ("law", HALF),
        ("tenth_base880_64px", "tenth_half_budget_64px"),
    ),
    ("a quarter (220), about one filtered per real one", ("uniform", "law"), ("quarter_64px",)),
    (
        "all (880 images), one unfiltered per real one",
        ("uniform", "law", HALF),
        ("880_64px", "880_nnunet_64px", "880_half_budget_64px"),
    ),
)
PANELS = (("ORDER", "Kvasir"), ("ORDER", "CVC-ClinicDB"), ("nnU-Net", "Kvasir"), ("nnU-Net", "CVC-ClinicDB"))
TITLES = {"Kvasir": "Kvasir-SEG", "CVC-ClinicDB": "unseen ClinicDB"}
ROW, HEADING = 1.0, 2.2  # heights


def main(out: Path) -> None:
    """Draw the picture into `out`."""
    rows, headings, place = {}, {}, 0.0
    for heading, arms, files in EXPERIMENTS:
        headings[heading] = place + HEADING - 0.95
        for number, arm in enumerate(arms):
            place += ROW if number else HEADING
            rows[place] = (arm, files)
    figure, axes = plt.subplots(1, len(PANELS), sharey=True, figsize=(11, 0.27 * place + 1.4))
    for axis, (segmenter, test_set) in zip(axes, PANELS, strict=True):
        axis.set_title(f"{segmenter} on {TITLES[test_set]}", fontsize=10, pad=24)
        axis.axvline(0, color="#888", linewidth=0.8, linestyle="--")
        for place, (arm, files) in rows.items():
            draw(
                axis,
                place,
                COLOURS["real" if arm == HALF else arm][0],
                difference(files, arm, segmenter, test_set),
            )
        axis.set(xlim=(-15, 15), xticks=(-10, -5, 0, 5, 10))
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelsize=8)
    axes[0].set_yticks(
        list(rows), ["real, half budget" if arm == HALF else arm for arm, _ in rows.values()], fontsize=9
    )
    axes[0].invert_yaxis()
    for heading, place in headings.items():
        axes[0].text(-0.6, place, heading, transform=axes[0].get_yaxis_transform(), fontsize=9, weight="bold")
    about = (
        "mDice with synthetic images minus real alone, in points, with 95 % interval; filled: leaves out 0"
    )
    figure.supxlabel(about, fontsize=9)
    figure.subplots_adjust(left=0.135, right=0.985, top=0.91, bottom=0.11, wspace=0.08)
    figure.savefig(out, dpi=110)


def draw(axis: Axes, place: float, colour: str, found: dict | None) -> None:
    """A difference with its interval, or that there is none."""
    if found is None:
        axis.text(
            0, place, "not run", ha="center", va="center", fontsize=7, color="#888", backgroundcolor="w"
        )
        return
    value, low, high = (100 * found[name] for name in ("difference", "low", "high"))
    inside = colour if low > 0 or high < 0 else "w"
    axis.plot((low, high), (place, place), color=colour, linewidth=2, solid_capstyle="round")
    axis.plot(value, place, "o", color=colour, markerfacecolor=inside, markersize=6)


def difference(files: tuple[str, ...], arm: str, segmenter: str, test_set: str) -> dict | None:
    """The arm's difference to real alone over all test images, if that training was run."""
    for file in files:
        for row in json.loads((RESULTS / f"kvasir_{file}.json").read_text())["differences"]:
            ours = "ORDER" in row.get("trainer", "nnUNetTrainerORDER")  # one file has no other
            found = (row["arm"], row["test_set"], row["stratum"], row.get("metric", "mDice"))
            if (
                row.get("reference", "real") == "real"
                and found == (arm, test_set, "all", "mDice")
                and ours == (segmenter == "ORDER")
            ):
                return row
    return None


if __name__ == "__main__":
    tyro.cli(main)
