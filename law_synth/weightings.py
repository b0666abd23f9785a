"""The weightings of `law-synth train`: what each one asks for. Their formulas are in `weighting`.

This module imports no torch, so that the command line can list the weightings at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BOUNDS = ("normalize", "w_min", "w_max")  # equation 7
PHI = ("tau", "joint", "weighter_learning_rate", "lambda_dice")  # equations 4 and 12


@dataclass(frozen=True)
class Weighting:
    """What a weighting needs besides its formula."""

    target: Literal["mask", "error"] | None = None
    """What delta learns: each class's mask (equation 9) or the student's error. None: there is no delta."""
    needs_teacher: bool = False
    options: tuple[str, ...] = ()
    """The options of train that this weighting uses and others do not."""

    @property
    def is_learned(self) -> bool:
        """Whether phi is trained beside the student."""
        return self.target is not None


WEIGHTINGS = {
    "uniform": Weighting(),
    "ratio": Weighting(),
    "ratio-clamped": Weighting(options=BOUNDS),
    "adaptive-distillation": Weighting(needs_teacher=True),
    "law": Weighting(target="mask", options=(*BOUNDS, *PHI, "gamma", "dice")),
    "difficulty": Weighting(target="error", options=(*BOUNDS, *PHI)),
}
WeightingName = Literal[tuple(WEIGHTINGS)]  # tyro reads the names from the table, too
