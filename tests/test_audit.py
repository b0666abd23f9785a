"""Each check of `law-synth audit`; tests/test_no_leak.py audits what the whole chain of commands made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_records import small_base

from dataset_conversion.raw.folds import read_splits
from dataset_conversion.system.json_files import as_json

pytest.importorskip("diffusers", reason="needs the extra synth")


from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.raw.writer import RawDatasetWriter
from dataset_conversion.system.errors import UserError
from law_synth.audit import contents, copies, origins
from law_synth.audit.audit import audit as run_audit
from law_synth.audit.audited_data import read_audited_data
from law_synth.audit.finding import NotPossible
from law_synth.audit.options import Audit
from law_synth.evaluation.image_sets import read_compared_sets
from law_synth.generation.generate import generate
from law_synth.generation.options import Generate
from law_synth.records.base import write_base_config
from law_synth.records.run import read_run
from law_synth.records.synthetic import source_slice
from law_synth.view.slices import Slice, view_of

NAME = "Dataset950_Phantom"


@pytest.fixture(autouse=True)
def environment(trained_run, monkeypatch, tmp_path):
    """nnU-Net's variables, with preprocessed data and a cache of each test's own."""
    root = trained_run.parents[3]
    monkeypatch.setenv("nnUNet_raw", str(root / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_results", str(root / "nnUNet_results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture(scope="module")
def generated(trained_run, tmp_path_factory) -> Path:
    """Four samples and the real cases."""
    out = tmp_path_factory.mktemp("audited") / "Dataset951"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("nnUNet_preprocessed", raising=False)
        generate(Generate(out=out, trained_run=trained_run, with_real=True, samples=4, steps=1))
    return out


@pytest.fixture
def data(generated, tmp_path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(generated, tmp_path / "Dataset951"))


@pytest.fixture
def source(trained_run):
    return read_dataset(read_run(trained_run).dataset_folder)


@pytest.fixture
def split(source):
    return read_splits(source)[0]


def look(check, data: Path, **options) -> list[str]:
    """Findings of one check."""
    verb = Audit(str(data), device="cpu", **options)
    return [str(finding) for finding in check(read_audited_data(verb), verb)[0]]


def audit(data: Path, out: Path, **options) -> tuple[int, dict[str, str]]:
    """Exit code, and the result of every check."""
    code = 0
    try:
        run_audit(Audit(str(data), out=out, device="cpu", **options))
    except SystemExit as stop:
        code = stop.code
    content = json.loads(out.read_text())
    assert content["clean"] == (code == 0)
    return code, {check["name"]: check["result"] for check in content["checks"]}


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_grey_bent_masks_at_original_size_are_clean(trained_run, tmp_path):
    """Everything that generate can vary, and the ids of the source look like synthetic ones."""
    folder = tmp_path / "Dataset960_Grey"
    with RawDatasetWriter(folder, ("grey",), {"background": 0, "tumour": 1}) as writer:
        for i in range(8):
            mask = np.zeros((50, 70), np.uint8)
            mask[10 + i : 25, 20:45] = 1
            image = np.random.default_rng(i).integers(0, 255, (50, 70), np.uint8)
            add = writer.add_training_case if i < 6 else writer.add_test_case
            add(f"law_{i:06d}", image, mask)
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    changes = {"dataset": {"name": folder.name, "folder": str(folder)}, "monitor_cases": []}
    changes["train_cases"] = read_splits(read_dataset(folder))[0]["train"]
    changes["view"] = as_json(view_of(read_dataset(folder), changes["train_cases"]).record)
    change_json(run / "law_config.json", lambda config: config.update(changes))
    out = tmp_path / "Dataset951"
    options = {"samples": 4, "steps": 1, "original_size": True, "mask_augment": "elastic", "with_real": True}
    generate(Generate(out=out, trained_run=run, **options))
    code, results = audit(out, tmp_path / "audit.json", trained_run=run)
    assert code == 0 and set(results.values()) == {"passed"} and len(results) == 17
    label = out / "labelsTr" / "law2_000001.png"
    Image.fromarray(np.asarray(Image.open(label))[::-1].copy()).save(label)
    assert "its label is not the mask" in look(contents.check_labels, out)[0]


def test_what_cannot_be_checked_is_not_clean(data, source, tmp_path, monkeypatch, capsys):
    """The source is gone; it may be named; its absence may be allowed."""
    moved = shutil.copytree(source.folder, tmp_path / "elsewhere" / NAME)
    change = {"name": NAME, "folder": "/nowhere"}
    change_json(data / "synthesis.json", lambda record: record["source_dataset"].update(change))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    out = tmp_path / "audit.json"
    code, results = audit(data, out)
    assert code == 1 and set(results.values()) == {"passed", "not possible"}
    passed = {name for name, result in results.items() if result == "passed"}
    assert passed == {"trained run", "base model", "judge", "hard cases", "manifest", "images", "geometry"}
    assert "10 checks not possible (--allow-unchecked accepts them)" in capsys.readouterr().out
    assert "give --real" in json.loads(out.read_text())["checks"][0]["detail"]
    assert audit(data, out, allow_unchecked=True)[0] == 0
    assert capsys.readouterr().out.strip().endswith("clean, but 10 checks were not possible")
    code, results = audit(data, out, real=str(moved))
    assert code == 0 and set(results.values()) == {"passed"}


def test_files_that_do_not_belong(data, source, split):
    """Held-out cases are leaks when they would train; others are changes."""
    assert look(contents.check_cases, data) == []
    test_case = source.test_cases[0]
    shutil.copy(test_case.images[0], data / "imagesTr")
    shutil.copy(data / "imagesTr" / "law_000000_0000.png", data / "imagesTr" / "extra_0000.png")
    (data / "labelsTr" / "law_000002.png").unlink()
    change_json(data / "dataset.json", lambda content: content.update(numTraining=9, dataset={}))
    found = look(contents.check_cases, data)
    assert [line.split(";")[0] for line in found] == [
        "changed: imagesTr/extra_0000.png: neither a kept sample nor a real case of the fold",
        f"leak: imagesTr/{test_case.id}_0000.png: {test_case.id} would train",
        "changed: labelsTr/law_000002.png: not there",
        "leak: dataset.json: it lists files of its own",
        "changed: dataset.json: numTraining 9, not 16",
    ]
    change_json(data / "synthesis.json", lambda record: record["options"].update(with_real=False))
    assert f"leak: imagesTr/{split['val'][0]}_0000.png: {split['val'][0]} would train" in "".join(
        look(contents.check_cases, data)
    )


def test_damaged_files(data, split):
    """Real cases must be the source's, synthetic ones readable, of legal values and of one size."""
    real, image, label = (
        data / "imagesTr" / f"{name}_0000.png" for name in (split["val"][0], "law_000000", "x")
    )
    label = data / "labelsTr" / "law_000001.png"
    real.unlink()  # else the write goes through the hard link into the source
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(real)
    image.write_bytes(image.read_bytes()[:200])
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(label)
    assert (
        f"changed: imagesTr/{real.name}: another file than the source's"
        in look(contents.check_real_cases, data)[0]
    )
    assert "cannot be read" in look(contents.check_images, data)[0]
    assert "law_000001.png" in look(contents.check_labels, data)[0]
    shutil.rmtree(data / ".generation")
    with pytest.raises(NotPossible, match=r"no \.generation/"):
        look(contents.check_manifest, data)


