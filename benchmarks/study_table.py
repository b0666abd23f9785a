"""Table of the runs of `order_variants.py`: mDice per variant over seeds, and paired differences.

    python benchmarks/study_table.py benchmarks/results/order_variants --baseline MKUNet

Intervals: 95 %, bootstrap over the seeds that both variants have and over images, ClinicDB's by video.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from dataset_conversion.polyps import CLINICDB_FIRST_FRAMES, CLINICDB_LAST_FRAME, sequence_of
from nnunet_order.bootstrap import interval, resampled_means

# The runs list the frames in their order.
VIDEOS = {
    "CVC-ClinicDB": [
        sequence_of(f"clinicdb_{frame}", list(CLINICDB_FIRST_FRAMES))
        for frame in range(1, CLINICDB_LAST_FRAME + 1)
    ]
}


@dataclass(frozen=True)
class StudyTable:
    """Print the study's results."""

    results: tyro.conf.Positional[Path]
    """Folder of the JSON files."""
    baseline: str = "MKUNet"
    """Variant that the others are compared with."""

    def run(self) -> None:
        runs = defaultdict(dict)  # (recipe, size, epochs, augmentation) -> (variant, seed) -> result
        for file in sorted(self.results.glob("*_seed*.json")):
            run = json.loads(file.read_text())
            setting = run["recipe"], run["size"], run["epochs"], run.get("augmentation", True)
            runs[setting][run["variant"], run["seeds"]] = run
        for setting, results in sorted(runs.items()):
            Console(width=160).print(self.table(setting, results))

    def table(self, setting: tuple, results: dict) -> Table:
        recipe, size, epochs, augmentation = setting
        plain = "" if augmentation else ", no augmentation"
        table = Table(title=f"{recipe}, {size} px, {epochs} epochs{plain}")
        splits = list(next(iter(results.values()))["mDice"])
        for column in ("variant", "parameters", "seeds", "s/run", *splits):
            table.add_column(column)
        for variant in dict.fromkeys(variant for variant, _ in results):
            chosen = {seed: run for (name, seed), run in results.items() if name == variant}
            any_run = next(iter(chosen.values()))
            cells = [variant, f"{any_run['parameters']:,}", str(len(chosen))]
            cells.append(f"{np.mean([run['seconds'] for run in chosen.values()]):.0f}")
            for split in splits:
                values = [run["mDice"][split] for run in chosen.values()]
                cells.append(
                    f"{np.mean(values):.1f} ± {np.std(values):.1f}{self.gain(results, variant, split)}"
                )
            table.add_row(*cells)
        return table

    def gain(self, results: dict, variant: str, split: str) -> str:
        """Paired difference to the baseline on the seeds that both have."""
        seeds = [seed for name, seed in results if name == variant and (self.baseline, seed) in results]
        if variant == self.baseline or split == "train" or not seeds:
            return ""
        ours, theirs = (
            np.array([results[name, seed]["per_image_dice"][split] for seed in seeds])
            for name in (variant, self.baseline)
        )
        difference = ours - theirs  # (seeds, images)
        low, high = interval(resampled_means(difference[..., None], groups=VIDEOS.get(split)))
        return f" ({difference.mean():+.1f} [{low:+.1f}, {high:+.1f}])"


if __name__ == "__main__":
    tyro.cli(StudyTable).run()
