"""The options of `law-synth mine`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.raw.folds import Fold


@dataclass(frozen=True)
class Mine:
    """Measure how well a trained segmenter finds the lesions of one fold's training cases.

    --out gets the Dice of each case, for law-synth generate --hard-cases. The Dice of a volume is the mean
    over up to 16 of its slices; with several classes it is the mean over the classes. Validation and test
    cases are never looked at, and a segmenter that is known to have learned from them is refused.
    """

    dataset: str
    """Id, name or folder of the nnU-Net raw data set that the synthesis was trained on."""
    segmenter: Path
    """nnU-Net model folder (.../nnUNetTrainerORDER__nnUNetPlans__2d). Its fold --fold is used if it is there.
    A network from another package than nnU-Net needs your trust: NNUNET_ORDER_TRUSTED_NETWORKS="my_package".
    """
    fold: Fold = 0
    """Fold of the synthesis, or all for all training cases."""
    out: Path = Path("hard_cases.json")
    """JSON file to write."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:1."""
    dry_run: bool = False
    """Check everything, say what would be done and stop."""

    def check(self) -> None:
        """Nothing can be wrong with these options before the files are looked at."""
