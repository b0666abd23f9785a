"""What the numbers say, in words; every sentence is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from law_synth.experiment.results import Results
from law_synth.experiment.statistics import ALL, Difference, Estimate, Score
from nnunet_order.metrics import FOREGROUND_MEAN

MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A number for readers; an en dash for a missing one."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:  # no -0.0
        text = f"{0:.{digits}f}"
    return text.replace("-", MINUS)


def interval(found: Estimate, scale: float = 100, digits: int = 1, sign: bool = False) -> str:
    """[low, high]; a single case has no interval."""
    if not math.isfinite(found.low):
        return "[interval unknown]"
    low, high = (number(scale * end, digits, sign) for end in (found.low, found.high))
    return f"[{low}, {high}]"


def p_value(value: float) -> str:
    """A p-value for readers."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def verdict(one: Difference) -> str:
    """Whether the arm is better, worse, or neither can be said."""
    if one.estimate.trainings == 1:
        return "one training per arm cannot tell an effect from chance"
    if not one.distinguishable:
        return "not distinguishable from no effect"
    return "better" if one.estimate.value > 0 else "worse"


def difference_sentence(one: Difference, reference: str) -> str:
    """law: +1.2 mDice [-0.4, 2.9] over real alone; not distinguishable from no effect."""
    value = number(100 * one.estimate.value, sign=True)
    return f"{one.arm}: {value} {one.metric} {interval(one.estimate)} {over(reference)}; {verdict(one)}"


def over(reference: str) -> str:
    return "over real alone" if reference == "real" else f"over {reference}"


def main_differences(differences: Sequence[Difference]) -> list[Difference]:
    """Of all cases and the mean over the labels: what the sentences are about."""
    return [
        one for one in differences if (one.label, one.stratum, one.metric) == (FOREGROUND_MEAN, ALL, "mDice")
    ]


def label_differences(one: Difference, differences: Sequence[Difference]) -> str:
    """kidney +0.3 [-0.1, 0.8], tumour +2.1 [0.2, 4.0]: what a difference of means is made of."""
    wanted = (one.trainer, one.test_set, one.arm, one.stratum, one.metric)
    parts = [
        f"{found.label} {number(100 * found.estimate.value, sign=True)} {interval(found.estimate)}"
        for found in differences
        if (found.trainer, found.test_set, found.arm, found.stratum, found.metric) == wanted
        and found.label != FOREGROUND_MEAN
    ]
    return ", ".join(parts)


def headline(results: Results, differences: Sequence[Difference], scores: Sequence[Score]) -> str:
    """The whole experiment in one sentence."""
    main = main_differences(differences)
    against = "real data alone" if results.reference == "real" else results.reference
    if not results.description.segmentations:
        return "This experiment trains no segmenter: it shows the synthetic images, not whether they help."
    if not scores:
        return "No segmenter has been scored yet."
    if not main:
        return f"There is nothing to compare with {against} yet."
    if len(main) == 1:
        return difference_sentence(main[0], results.reference) + "."
    better = sum(one.distinguishable and one.estimate.value > 0 for one in main)
    worse = sum(one.distinguishable and one.estimate.value < 0 for one in main)
    if not better + worse:
        if all(one.estimate.trainings == 1 for one in main):
            return f"With one training per arm, {len(main)} comparisons with {against} cannot show an effect."
        return f"None of {len(main)} comparisons with {against} shows a distinguishable effect."
    rest = len(main) - better - worse
    parts = [f"{better} {'is' if better == 1 else 'are'} better"] * bool(better)
    parts += [f"{worse} {'is' if worse == 1 else 'are'} worse"] * bool(worse)
    parts += [f"{rest} {'shows' if rest == 1 else 'show'} no distinguishable effect"] * bool(rest)
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"Of {len(main)} comparisons with {against}, {listed}."


def group_sentences(results: Results, differences: Sequence[Difference]) -> list[dict]:
    """Per trainer and test set: the arms that differ from the reference, or else the largest difference,
    whatever its sign."""
    sentences = []
    main = main_differences(differences)
    for group in dict.fromkeys((one.trainer, one.test_set) for one in main):
        of_group = sorted(
            (one for one in main if (one.trainer, one.test_set) == group), key=lambda one: -one.estimate.value
        )
        told = [one for one in of_group if one.distinguishable]
        told = told or [max(of_group, key=lambda one: abs(one.estimate.value))]  # not the most flattering one
        lines = [
            {
                "arm": one.arm,
                "text": difference_sentence(one, results.reference)[len(one.arm) + 2 :],
                "labels": label_differences(one, differences),
            }
            for one in told
        ]
        rest = len(of_group) - len(told)
        note = ""
        if rest and told[0].distinguishable:
            note = f"{rest} other {'arm shows' if rest == 1 else 'arms show'} no distinguishable effect."
        elif rest:
            note = f"This is the largest of {len(of_group)} differences."
        sentences.append({"trainer": group[0], "test_set": group[1], "lines": lines, "note": note})
    return sentences


def caveats(results: Results, differences: Sequence[Difference]) -> list[str]:
    """What the intervals leave out, and what is missing."""
    found = []
    counts = {one.estimate.trainings for one in main_differences(differences)}
    if 1 in counts:
        where = "Each arm" if counts == {1} else "Where N says so, an arm"
        found.append(
            f"{where} has only one training. Its interval comes from the cases alone and does not include "
            "how much one training differs from the next."
        )
    elif counts and min(counts) < 5:
        found.append(
            f"The intervals resample only {min(counts)} trainings per arm, which say little about their "
            "spread."
        )
    missing = [part for part in results.missing if part.startswith("scores of ")]
    if missing:
        total = len(results.description.segmentations)
        are = "is" if len(missing) == 1 else "are"
        found.append(f"{len(missing)} of {total} segmentations {are} not scored yet; the numbers may change.")
    return found
