"""The proof that what touches a fold never sees its validation or test cases, and that audit would tell.

Three data sets run through the real commands at one and the same path: a plain one; one whose validation and
test images carry a loud watermark and other masks; and, so that the test is able to fail, one with the same
watermark in a single training case.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="needs the extra synth")
pytest.importorskip("accelerate", reason="needs the extra synth")

from nnunetv2.utilities.crossval_split import generate_crossval_split

from dataset_conversion.phantom import phantom_case
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from law_synth.cli import main

CASES, TEST_CASES, SIZE = 12, 3, 32
TRAIN = [f"phantom_{index:04d}" for index in range(CASES)]
FOLD = generate_crossval_split(TRAIN, seed=12345, n_splits=5)[0]  # nnU-Net's own default
COMMANDS = (
    "init-base --from 970 --fold 0 --out {world}/base --vae-steps 3 --unet-steps 3 --batch-size 4 "
    "--image-size 32 --vae-width 8 --unet-width 16 --device cpu",
    "train --dataset 970 --fold 0 --base {world}/base --max-steps 3 --batch-size 2 --gradient-accumulation 1 "
    "--learning-rate 1e-3 --sample-every 0 --device cpu",
    "generate --out {world}/nnUNet_raw/Dataset971 --with-real --steps 2 --samples 10 --chunk-size 4 "
    "--device cpu",
)


def law_synth(command: str) -> int:
    """Run the console script's function as the script does; -> its exit code."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # a command has a process of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["law-synth", *command.split()])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


def watermark(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stripes of magenta and green over the image, and a mask that has nothing to do with it."""
    image, mask = image.copy(), np.zeros_like(mask)
    image[:, ::4], image[:, 1::4] = (255, 0, 255), (0, 255, 0)
    mask[2:9, 20:30] = 1
    return image, mask


def write_dataset(folder: Path, marked: set[str]) -> None:
    """The same phantoms every time, but for the cases that are `marked`."""
    with RawDatasetWriter(folder, RGB, {"background": 0, "polyp": 1}) as writer:
        for index in range(CASES + TEST_CASES):
            case, content = f"phantom_{index:04d}", phantom_case(0, index, SIZE)
            add = writer.add_training_case if index < CASES else writer.add_test_case
            add(case, *(watermark(*content) if case in marked else content))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Folders `watermarked`, `control` and `plain` of the three runs; the last still lies where it ran."""
    root = tmp_path_factory.mktemp("no_leak")
    world, held_out = root / "plain", {*FOLD["val"], *(f"phantom_{CASES + i:04d}" for i in range(TEST_CASES))}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(world / f"nnUNet_{name}"))
        patch.delenv("WORLD_SIZE", raising=False)
        for name, marked in (("watermarked", held_out), ("control", {FOLD["train"][0]}), ("plain", set())):
            for part in ("raw", "preprocessed", "results"):
                (world / f"nnUNet_{part}").mkdir(parents=True)
            write_dataset(world / "nnUNet_raw" / "Dataset970_Phantom", marked)
            for command in COMMANDS:
                assert law_synth(command.format(world=world)) == 0
            if name != "plain":
                world.rename(root / name)
        yield root


