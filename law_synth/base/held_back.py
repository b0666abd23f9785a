"""Cases that a training keeps from itself to be judged on: always whole patients or videos.

There are two ways because they answer two wishes. `init-base` wants enough images to judge its autoencoder,
so it draws patients until it has them. `train` wants a fixed number at most, so it draws cases, and a patient
with many cases is drawn early. Both are part of what a seed means and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

ENOUGH = 16  # cases are enough to judge an autoencoder


def hold_back_patients(cases: Sequence[str], groups: Mapping[str, str], seed: int) -> list[str]:
    """Cases of randomly drawn patients until there are `ENOUGH`, at most a fifth of all cases.

    None are held back where every patient has more than a fifth.

    Args:
        groups: patient or video of each case.
    """
    patients, held_back = list(_by_patient(cases, groups).values()), []
    for index in np.random.default_rng(seed).permutation(len(patients)):
        if len(held_back) < ENOUGH and len(held_back) + len(patients[index]) <= len(cases) // 5:
            held_back += patients[index]
    return held_back


def hold_back_cases(cases: Sequence[str], count: int, seed: int, groups: Mapping[str, str]) -> list[str]:
    """At most `count` cases, and a tenth of all, with all others of their patients, in the order of `cases`.

    Args:
        groups: patient or video of each case.
    """
    count = min(count, len(cases) // 10)
    patients = _by_patient(cases, groups)
    chosen: set[str] = set()
    for index in np.random.default_rng(seed).permutation(len(cases)):
        patient = patients[groups[cases[index]]]
        if len(chosen.union(patient)) <= count:
            chosen.update(patient)
    return [case for case in cases if case in chosen]


def _by_patient(cases: Sequence[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Patient or video -> its cases."""
    patients: dict[str, list[str]] = {}
    for case in cases:
        patients.setdefault(groups[case], []).append(case)
    return patients