def test_splits(data, split, tmp_path):
    assert look(contents.check_splits, data) == []
    (tmp_path / "nnUNet_preprocessed" / "Dataset951").mkdir(parents=True)
    assert "nnU-Net would split by chance" in look(contents.check_splits, data)[0]
    change_json(data / "splits_final.json", lambda folds: folds[0]["train"].append(split["val"][1]))
    assert f"leak: {data / 'splits_final.json'}: {split['val'][1]} trains" in "\n".join(
        look(contents.check_splits, data)
    )
    change_json(data / "splits_final.json", lambda folds: folds[0].update(train=split["train"]))
    assert "other cases than the fold's" in "\n".join(look(contents.check_splits, data))


def test_splits_that_changed_since_the_training(data, source, split, tmp_path):
    assert look(origins.check_training_cases, data) == []
    folder = tmp_path / "nnUNet_preprocessed" / NAME
    folder.mkdir(parents=True)
    (folder / "splits_final.json").write_text(
        json.dumps([{"train": split["train"][2:] + split["val"], "val": split["train"][:2]}])
    )
    found = look(origins.check_training_cases, data)
    assert found[0].startswith(f"leak: synthesis.json: the model was trained on {split['train'][0]}")
    assert "the run's training cases differ from the fold's" in found[-1]
    assert (
        f"its mask is that of {split['train'][0]}; that is a validation case"
        in look(origins.check_sources, data)[0]
    )
    both = {"train": [*split["train"], *split["val"]], "val": [*split["val"], split["train"][0]]}
    (folder / "splits_final.json").write_text(json.dumps([both]))
    (finding,) = look(origins.check_training_cases, data)  # a case on both sides validates
    assert finding.startswith(f"leak: synthesis.json: the model was trained on {split['train'][0]}")


