"""What stays of an experiment's folder: its figures, configuration, versions and times in one JSON file.

    python benchmarks/experiment_record.py kvasir --what "..." --out benchmarks/results/kvasir.json

Paths become names: they mean nothing elsewhere.
"""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import tyro

DIGITS = 4
STATISTICS = (
    "mean over trainings and images; 95 % bootstrap over trainings and images, by patient or video where "
    "groups.json names them; p: Wilcoxon over images, patients or videos"
)


def main(folder: tyro.conf.Positional[Path], what: str, out: Path) -> None:
    """Read a finished experiment (report.html is there) and write `out`.

    Args:
        folder: of the experiment.
        what: a sentence that says which data were compared how.
        out: the JSON file.
    """
    experiment = json.loads((folder / "experiment.json").read_text())
    places = {name: Path(experiment["config"][name] or "") for name in ("dataset", "base")}
    names = {name: place.name for name, place in places.items() if place.is_absolute()}
    stages = [json.loads((folder / "stages" / f"{name}.json").read_text()) for name in experiment["stages"]]
    versions = {json.dumps(stage["versions"], sort_keys=True) for stage in stages}
    machines = {json.dumps(stage["machine"], sort_keys=True) for stage in stages}
    measures, images = table(folder, "synthesis.csv"), {}
    for row in measures:
        if row["section"] == "Filter":
            images.setdefault(row["synthesis"], {})[row["against"]] = row["value"]
    content = {
        "what": what,
        "command": " ".join(Path(word).name for word in shlex.split(experiment["command"])),
        "config": experiment["config"] | names,
        "versions": [json.loads(one) for one in sorted(versions)],
        "machine": [json.loads(one) for one in sorted(machines)],
        "commits": sorted({stage["commit"] for stage in stages if stage["commit"]}),
        "statistics": STATISTICS,
        "images": images,
        "scores": table(folder, "segmentation.csv"),
        "differences": table(folder, "differences.csv"),
        "synthesis": [row for row in measures if row["section"] != "Filter"],
        "seconds": {stage["name"]: round(stage["seconds"]) for stage in stages},
    }
    text = ",\n ".join(f"{json.dumps(key)}: {shown(value)}" for key, value in content.items())
    out.write_text("{\n " + text + "\n}\n")


def table(folder: Path, name: str) -> list[dict]:
    """Rows of a CSV file, numbers rounded, empty cells left out."""
    with (folder / "results" / name).open(newline="") as stream:
        return [{key: number(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]


def number(text: str) -> str | int | float:
    """The number that the text is, if it is one."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if kind is int or abs(value) < 10**-DIGITS else round(value, DIGITS)
    return text


def shown(value: object) -> str:
    """JSON with one line per entry of a list or table."""
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
    if isinstance(value, dict) and value:
        return "{\n  " + ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
    return json.dumps(value)


if __name__ == "__main__":
    tyro.cli(main)
