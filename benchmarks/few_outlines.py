"""A hospital with few outlines: a data set that keeps some of a fold's, and the images of the others.

    python benchmarks/few_outlines.py --dataset 510 --outlines 90 \
        --out nnUNet_raw/Dataset511_Polyps90 --rest unlabelled

The fold becomes fold 0. Its validation cases and all test cases stay.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import tyro

from dataset_conversion.raw.dataset import find_dataset
from dataset_conversion.raw.folds import leak_free_fold, write_splits
from dataset_conversion.subset import write_cases, write_descriptions
from dataset_conversion.system.files import link_or_copy
from dataset_conversion.system.folders import new_folder


@dataclass(frozen=True)
class FewOutlines:
    """Keep the outlines of some training cases of a fold, drawn at random."""

    dataset: str
    outlines: int
    out: Path
    """Raw data set to write."""
    rest: Path
    """Folder for the images of the fold's other training cases."""
    fold: int = 0
    seed: int = 0


def main(options: FewOutlines) -> None:
    """Write the data set and the folder."""
    source, out = find_dataset(options.dataset), options.out.resolve()
    training, validation = leak_free_fold(source, options.fold)
    labelled = random.Random(options.seed).sample(training, options.outlines)
    kept = {*labelled, *validation}
    with new_folder(out) as partial:
        write_cases(source, kept, partial, max_side=None)
        write_descriptions(source, kept, partial, max_side=None)
        write_splits(out, [{"train": sorted(labelled), "val": validation}], partial)
    options.rest.mkdir()
    for case_id in set(training) - kept:
        for image in source.case(case_id).images:
            link_or_copy(image, options.rest / image.name)


if __name__ == "__main__":
    main(tyro.cli(FewOutlines))