def test_a_mask_from_elsewhere_is_of_the_patient_that_its_table_said(data, split):
    """--mask-groups names patients that no file name tells."""
    manifest = data / "synthesis.jsonl"
    first, *others = [json.loads(line) for line in manifest.read_text().splitlines()]
    for group, found in ((split["train"][0], 0), (split["val"][0], 1)):
        row = first | {"source_case": None, "source_mask": "a.png", "source_group": group}
        manifest.write_text("".join(json.dumps(one) + "\n" for one in (row, *others)))
        findings = look(origins.check_sources, data)
        assert len(findings) == found
    assert f"its mask a.png is of {split['val'][0]}" in findings[0]


def test_evaluate_and_audit_agree_whose_a_mask_is(trained_run, tmp_path):
    """A file called like a training case is the case's mask if it has its pixels, and anybody's if not."""
    run = read_run(trained_run)
    dataset = read_dataset(run.dataset_folder)
    own, other, third = run.train_cases[:3]
    folder = tmp_path / "masks"
    folder.mkdir()
    shutil.copy(dataset.case(own).label, folder / f"{own}.png")
    shutil.copy(dataset.case(third).label, folder / f"{other}.png")
    options = {"trained_run": trained_run, "masks": folder, "samples": 4, "steps": 1, "mask_augment": "flip"}
    out = tmp_path / "Dataset951"
    generate(Generate(out=out, **options))
    assert look(contents.check_labels, out) == look(origins.check_sources, out) == []
    evaluated = read_compared_sets(str(out), None)
    assert evaluated.sources == (Slice(own), None) * 2  # the files in turn: own, other, own, other
    assert [source_slice(row) for row in read_audited_data(Audit(str(out))).rows] == [*evaluated.sources]
    train = evaluated.references["train"].ids
    assert evaluated.pairs == [(0, train.index(own)), (2, train.index(own))]
    assert evaluated.groups("synthetic") == [own, other] * 2
    rows = [json.loads(line) for line in (out / "synthesis.jsonl").read_text().splitlines()]
    assert [row["source_case"] for row in rows] == [own, other] * 2
    assert [row["source_mask"] for row in rows] == [own, f"{other}.png"] * 2


def test_run_and_base_are_looked_at(data, trained_run, split, tmp_path):
    """The weights of another run, a base of other cases, and what is not there."""
    assert look(origins.check_run, data) == look(origins.check_base, data) == []
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    weights = run / "controlnet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    change_json(run / "law_config.json", lambda config: config["train_cases"].append(split["val"][0]))
    found = look(origins.check_run, data, trained_run=run)
    assert "other weights than those that generated" in found[0] and "another train_cases" in found[1]
    assert f"leak: {run}: trained on {split['val'][0]}" in found[2]
    base = Path(shutil.copytree(read_run(trained_run).config.base.source, tmp_path / "base"))
    config = small_base(NAME, [*split["train"], split["val"][0]])
    write_base_config(base, config)
    assert f"leak: {base}: trained on {split['val'][0]}" in look(origins.check_base, data, base=base)[0]
    write_base_config(base, replace(config, dataset="Dataset777_Other"))
    with pytest.raises(NotPossible, match="trained on Dataset777_Other, another data set"):
        look(origins.check_base, data, base=base)
    write_base_config(base, replace(config, dataset="Dataset777_Other", dataset_origin=NAME))
    assert f"leak: {base}: trained on {split['val'][0]}" in look(origins.check_base, data, base=base)[0]
    # Experiments call all of their data Dataset001_Real: the name alone is not enough.
    write_base_config(base, replace(config, dataset_origin="Dataset778_Third"))
    with pytest.raises(NotPossible, match="another data set"):
        look(origins.check_base, data, base=base)
    (base / "base_config.json").unlink()
    (base / ".training").mkdir()
    with pytest.raises(NotPossible, match="what an interrupted init-base left"):
        look(origins.check_base, data, base=base)
    (base / ".training").rmdir()
    (base / "base_config.json").write_text("{")
    with pytest.raises(UserError, match=r"base_config.json: malformed"):
        look(origins.check_base, data, base=base)
    (base / "base_config.json").unlink()
    with pytest.raises(NotPossible, match="is no complete base: it has no unet/"):
        look(origins.check_base, data, base=tmp_path)
    (base / "scheduler" / "scheduler_config.json").write_text("{}")
    assert "another base than the run's" in look(origins.check_base, data, base=base)[0]
    change_json(data / "synthesis.json", lambda record: record["run"]["base"].update(source="no/where"))
    with pytest.raises(NotPossible, match="give --base"):
        look(origins.check_base, data)
    change_json(data / "synthesis.json", lambda record: record["options"].update(model="0"))
    with pytest.raises(NotPossible, match="give --trained-run"):
        look(origins.check_run, data)