def digests(world: Path) -> dict[str, str]:
    """All that is made from a fold: base, run, synthetic data set; without the data set's real cases."""
    (run,) = (world / "nnUNet_results" / "law_synth").glob("*/*")
    parts = [world / "base", *(run / name for name in ("controlnet", "unet", "weighter"))]
    files = [path for part in parts for path in part.rglob("*") if path.is_file()]
    files += [run / "law_config.json", *(world / "nnUNet_preprocessed").rglob("*.json")]
    generated = (world / "nnUNet_raw" / "Dataset971").rglob("*")
    files += [path for path in generated if path.is_file() and not path.name.startswith("phantom_")]
    return {str(f.relative_to(world)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_held_out_pixels_change_nothing(worlds):
    """Not one byte of base, checkpoint and synthetic files depends on a validation or test case."""
    plain, marked = digests(worlds / "plain"), digests(worlds / "watermarked")
    assert len([name for name in plain if "Tr/law_" in name]) == 20
    assert sum(name.endswith(".safetensors") for name in plain) >= 6
    assert marked == plain
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):  # the watermark is there
        folders = [
            worlds / world / "nnUNet_raw" / "Dataset970_Phantom" / name for world in ("plain", "watermarked")
        ]
        changed = [
            path.name
            for path in folders[0].iterdir()
            if path.read_bytes() != (folders[1] / path.name).read_bytes()
        ]
        assert len(changed) == (len(FOLD["val"]) if name.endswith("Tr") else TEST_CASES)


def test_one_training_case_changes_everything(worlds):
    """The control: the same watermark where it may be seen reaches every weight and every synthetic image."""
    plain, control = digests(worlds / "plain"), digests(worlds / "control")
    weights = [name for name in plain if name.endswith(".safetensors") and "text_encoder" not in name]
    images = [name for name in plain if "imagesTr/law_" in name]
    assert plain.keys() == control.keys() and len(weights) >= 5 and len(images) == 10
    assert all(plain[name] != control[name] for name in (*weights, *images))


@pytest.fixture
def audit(worlds, tmp_path, capsys):
    """audit(folder, options) -> exit code, names of the checks that failed, and what was printed."""

    def run(folder: Path, options: str = "") -> tuple[int, set[str], str]:
        out = tmp_path / "audit.json"
        code = law_synth(f"audit {folder} --out {out} --device cpu {options}")
        checks = json.loads(out.read_text())["checks"]
        return (
            code,
            {check["name"] for check in checks if check["result"] == "failed"},
            capsys.readouterr().out,
        )

    return run


def test_audit_passes_what_the_commands_made(worlds, audit):
    code, failed, printed = audit(worlds / "plain" / "nnUNet_raw" / "Dataset971")
    assert (code, failed) == (0, set()) and "not possible" not in printed
    assert printed.strip().splitlines()[-1] == "clean"


@pytest.fixture
def tampered(worlds, tmp_path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(worlds / "plain" / "nnUNet_raw" / "Dataset971", tmp_path / "Dataset971"))


ALIKE = {"copied images", "alike in thumbnails", "alike in features"}


@pytest.mark.parametrize(("part", "mirrored"), [("Tr", False), ("Ts", True)])
def test_audit_finds_a_pasted_image(worlds, tampered, audit, part, mirrored):
    """A held-out image in place of a synthetic one; also mirrored, and without a record to betray it."""
    case = FOLD["val"][0] if part == "Tr" else f"phantom_{CASES:04d}"
    image = Image.open(
        worlds / "plain" / "nnUNet_raw" / "Dataset970_Phantom" / f"images{part}" / f"{case}_0000.png"
    )
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        shutil.rmtree(tampered / ".generation")
    image.save(tampered / "imagesTr" / "law_000003_0000.png")
    code, failed, printed = audit(tampered, "--allow-unchecked" if mirrored else "")
    assert code == 1 and failed == (ALIKE if mirrored else ALIKE | {"images"})
    assert f"leak: law_000003: its image has the pixels of {case}; {case} is held out in fold 0" in printed
    kinds = [line.split(":")[0] for line in printed.splitlines() if line.startswith(("leak:", "changed:"))]
    assert kinds == ["leak"] * 3 + ["changed"] * (not mirrored)


def test_audit_finds_a_row_of_a_validation_case(tampered, audit):
    path = tampered / "synthesis.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2] |= {"source_case": FOLD["val"][0], "source_mask": FOLD["val"][0]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, failed, printed = audit(tampered)
    assert code == 1 and failed == {"source masks", "manifest", "labels"}
    assert (
        f"leak: law_000002: its mask is that of {FOLD['val'][0]}; that is a validation case of fold 0"
        in printed
    )


def test_audit_finds_a_synthetic_validation_case(tampered, audit):
    path = tampered / "splits_final.json"
    (fold,) = json.loads(path.read_text())
    fold["train"].remove("law_000001")
    path.write_text(json.dumps([{**fold, "val": [*fold["val"], "law_000001"]}]))
    code, failed, printed = audit(tampered)
    assert code == 1 and failed == {"splits"} and "law_000001 validates; it is synthetic" in printed


def test_audit_finds_an_exchanged_label(tampered, audit):
    labels = [tampered / "labelsTr" / f"law_{index:06d}.png" for index in (0, 1)]
    contents = [label.read_bytes() for label in labels]
    for label, content in zip(labels, reversed(contents), strict=True):
        label.write_bytes(content)
    code, failed, printed = audit(tampered)
    assert code == 1 and failed == {"labels", "images"}
    assert "changed: law_000001: its label is not the mask that it was generated from" in printed


def test_audit_finds_a_held_out_mask(worlds, tampered, audit):
    """A validation mask, mirrored, as a label."""
    source = worlds / "plain" / "nnUNet_raw" / "Dataset970_Phantom" / "labelsTr" / f"{FOLD['val'][1]}.png"
    mask = Image.open(source).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mask.save(tampered / "labelsTr" / "law_000004.png")
    code, failed, printed = audit(tampered)
    assert code == 1 and failed == {"labels", "images", "copied masks"}
    assert f"leak: law_000004: its label is the mask of {FOLD['val'][1]}" in printed
