"""Random numbers that depend on what they are for, and on nothing that was drawn before."""

from __future__ import annotations

import numpy as np
import torch


def keyed_generator(*key: int, bits: int = 64) -> torch.Generator:
    """A generator on the CPU for a key such as (seed, stage, step): the same key draws the same numbers.

    So neither a resume nor the device nor the number of processes changes a draw.

    Args:
        bits: how many of the 64 derived bits become the seed, the highest ones.
    """
    derived = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(derived >> (64 - bits))