def test_near_copies(data, source, split):
    """A noisy validation image is a copy in thumbnails, not in pixels; a training image explains itself."""
    path = source.case(split["val"][0]).images[0]
    pixels = np.asarray(Image.open(path)).astype(float)
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy[:, ::-1].copy()).save(data / "imagesTr" / "law_000000_0000.png")
    shutil.copy(source.case(split["train"][0]).images[0], data / "imagesTr" / "law_000001_0000.png")
    verb = Audit(str(data), device="cpu", max_similarity=0.98)
    likeness = copies.Likeness(read_audited_data(verb), verb)
    assert likeness.check_pixels()[0] == []
    (finding,) = likeness.check_thumbnails()[0]
    assert finding.where == "law_000000" and split["val"][0] in finding.what
    loose = copies.Likeness(likeness.audited, Audit(str(data), device="cpu", max_similarity=0.5))
    loose.__dict__ |= {name: value for name, value in likeness.__dict__.items() if name.startswith("_")}
    where = {finding.where for finding in loose.check_thumbnails()[0]}
    assert "law_000001" not in where and "more like a training image" in loose.check_thumbnails()[1]


def test_features_of_unchanged_real_images_are_kept(data, source, split, tmp_path):
    """Another audit computes those of synthetic images only, and those of real ones that were changed."""
    real = Path(shutil.copytree(source.folder, tmp_path / "real" / NAME))
    computed = []

    def check() -> tuple[int, str]:
        """Images that went through the network, and what is printed."""
        verb = Audit(str(data), device="cpu", real=str(real))
        likeness = copies.Likeness(read_audited_data(verb), verb)
        extractor = likeness._extractor
        counting = replace(
            extractor, compute=lambda images: computed.extend(images) or extractor.compute(images)
        )
        likeness.__dict__["_extractor"] = counting
        computed.clear()
        findings, looked_at = likeness.check_features()
        assert findings == []
        return len(computed), looked_at

    real_images = len(source.training_cases) + len(source.test_cases)
    first, second = check(), check()
    assert (first[0], second[0]) == (4 + 4 * real_images, 4) and first[1] == second[1]
    (changed,) = read_dataset(real).case(split["val"][0]).images
    Image.open(changed).transpose(Image.Transpose.ROTATE_180).save(changed)
    assert check()[0] == 4 + 4 * (real_images - len(split["train"]))


def test_masks_that_a_training_case_has_as_well(data, source, split, tmp_path):
    copied = source.case(split["val"][0]).label
    Image.open(copied).transpose(Image.Transpose.ROTATE_180).save(data / "labelsTr" / "law_000003.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(data / "labelsTr" / "law_000002.png")
    (finding,) = look(copies.check_masks, data)
    assert f"law_000003: its label is the mask of {split['val'][0]}" in finding
    real = Path(shutil.copytree(source.folder, tmp_path / "real" / NAME))
    Image.open(copied).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        real / "labelsTr" / f"{split['train'][0]}.png"
    )
    assert look(copies.check_masks, data, real=str(real)) == []


def test_bad_input_is_one_line(data, source, tmp_path, caplog):
    caplog.set_level("INFO")
    mine = tmp_path / "mine.json"
    mine.write_text("[]")
    for options, line in (
        (
            {"dataset": str(source.folder)},
            "synthesis.json: not found, .* a data set that law-synth generate has finished",
        ),
        ({"dataset": str(tmp_path / "none")}, "found none for data set"),
        ({"max_similarity": 2.0}, "found --max-similarity 2.0"),
        ({"out": data / "audit.json"}, "found a file in the data set"),
        ({"out": mine}, "found another file, expected none or one of law-synth audit"),
        ({"real": str(tmp_path / "gone")}, "found none for data set"),
        ({"device": "abacus"}, "found --device abacus"),
    ):
        with pytest.raises(UserError, match=line) as error:
            run_audit(Audit(**{"dataset": str(data), "device": "cpu", **options}))
        assert "\n" not in f"{error.value}"
    run_audit(Audit(str(data), dry_run=True))
    assert f"4 samples of {data}, made from {source.folder}" in caplog.text
    with (data / "synthesis.jsonl").open("a") as stream:
        stream.write("half a li")
    with pytest.raises(UserError, match=r"synthesis\.jsonl, line 5: malformed"):
        run_audit(Audit(str(data)))


def test_audited_data_know_their_parts(generated, split, source):
    audited = read_audited_data(Audit(str(generated)))
    assert set(audited.split[0]) == set(split["train"]) == audited.recorded
    assert set(audited.held_out) == {*split["val"], *(case.id for case in source.test_cases)}
    assert audited.real_ids == {*split["train"], *split["val"]} and len(audited.kept) == 4
