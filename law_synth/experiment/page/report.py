"""The verb `report`: CSV tables and one self-contained HTML page from what an experiment's folder holds."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence

from dataset_conversion.system.files import write_atomically
from dataset_conversion.system.folders import report_folder
from law_synth.experiment import statistics, tables
from law_synth.experiment.options import Report
from law_synth.experiment.page import charts, picture_rows, sentences
from law_synth.experiment.page.data_uris import thumbnail_side
from law_synth.experiment.page.display import display_note, display_of
from law_synth.experiment.results import Results, read_results
from nnunet_order.bootstrap import RESAMPLES
from nnunet_order.comparing.scores import CaseScores
from nnunet_order.evaluation_output import write_csv
from nnunet_order.metrics import FOREGROUND_MEAN, METRIC_TABLE

logger = logging.getLogger(__name__)

# Per arm: colour on a light and on a dark page. An arm has its colour in every experiment.
COLOURS = {
    "real": ("#5d6878", "#aab6c6"),
    "uniform": ("#2f6db0", "#72b0ee"),
    "ratio": ("#a96f0c", "#e7b24f"),
    "ratio-clamped": ("#6d7d16", "#b6c94a"),
    "adaptive-distillation": ("#86509f", "#c994e3"),
    "law": ("#0a7c68", "#3fd0b3"),
    "difficulty": ("#bd4527", "#f58b70"),
}
MORE_COLOURS = (
    ("#2b8196", "#6fcbe2"),
    ("#a24470", "#ec93b9"),
    ("#70583f", "#cdb192"),
    ("#4b55a8", "#9aa4f4"),
    ("#3f7f3a", "#86cf7f"),
)
TABLES = ("segmentation.csv", "differences.csv", "synthesis.csv")


def report(options: Report) -> None:
    """Write the tables and the page. UserError: no experiment in the folder, a damaged file."""
    options.check()
    results = read_results(options.out)
    tested = [case for group in results.scores for case in group.cases]
    shares = results.lesion_shares(dict.fromkeys(tested))
    groups = results.real.groups if results.real is not None else {}
    scores = statistics.scores(results.scores, shares, groups)
    differences = statistics.differences(results.scores, shares, groups, results.reference)
    rows = (
        tables.segmentation_rows(scores),
        tables.difference_rows(differences, results.reference),
        tables.synthesis_rows(results),
    )
    mixtures = tables.synthetic_shares(results)
    for one in mixtures:
        logger.info(
            "%s: nnU-Net draws among %.0f real and %.0f synthetic cases, %.0f %% of a batch is synthetic",
            *(one["arm"], one["real"], one["synthetic"], 100 * one["share"]),
        )
    page = render(results, scores, differences, mixtures)
    with report_folder(options.out / "results", TABLES) as partial:
        for name, content in zip(TABLES, rows, strict=True):
            write_csv(partial / name, content)
    path = options.out / "report.html"
    write_atomically(path, page.encode())
    logger.info("wrote %s (%.1f MB) and %s", path, len(page) / 1e6, options.out / "results")


def render(results: Results, scores: Sequence, differences: Sequence, mixtures: Sequence) -> str:
    """The page, with everything it needs in it. `mixtures`: rows of `tables.synthetic_shares`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("law_synth.experiment.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": sentences.number,
        "interval": sentences.interval,
        "p": sentences.p_value,
    }
    template = environment.get_template("report.html.j2")
    main = [one for one in differences if one.metric == "mDice"]
    groups = score_groups(results, scores, differences)
    return template.render(
        results=results,
        description=results.description,
        colours=arm_colours(results.arms),
        index={arm: position for position, arm in enumerate(results.arms)},
        headline=sentences.headline(results, differences, scores),
        group_sentences=sentences.group_sentences(results, differences),
        caveats=sentences.caveats(results, differences),
        over=sentences.over(results.reference),
        groups=groups,
        by_size=any(panel["strata"] for group in groups for panel in group["labels"].values()),
        labels=results.labels,
        mean_label=FOREGROUND_MEAN,
        metrics=METRIC_TABLE,
        resamples=RESAMPLES,
        mixtures=mixtures,
        volumetric=results.real is not None and results.real.holds_volumes,
        forest=charts.forest_axis([one.estimate for one in main if one.stratum == statistics.ALL]),
        **synthesis_context(results),
        **picture_context(results),
        **provenance(results),
    )


