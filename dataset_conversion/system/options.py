"""What a number on the command line may be: said beside the option, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

from dataset_conversion.system.errors import UserError


class Range(NamedTuple):
    """The numbers that an option takes, as metadata of its field: `samples: Annotated[int, Range(1)] = 8`."""

    low: float
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is too low."""

    def __contains__(self, value: object) -> bool:
        """Whether a number lies in it; NaN lies in none."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low, high = (f"{end}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.high == math.inf:
            return f"above {low}" if self.above else f"{low} or more"
        return f"above {low}, at most {high}" if self.above else f"{low} to {high}"


SEED = Range(0, 2**32 - 1)  # NumPy's global generator, which accelerate seeds too, takes no higher one


def flag(name: str) -> str:
    """The option of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def check_ranges(options: Any, name_of: Callable[[str], str] = flag) -> None:
    """Check every field of a dataclass that has a `Range`; of a tuple each number, None never.

    UserError: one lies outside. `name_of` makes the name in its message of the field's.
    """
    for name, kind in get_type_hints(type(options), include_extras=True).items():
        for allowed in (one for one in getattr(kind, "__metadata__", ()) if isinstance(one, Range)):
            value = getattr(options, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and number not in allowed:
                    raise UserError(f"found {name_of(name)} {number}, expected {allowed}; change it")


def check_window(window: tuple[float, float] | None) -> None:
    """UserError unless the option --window is a range of two finite numbers."""
    if window is not None and not 0 < window[1] - window[0] < math.inf:
        raise UserError(
            f"found --window {window[0]:g} {window[1]:g}, expected two numbers, LOW below HIGH; change it"
        )


def check_seed(seed: int, name: str = "--seed") -> None:
    """UserError: a seed that not all generators take. `name`: what gave it."""
    if seed not in SEED:
        raise UserError(f"found {name} {seed}, expected {SEED}; change it")
