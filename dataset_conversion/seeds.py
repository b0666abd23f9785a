"""One rule for the seeds of all verbs."""

from __future__ import annotations

from dataset_conversion.user_error import UserError

MAX_SEED = 2**32 - 1  # NumPy's global generator, which accelerate seeds too, takes no higher one


def check_seed(seed: int, name: str = "--seed") -> None:
    """UserError: a seed that not all generators take. `name`: what gave it."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"found {name} {seed}, expected 0 or more, at most {MAX_SEED}; correct the option")