def arm_colours(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Arm -> its colours on a light and on a dark page."""
    others = [arm for arm in arms if arm not in COLOURS]
    return {arm: COLOURS.get(arm) or MORE_COLOURS[others.index(arm) % len(MORE_COLOURS)] for arm in arms}


def score_groups(results: Results, scores: Sequence, differences: Sequence) -> list[dict]:
    """Per trainer and test set, and for each of its labels: means and differences by arm, scatter panels."""
    groups = []
    for (trainer, test_set), labels in results.by_test_set.items():
        panels = {label: label_panel(results, group, scores, differences) for label, group in labels.items()}
        cases = next(iter(labels.values())).cases
        groups.append({"trainer": trainer, "test_set": test_set, "labels": panels, "cases": cases})
    return groups


def label_panel(results: Results, group: CaseScores, scores: Sequence, differences: Sequence) -> dict:
    """Means and differences by arm and stratum, scatter panels; of one trainer, test set and label."""
    key = (group.trainer, group.test_set, group.label)
    means = {
        (one.stratum, one.arm, one.metric): one.estimate
        for one in scores
        if (one.trainer, one.test_set, one.label) == key
    }
    gains = {
        (one.stratum, one.arm, one.metric): one
        for one in differences
        if (one.trainer, one.test_set, one.label) == key
    }
    arms = [arm for arm in results.arms if (statistics.ALL, arm, "mDice") in means]
    estimates = [means[statistics.ALL, arm, "mDice"] for arm in arms]
    ends = [100 * end for one in estimates for end in (one.low, one.high, one.value) if math.isfinite(end)]
    return {
        "arms": arms,
        "means": means,
        "gains": gains,
        "strata": [name for name in statistics.STRATA if any(found[0] == name for found in means)],
        "stratum_cases": {stratum: one.cases for (stratum, _, _), one in reversed(means.items())},
        "axis": charts.make_axis(ends, margin=0.08, ticks=3) if ends else None,
        "scatters": charts.scatters(group, arms, results.reference),
    }


def synthesis_context(results: Results) -> dict:
    """Tables and charts of the synthetic images."""
    counts = {
        arm: tables.filter_counts([one for one in results.syntheses if one.arm == arm])
        for arm in results.arms
    }
    protocols = {
        f"{measure['name']}, {measure['against']}": measure["protocol"]
        for one in results.syntheses
        for measure in one.evaluation.get("measures", [])
    }
    skipped = {
        measure: reason
        for one in results.syntheses
        for measure, reason in one.evaluation.get("skipped", {}).items()
    }
    table = tables.synthesis_table(results)
    ceilings = {FOREGROUND_MEAN: table["real"].get("mDice, own mask")}
    ceilings |= {label: table["real"].get(f"{label}, own mask") for label in results.labels[1:]}
    return {
        "synthesis": table,
        "filtered": {arm: found for arm, found in counts.items() if found},
        "reasons": sorted({reason for found in counts.values() for reason in found} - {"generated", "kept"}),
        "agreement": charts.agreement_histograms(results),
        "ceilings": {label: found["value"] for label, found in ceilings.items() if found},
        "sizes": charts.size_histograms(results),
        "losses": charts.losses(results),
        "protocols": protocols,
        "skipped": skipped,
    }


def picture_context(results: Results) -> dict:
    """All pictures; the more there are, the smaller they become."""
    colours = {
        arm: dark for arm, (_, dark) in arm_colours(results.arms).items()
    }  # on photos: the bright ones
    tiles = sum(3 * (2 + len(next(iter(labels.values())).values)) for labels in results.by_test_set.values())
    tiles += 2 * picture_rows.SHOWN_MASKS * (1 + len(picture_rows.first_syntheses(results)))
    display = display_of(results)
    painter = picture_rows.Painter(results, display, colours, thumbnail_side(tiles))
    return {
        "label_colours": display.colours,
        "display_note": display_note(results, display),
        "grids": picture_rows.generated_grids(painter),
        "examples": [
            {"trainer": trainer, "test_set": test_set, "rows": picture_rows.predictions(painter, labels)}
            for (trainer, test_set), labels in results.by_test_set.items()
        ],
        "deltas": picture_rows.delta_maps(painter),
    }


def provenance(results: Results) -> dict:
    """How long it took, on what, with which versions, and the hashes of what was made."""
    seconds: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for stage in results.stages:
        kind = stage.name.split("_")[0]
        seconds[kind] += stage.seconds
        number[kind] += 1
    versions: dict[str, set[str]] = {}
    for stage in results.stages:
        for package, version in stage.versions.items():
            versions.setdefault(package, set()).add(version or "not installed")
    return {
        "costs": [(kind, number[kind], total) for kind, total in seconds.most_common()],
        "versions": {package: sorted(found) for package, found in sorted(versions.items())},
        "commits": sorted({stage.commit for stage in results.stages if stage.commit}),
        "machines": list(dict.fromkeys(stage.machine for stage in results.stages)),
        "hashes": hashes(results.syntheses),
        "config": json.dumps(results.description.config, indent=2),
    }


def hashes(syntheses: Sequence) -> dict[str, list[str]]:
    """sha256 -> what has it; most syntheses share their base model and their judge."""
    found: dict[str, list[str]] = {}
    for one in syntheses:
        named = {
            f"base model of {one.run}": one.config and one.config.base.hash,
            f"LAW weights of {one.run}": one.config and one.config.weights_hash,
            f"judge of {one.name}": (one.evaluation.get("segmenter") or {}).get("sha256"),
        }
        for images, content in one.evaluation.get("sets", {}).items():
            named[f"{images} images of {one.name}"] = content["content_sha256"]
        for name, digest in named.items():
            if digest and name not in found.get(digest, []):
                found.setdefault(digest, []).append(name)
    return found
