"""`law-synth generate` end to end: real folders, kills, shards, leaks."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_records import small_run, small_synthesis

from dataset_conversion.raw.dataset import find_dataset, read_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.raw.writer import RawDatasetWriter
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json
from law_synth.base.model import load_base
from law_synth.base.student import load_student
from law_synth.generation.generate import generate as run_generate
from law_synth.generation.options import Generate
from law_synth.generation.quality import QualityFilter, training_thumbnails
from law_synth.generation.resuming import no_ruins, open_generation
from law_synth.generation.sampling import ImageSampler, Sampling
from law_synth.leaks import refuse_leaks
from law_synth.records.run import (
    configurations_hash,
    newest_run,
    read_run,
    weights_hash,
)
from law_synth.records.synthetic import SourceDataset, read_synthesis
from law_synth.view.mask_sources import case_masks, mask_hash
from law_synth.view.resize import resize_mask
from law_synth.view.slices import view_of

PIPELINE = "diffusers.pipelines.controlnet.pipeline_controlnet"
SAMPLES, CHUNK = 14, 4  # four chunks, the last of two samples


@pytest.fixture(autouse=True)
def environment(trained_run, monkeypatch, tmp_path):
    """nnU-Net's variables: the run and its data where they are; preprocessed data of each test's own."""
    root = trained_run.parents[3]
    monkeypatch.setenv("nnUNet_raw", str(root / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_results", str(root / "nnUNet_results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def generate(out: Path, **options) -> Path:
    run_generate(Generate(out=out, **{"samples": SAMPLES, "chunk_size": CHUNK, "steps": 2, **options}))
    return out


def hashes(out: Path) -> dict[str, str]:
    """Every file of the data set, but not the record of chunks."""
    files = [p for p in out.rglob("*") if p.is_file() and ".generation" not in p.parts]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "synthesis.jsonl").read_text().splitlines()]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def dataset_of(run: Path):
    return read_dataset(read_run(run).dataset_folder)


def variant(run: Path, folder: Path, **config) -> Path:
    """A copy of a run folder with other entries in law_config.json."""
    shutil.copytree(run, folder)
    path = folder / "law_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.fixture(scope="module")
def generated(trained_run, tmp_path_factory) -> Path:
    """The data set of one uninterrupted process."""
    out = tmp_path_factory.mktemp("one_process") / "Dataset951"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(trained_run.parents[3] / "nnUNet_results"))
        patch.delenv("nnUNet_preprocessed", raising=False)
        return generate(out)


def test_result_is_what_nnunet_expects(generated, trained_run):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(generated), 1)
    dataset = find_dataset(generated)
    assert len(dataset.training_cases) == SAMPLES
    source = dataset_of(trained_run).json
    kept = ("channel_names", "labels", "file_ending", "max_side")
    assert all(dataset.json[key] == source[key] for key in kept)
    assert not [path for path in generated.rglob("*.partial")]


def test_manifest_and_labels(generated, trained_run):
    """The label is the source mask at model size, pixel for pixel; sources follow each other round."""
    run = read_run(trained_run)
    sources = case_masks(run.view(dataset_of(trained_run)), run.slices)
    for index, row in enumerate(rows(generated)):
        source = sources[index % len(sources)]
        assert (row["case"], row["index"], row["chunk"]) == (f"law_{index:06d}", index, index // CHUNK)
        assert row["kept"] and row["reason"] is None and row["source_case"] == source.name
        assert row["source_slice"] is None
        mask = resize_mask(source.read(), 64)
        np.testing.assert_array_equal(pixels(generated / "labelsTr" / f"{row['case']}.png"), mask)
        assert row["mask_sha256"] == mask_hash(mask) and row["model_hash"] == run.hash
        assert (row["sampler"], row["steps"], row["guidance_scale"], row["prompt"]) == (
            *("unipc", 2, 2.0),
            "a polyp",
        )
        assert row["scores"]["nearest_case"] in run.train_cases
    images = [pixels(path) for path in sorted((generated / "imagesTr").iterdir())]
    assert len({image.tobytes() for image in images}) == SAMPLES  # second rounds have new noise
    record = read_synthesis(generated)
    assert record.run == run.config and record.source_dataset.name == "Dataset950_Phantom"


def test_image_depends_on_its_mask(generated, tmp_path):
    """Same noise, mirrored masks: other images where the mask differs, the same bytes where it does not."""
    mirrored = generate(tmp_path / "Dataset951", mask_augment="flip")
    same = []
    for before, after in zip(rows(generated), rows(mirrored), strict=True):
        assert before["seed"] == after["seed"]
        one, other = (
            pixels(out / "imagesTr" / f"{before['case']}_0000.png") for out in (generated, mirrored)
        )
        same.append(before["mask_sha256"] == after["mask_sha256"])
        assert np.array_equal(one, other) == same[-1]
    assert 0 < sum(same) < SAMPLES


@pytest.mark.parametrize("order", [(0, 1), (2, 0, 1)])
def test_shards_write_the_same_bytes(generated, tmp_path, order):
    out = tmp_path / "Dataset951"
    for part in order:
        assert not (out / "dataset.json").exists()
        generate(out, shard=f"{part}/{len(order)}")
    assert hashes(out) == hashes(generated)


def test_torchrun_writes_the_same_bytes(generated, tmp_path):
    out, script = tmp_path / "Dataset951", tmp_path / "script.py"
    script.write_text(
        "import logging\nfrom pathlib import Path\n"
        "from law_synth.generation.generate import generate\n"
        "from law_synth.generation.options import Generate\n"
        "logging.basicConfig(level=logging.INFO)\n"
        f"generate(Generate(out=Path({str(out)!r}), samples={SAMPLES}, chunk_size={CHUNK}, steps=2))\n"
    )
    options = ("--standalone", "--nproc_per_node", "2")
    threads = str(torch.get_num_threads())  # torchrun's default is one
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.stdout.count("2 of this process's 2 chunks are to be generated") == 2
    assert hashes(out) == hashes(generated)


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(generated, tmp_path):
    """kill -9, and another process goes on; they are forked from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["law_synth.generation.generate", PIPELINE, "nnunetv2.imageio.base_reader_writer"]
    )
    out = tmp_path / "Dataset951"
    verb = Generate(out=out, samples=SAMPLES, chunk_size=CHUNK, steps=2)
    for files, delay in ((0, 0.1), (1, 0), (5, 0.01), (8, 0.02), (12, 0.05)):  # images, seconds after that
        process = context.Process(target=run_generate, args=(verb,))
        process.start()
        while process.is_alive() and len(list(out.glob("imagesTr/law*"))) < files:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        assert not (out / "dataset.json").exists() or hashes(out) == hashes(generated)
    generate(out)
    assert hashes(out) == hashes(generated)


def test_complete_data_set_is_left_alone_and_damage_is_mended(generated, tmp_path, caplog):
    out = tmp_path / "Dataset951"
    shutil.copytree(generated, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    generate(out)
    assert {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()
    }.items() <= before.items()
    (out / "imagesTr" / "law_000005_0000.png").unlink()
    (out / "labelsTr" / "law_000009.png").write_bytes(b"half")
    generate(out)
    assert hashes(out) == hashes(generated)


def test_several_may_complete_at_the_same_time(generated, tmp_path):
    out = tmp_path / "Dataset951"
    shutil.copytree(generated, out)
    for name in ("dataset.json", "synthesis.jsonl"):
        (out / name).unlink()
    failed = []

    def finish():
        try:
            generate(out)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=finish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and hashes(out) == hashes(generated)


def test_several_may_start_at_the_same_time(tmp_path):
    out, failed = tmp_path / "Dataset951", []
    record = small_synthesis(small_run(), SourceDataset(name="Dataset001_Real", folder="nowhere"))

    def start():
        try:
            open_generation(out, record)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and sorted(p.name for p in tmp_path.iterdir()) == ["Dataset951"]
    assert read_synthesis(out) == record


def test_other_options_and_other_content_are_refused(generated, trained_run, tmp_path):
    before = hashes(generated)
    for options, line in (
        ({"seed": 1}, "with seed 0, expected 1 as now"),
        ({"steps": 3}, "with steps 2, expected 3 as now"),
        ({"chunk_size": 2}, "with chunk-size 4, expected 2"),
        ({"with_real": True}, "with with-real False, expected True"),
        ({"mask_augment": "affine"}, "with mask-augment none, expected affine"),
        ({"prompt": "x"}, "with prompt a polyp, expected x"),
    ):
        with pytest.raises(UserError, match=line):
            generate(generated, **options)
    other = variant(trained_run, tmp_path / "run", weights_hash="0")
    with pytest.raises(UserError, match=r"with model .* expected 0 as now"):
        generate(generated, trained_run=other)
    assert hashes(generated) == before
    (tmp_path / "Dataset952").mkdir()
    (tmp_path / "Dataset952" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="found existing content"):
        generate(tmp_path / "Dataset952")
    with pytest.raises(UserError, match="expected a name like"):
        generate(tmp_path / "polyps")
    with pytest.raises(UserError, match="found another data set of number 950"):
        generate(tmp_path / "Dataset950")


def test_run_whose_weights_are_not_those_recorded(trained_run, tmp_path):
    with pytest.raises(UserError, match="found other weights, or another config"):
        generate(
            tmp_path / "Dataset951", trained_run=variant(trained_run, tmp_path / "run", weights_hash="0")
        )


@pytest.mark.parametrize("part", ["controlnet", "unet"])
def test_pickled_weights_of_a_run_are_refused(trained_run, tmp_path, part):
    """They would be loaded, and they are in no hash."""
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    weights = run / part / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    config = json.loads((run / "law_config.json").read_text()) | {"weights_hash": weights_hash(run)}
    (run / "law_config.json").write_text(json.dumps(config))
    line = f"run: found diffusion_pytorch_model.bin in {part}/, expected a .safetensors file"
    with pytest.raises(UserError, match=line) as error:
        generate(tmp_path / "Dataset951", trained_run=run)
    assert "\n" not in str(error.value) and not (tmp_path / "Dataset951").exists()


def test_a_configuration_that_is_not_the_runs_is_refused(trained_run, tmp_path):
    """The same weights in another network: eight heads of attention instead of four."""
    run = variant(trained_run, tmp_path / "run", configurations_hash=configurations_hash(trained_run))
    generate(tmp_path / "Dataset951", trained_run=run, samples=1)
    path = run / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 8}))
    with pytest.raises(UserError, match=r"or another config\.json beside them"):
        generate(tmp_path / "Dataset952", trained_run=run, samples=1)
    assert not (tmp_path / "Dataset952").exists()


@pytest.mark.parametrize("content", ["", "null", "[]", '{"format": 2'])
def test_damaged_records_of_a_run_are_one_line(generated, trained_run, tmp_path, content):
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "law_config.json").write_text(content)
    with pytest.raises(UserError, match=r"law_config\.json: (malformed|found)") as error:
        generate(tmp_path / "Dataset951", trained_run=run)
    assert "\n" not in str(error.value) and not (tmp_path / "Dataset951").exists()
    begun = Path(shutil.copytree(generated, tmp_path / generated.name))
    (begun / "synthesis.json").write_text(content)
    with pytest.raises(UserError, match=r"synthesis\.json: (malformed|found)"):
        generate(begun)


def test_a_damaged_record_of_a_chunk_is_made_again(generated, tmp_path):
    out = Path(shutil.copytree(generated, tmp_path / generated.name))
    for chunk, content in enumerate(("", "null", "{}", "[1]")):
        (out / ".generation" / f"chunk_{chunk:06d}.json").write_text(content)
    generate(out)
    assert hashes(out) == hashes(generated)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run, root: (root / "base" / "unet" / "config.json").write_text("{"),
        lambda run, root: shutil.rmtree(root / "base"),
        lambda run, root: (run / "controlnet" / "diffusion_pytorch_model.safetensors").write_bytes(b""),
        lambda run, root: [path.write_bytes(b"x") for path in (root / "data").glob("*/imagesTr/*")],
    ],
)
def test_what_is_refused_leaves_no_folder(trained_run, tmp_path, damage):
    source = read_run(trained_run)
    shutil.copytree(source.config.base.source, tmp_path / "base")
    shutil.copytree(source.dataset_folder, tmp_path / "data" / "Dataset950_Phantom")
    base = {"source": str(tmp_path / "base"), "hash": source.config.base.hash}
    dataset = {"name": source.dataset_name, "folder": str(tmp_path / "data" / "Dataset950_Phantom")}
    run = variant(trained_run, tmp_path / "run", base=base, dataset=dataset)
    damage(run, tmp_path)
    with pytest.raises(UserError):
        generate(tmp_path / "new" / "Dataset951", trained_run=run)
    assert not (tmp_path / "new").exists()


def test_splits_in_the_way_are_found_before_the_work(trained_run, tmp_path):
    """Those of the same cases are no obstacle, whichever synthetic ones they name."""
    path = tmp_path / "nnUNet_preprocessed" / "Dataset951" / "splits_final.json"
    path.parent.mkdir(parents=True)
    split = read_splits(dataset_of(trained_run))[0]
    path.write_text(json.dumps([{"train": split["train"], "val": split["train"][:1]}]))
    out = tmp_path / "nnUNet_raw" / "Dataset951"
    for options in ({}, {"dry_run": True}):
        with pytest.raises(UserError, match=r"splits_final\.json: found other splits than fold 0"):
            generate(out, with_real=True, **options)
    assert not out.parent.exists()
    path.write_text(json.dumps([{"train": ["law_000000", *split["train"]], "val": split["val"]}]))
    generate(out, with_real=True, samples=1)
    assert json.loads(path.read_text())[0]["train"] == ["law_000000", *split["train"]]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"samples": 0}, "--samples 0, expected 1 to 1000000"),
        ({"samples": -3}, "--samples -3, expected 1 to 1000000"),
        ({"samples": 10**12}, "--samples 1000000000000, expected 1 to 1000000"),
        ({"chunk_size": 10**9}, "--chunk-size 1000000000, expected 1 to 10000"),
        ({"steps": 0}, "--steps 0, expected"),
        ({"guidance_scale": 0.5}, "--guidance-scale 0.5, expected 1"),
        ({"shard": "2/2"}, "--shard 2/2, expected i/n"),
        ({"shard": "one"}, "--shard one, expected i/n"),
        ({"min_agreement": 0.5}, "--min-agreement without --segmenter"),
        ({"max_similarity": 1.5}, "--max-similarity 1.5"),
        ({"device": "abacus"}, "found --device abacus"),
        ({"slices_per_mask": 3}, "found --slices-per-mask without --masks"),
    ],
)
def test_senseless_options(tmp_path, options, line):
    with pytest.raises(UserError, match=line):
        generate(tmp_path / "Dataset951", **options)
    assert not list(tmp_path.glob("*Dataset*"))


def test_dry_run_says_and_writes_nothing(trained_run, tmp_path, caplog):
    caplog.set_level("INFO")
    run_generate(Generate(out=tmp_path / "Dataset951", dry_run=True, preset="paper"))
    assert f"model: {trained_run}" in caplog.text  # the newest
    assert (
        "9 images of 9 masks of Dataset950_Phantom, 2 chunks; ddim, 50 steps, guidance 2, fp32" in caplog.text
    )
    assert not list(tmp_path.glob("*Dataset*"))


@pytest.mark.parametrize(("sampler", "dtype"), [("ddim", "fp32"), ("dpm++", "fp32"), ("unipc", "bf16")])
def test_other_samplers_and_types(tmp_path, sampler, dtype):
    options = {"samples": 2, "sampler": sampler, "dtype": dtype, "steps": 3, "guidance_scale": 1.5}
    out = generate(tmp_path / "Dataset951", **options)
    assert {row["sampler"] for row in rows(out)} == {sampler} and len(rows(out)) == 2


def test_real_cases_validate_and_synthetic_ones_train(trained_run, tmp_path, caplog):
    caplog.set_level("INFO")
    out = generate(tmp_path / "Dataset951", samples=3, with_real=True)
    source, dataset = dataset_of(trained_run), read_dataset(out)
    fold = read_splits(source)[0]
    made = [f"law_{i:06d}" for i in range(3)]
    assert [case.id for case in dataset.training_cases] == sorted(fold["train"] + fold["val"] + made)
    for path in (out, tmp_path / "nnUNet_preprocessed" / "Dataset951"):
        (split,) = json.loads((path / "splits_final.json").read_text())
        assert set(split["train"]) == {*fold["train"], *made} and set(split["val"]) == set(fold["val"])
    for case in source.training_cases:
        assert (out / "imagesTr" / f"{case.id}_0000.png").samefile(case.images[0])
        assert (out / "labelsTr" / f"{case.id}.png").read_bytes() == case.label.read_bytes()
    assert [dataset.groups[row["case"]] for row in rows(out)] == [row["source_case"] for row in rows(out)]
    assert "fold 0 is fold 0 of Dataset950_Phantom" in caplog.text
    assert "nnUNetv2_train 951 2d 0" in caplog.text
    generate(out, samples=3, with_real=True)
    others = json.dumps([{"train": ["other"], "val": []}])
    (tmp_path / "nnUNet_preprocessed" / "Dataset951" / "splits_final.json").write_text(others)
    with pytest.raises(UserError, match="found other splits"):
        generate(out, samples=3, with_real=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_one_line_and_the_same_command_goes_on(generated, tmp_path, monkeypatch):
    out, number = tmp_path / "Dataset951", uuid.uuid4()
    shutil.copytree(generated, out)
    image = out / "imagesTr" / "law_000005_0000.png"
    image.unlink()
    image.with_name(f".{image.name}.{number.hex}.partial").symlink_to("/dev/full")
    with monkeypatch.context() as patch:  # so that the name of the partial file is known
        patch.setattr(uuid, "uuid4", lambda: number)
        with pytest.raises(UserError, match=f"found no space left for {image}; .*same command again"):
            generate(out)
    generate(out)
    assert hashes(out) == hashes(generated)


def test_other_sizes_of_real_images_are_said(grey_run, trained_run, tmp_path, caplog):
    for options, said in (
        ({"trained_run": grey_run, "with_real": True, "original_size": False}, True),  # of 50 x 70 px
        ({"trained_run": grey_run, "with_real": True}, False),
        ({"trained_run": grey_run, "original_size": False}, False),
        ({"trained_run": trained_run, "with_real": True, "original_size": False}, False),
    ):
        caplog.clear()
        run_generate(Generate(out=tmp_path / "Dataset951", dry_run=True, **options))
        line = "synthetic images of 64 x 64 will lie beside real ones of 70 x 50 (median)"
        assert (line in caplog.text) == ("--original-size" in caplog.text) == said


def test_fold_all_has_no_splits(trained_run, tmp_path, caplog):
    caplog.set_level("INFO")
    everything = [case.id for case in dataset_of(trained_run).training_cases]
    run = variant(trained_run, tmp_path / "run", fold="all", train_cases=everything, monitor_cases=[])
    out = generate(tmp_path / "Dataset951", trained_run=run, samples=2, with_real=True)
    assert len(read_dataset(out).training_cases) == 14 and not (out / "splits_final.json").exists()
    assert "nnUNetv2_train 951 2d all" in caplog.text


@pytest.fixture
def grey_run(trained_run, tmp_path) -> Path:
    """A run on grey images of 50 x 70 px, whose cases have names like ours."""
    folder = tmp_path / "Dataset960_Grey"
    with RawDatasetWriter(folder, ("grey",), {"background": 0, "tumour": 1}) as writer:
        for i in range(6):
            image = np.random.default_rng(i).integers(0, 255, (50, 70), np.uint8)
            mask = np.zeros((50, 70), np.uint8)
            mask[10 + i : 25, 20:45] = 1
            writer.add_training_case(f"law_{i:06d}", image, mask)
    dataset = read_dataset(folder)
    train = read_splits(dataset)[0]["train"]
    config = {"dataset": {"name": folder.name, "folder": str(folder)}, "train_cases": train}
    config |= {"monitor_cases": [], "view": as_json(view_of(dataset, train).record)}
    return variant(trained_run, tmp_path / "run", **config)


def test_grey_data_at_original_size(grey_run, tmp_path):
    """As beside real ones. Label: the augmented mask at its own size. Case ids avoid the data set's."""
    out = generate(
        tmp_path / "Dataset951",
        trained_run=grey_run,
        samples=4,
        with_real=True,
        mask_augment="elastic",
    )
    dataset = read_dataset(out)
    made = [case for case in dataset.training_cases if case.id.startswith("law2_")]
    assert len(made) == 4 and len(dataset.training_cases) == 10
    source = {case.id: case for case in dataset_of(grey_run).training_cases}
    for case, row in zip(made, rows(out), strict=True):
        image, label = pixels(case.images[0]), pixels(case.label)
        assert image.shape == label.shape == (50, 70)
        original = pixels(source[row["source_case"]].label)
        assert not np.array_equal(label, original) and abs(int(label.sum()) - int(original.sum())) < 40
        assert row["mask_sha256"] == mask_hash(resize_mask(label, 64))


def broken_base(trained_run: Path, folder: Path, change) -> Path:
    """A run whose base has another decoder."""
    run = read_run(trained_run)
    shutil.copytree(run.config.base.source, folder / "base")
    vae = load_base(run.config.base.source).vae
    with torch.no_grad():
        change(vae.decoder.conv_out)
    vae.save_pretrained(folder / "base" / "vae")
    base = load_base(str(folder / "base"))
    return variant(trained_run, folder / "run", base={"source": base.source, "hash": base.hash})


def test_a_refusal_leaves_no_folder(trained_run, tmp_path):
    """Neither of model and base, nor the folders above it."""
    out = tmp_path / "new" / "Dataset951"
    shutil.copytree(trained_run, tmp_path / "changed")
    config = tmp_path / "changed" / "law_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_hash": "0"}))
    with pytest.raises(UserError, match="found other weights"):
        generate(out, trained_run=tmp_path / "changed")
    other = variant(trained_run, tmp_path / "run", base={"source": str(tmp_path / "none"), "hash": "0"})
    with pytest.raises(UserError):
        generate(out, trained_run=other)
    assert not out.parent.exists()
    for options in ({"shard": "0/2"}, {}):  # of several processes, others may be at work there
        with pytest.raises(UserError, match=r"dropped all 4 \(4 near copy\)"):
            for shard in ("1/2", "0/2") if options else ("0/1",):
                generate(out, samples=4, chunk_size=2, max_similarity=-1, shard=shard)
        assert out.exists() == bool(options)
        shutil.rmtree(out, ignore_errors=True)
    assert not (tmp_path / "new" / ".Dataset951.lock").exists()


def test_records_that_name_files_elsewhere_are_refused(generated, trained_run, tmp_path):
    """Of chunks, of the run, of the real data set's table, of synthesis.jsonl."""
    out = tmp_path / "Dataset951"
    shutil.copytree(generated, out)
    chunk = out / ".generation" / "chunk_000001.json"
    record = json.loads(chunk.read_text())
    chunk.write_text(json.dumps(record | {"files": {"../../x": "0"}}))
    with pytest.raises(UserError, match=r"chunk_000001\.json: found the path '\.\./\.\./x'"):
        generate(out)
    chunk.write_text(json.dumps(record | {"rows": [record["rows"][0] | {"case": "../x"}]}))
    with pytest.raises(UserError, match=r"chunk_000001\.json: found the case id '\.\./x'"):
        generate(out)
    cases = read_run(trained_run).config.train_cases
    with pytest.raises(UserError, match=r"law_config\.json: found the case id 'a/b'"):
        generate(out, trained_run=variant(trained_run, tmp_path / "run", train_cases=[*cases, "a/b"]))

    real, kept = tmp_path / "raw" / "Dataset950_Phantom", tmp_path / "mine" / "labelsTr" / "x.png"
    shutil.copytree(dataset_of(trained_run).folder, real)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"mine")
    description = json.loads((real / "dataset.json").read_text())
    table = {
        case.id: {"images": [str(case.images[0])], "label": str(case.label)}
        for case in dataset_of(trained_run).training_cases
    }
    first = read_run(trained_run).config.train_cases[0]
    table["../../mine/labelsTr/x"] = table.pop(first)
    (real / "dataset.json").write_text(json.dumps(description | {"dataset": table}))
    run = variant(trained_run, tmp_path / "run2", dataset={"name": real.name, "folder": str(real)})
    with pytest.raises(UserError, match=r"dataset\.json: found the case id '\.\./\.\./mine/labelsTr/x'"):
        generate(tmp_path / "Dataset952", trained_run=run, with_real=True)
    assert kept.read_bytes() == b"mine" and not (tmp_path / "Dataset952").exists()


def test_constant_images_are_dropped_and_counted(trained_run, tmp_path):
    run = broken_base(trained_run, tmp_path, lambda layer: layer.weight.zero_())
    out = tmp_path / "Dataset951"
    with pytest.raises(UserError, match=r"dropped all 3 \(3 constant\)"):
        generate(out, trained_run=run, samples=3)
    assert not (out / "dataset.json").exists() and not list(out.glob("imagesTr/*"))


def test_non_finite_images_stop_the_run(trained_run, tmp_path):
    run = broken_base(trained_run, tmp_path, lambda layer: layer.bias.fill_(float("nan")))
    with pytest.raises(UserError, match="non-finite images in chunk 0 with --dtype fp32"):
        generate(tmp_path / "Dataset951", trained_run=run, samples=3)
    assert not (tmp_path / "Dataset951").exists()  # so that --dtype bf16 can be tried there


def test_near_copies_are_found(trained_run):
    """Of images that the model has seen, mirrored or a little changed too; not of other images."""
    run, dataset = read_run(trained_run), dataset_of(trained_run)
    view = run.view(dataset)
    judge = QualityFilter(view, training_thumbnails(view, run.slices), Generate.max_similarity)
    images = {case.id: pixels(case.images[0]) for case in dataset.training_cases}
    mask = np.zeros((64, 64), np.uint8)
    for case_id, image in images.items():
        noisy = np.clip(image + np.random.default_rng(0).normal(0, 5, image.shape), 0, 255).astype(np.uint8)
        for copy in (image, np.ascontiguousarray(image[:, ::-1]), noisy):
            reason, scores = judge(copy, mask)
            if case_id in run.train_cases:
                assert reason == "near copy" and scores["nearest_case"] == case_id
            else:
                assert reason is None and scores["similarity"] < 0.95


def test_dropped_images_are_recorded_and_not_written(generated, tmp_path):
    threshold = float(np.median([row["scores"]["similarity"] for row in rows(generated)]))
    out = generate(tmp_path / "Dataset951", max_similarity=threshold)
    kept = [row["case"] for row in rows(out) if row["kept"]]
    assert len(rows(out)) == SAMPLES and len(kept) == SAMPLES // 2
    assert {row["reason"] for row in rows(out) if not row["kept"]} == {"near copy"}
    assert [case.id for case in read_dataset(out).training_cases] == kept
    files = hashes(generated)
    assert {name: digest for name, digest in hashes(out).items() if "Tr/" in name}.items() <= files.items()


def write_judge(folder: Path, folds: tuple[int | str, ...]) -> Path:
    """An nnU-Net model folder of random weights for Dataset950_Phantom."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    convolution, norm = "torch.nn.modules.conv.Conv2d", "torch.nn.modules.instancenorm.InstanceNorm2d"
    arguments = {"n_stages": 2, "features_per_stage": [8, 16], "conv_op": convolution, "norm_op": norm}
    arguments |= {"kernel_sizes": [[3, 3]] * 2, "strides": [[1, 1], [2, 2]], "n_conv_per_stage": [1, 1]}
    arguments |= {"n_conv_per_stage_decoder": [1], "conv_bias": True, "norm_op_kwargs": {"affine": True}}
    arguments |= {"dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU"}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {**arguments, "nonlin_kwargs": {"inplace": True}},
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    settings = {"data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2}
    settings |= {"patch_size": [64, 64], "spacing": [1.0, 1.0], "architecture": architecture}
    settings |= {"normalization_schemes": ["ZScoreNormalization"] * 3, "use_mask_for_norm": [False] * 3}
    for name in ("data", "seg", "probabilities"):
        settings[f"resampling_fn_{name}"] = "resample_data_or_seg_to_shape"
        settings[f"resampling_fn_{name}_kwargs"] = resampling
    plans = {"dataset_name": "Dataset950_Phantom", "plans_name": "nnUNetPlans"}
    plans |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    plans |= {"image_reader_writer": "NaturalImage2DIO", "label_manager": "LabelManager"}
    plans |= {"configurations": {"2d": settings}}
    plans["foreground_intensity_properties_per_channel"] = {str(channel): {} for channel in range(3)}
    dataset_json = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    dataset_json |= {"labels": {"background": 0, "polyp": 1}, "numTraining": 12}
    folder.mkdir()
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for fold in folds:
        torch.manual_seed(0 if fold == "all" else fold)
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            *(3, 2),
            deep_supervision=False,
        )
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            {
                "network_weights": network.state_dict(),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": "2d"},
                "inference_allowed_mirroring_axes": None,
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder


def test_judge_drops_what_it_cannot_find(generated, tmp_path):
    judge = write_judge(tmp_path / "nnUNetTrainer__nnUNetPlans__2d", (0, 1))
    scored = generate(tmp_path / "a" / "Dataset951", segmenter=judge)
    agreements = [row["scores"]["agreement"] for row in rows(scored)]
    assert all(0 <= value <= 1 for value in agreements) and len(set(agreements)) > SAMPLES / 2
    assert {n: h for n, h in hashes(scored).items() if "Tr/" in n} == {
        n: h for n, h in hashes(generated).items() if "Tr/" in n
    }
    limit = float(np.median(agreements))
    strict = generate(tmp_path / "b" / "Dataset951", segmenter=judge, min_agreement=limit)
    for row, agreement in zip(rows(strict), agreements, strict=True):
        assert row["scores"]["agreement"] == agreement
        assert (row["reason"] == "agreement") == (agreement < limit) != row["kept"]
    with pytest.raises(UserError, match="with segmenter None, expected"):
        generate(generated, segmenter=judge)
    (judge / "plans.json").unlink()
    with pytest.raises(UserError, match=r"plans\.json: not found"):
        generate(tmp_path / "c" / "Dataset951", segmenter=judge)


def test_judge_that_saw_validation_cases_is_refused(trained_run, tmp_path, caplog):
    judge = write_judge(tmp_path / "nnUNetTrainer__nnUNetPlans__2d", (1, 2))
    with pytest.raises(
        UserError, match=r"found a judge trained on phantom_.*validation or test case of fold 0"
    ):
        generate(tmp_path / "Dataset951", segmenter=judge)
    plans = judge / "plans.json"
    plans.write_text(plans.read_text().replace("Dataset950_Phantom", "Dataset777_Other"))
    run_generate(Generate(out=tmp_path / "Dataset951", segmenter=judge, dry_run=True))
    assert "make sure that it saw no validation or test case of fold 0" in caplog.text
    grey = json.loads((judge / "dataset.json").read_text()) | {"channel_names": {"0": "grey"}}
    several = json.loads((judge / "dataset.json").read_text())
    several["labels"] |= {"tool": 2}
    (judge / "dataset.json").write_text(json.dumps(several))
    with pytest.raises(UserError, match=r"found a model of the labels .*'tool': 2"):
        generate(tmp_path / "Dataset951", segmenter=judge)
    (judge / "dataset.json").write_text(json.dumps(grey))
    with pytest.raises(UserError, match=r"found a model of 1 channel\(s\), expected 3"):
        generate(tmp_path / "Dataset951", segmenter=judge)


def test_changed_splits_are_refused(trained_run, tmp_path):
    splits = read_splits(dataset_of(trained_run))
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset950_Phantom"
    folder.mkdir(parents=True)
    (folder / "splits_final.json").write_text(json.dumps(splits[1:]))
    with pytest.raises(UserError, match=r"found 9 training cases of fold 0, expected the 9 .*as it is now"):
        generate(tmp_path / "Dataset951")
    (folder / "splits_final.json").write_text(json.dumps(splits))
    refuse_leaks(newest_run(), dataset_of(trained_run))


def test_masks_of_validation_and_test_cases_are_refused(trained_run, tmp_path, caplog):
    caplog.set_level("INFO")
    run, dataset = read_run(trained_run), dataset_of(trained_run)
    held_back = [case for case in dataset.training_cases if case.id not in run.train_cases]
    seen = next(case for case in dataset.training_cases if case.id in run.train_cases)
    folder = tmp_path / "masks"
    for case in (held_back[0], dataset.test_cases[0]):
        for name, line in ((case.id, f"found the mask {case.id}.png of a case"), ("new", "equal to that of")):
            folder.mkdir()
            Image.fromarray(pixels(case.label) * 255).save(folder / f"{name}.png")
            with pytest.raises(UserError, match=f"{line}.* it would leak"):
                generate(tmp_path / "Dataset951", masks=folder)
            shutil.rmtree(folder)
    folder.mkdir()
    Image.fromarray(pixels(held_back[0].label)[:, ::-1].copy()).save(folder / f"{held_back[1].id}.png")
    with pytest.raises(UserError, match=r"of a case outside the training cases .* \(1 such\)"):
        generate(tmp_path / "Dataset951", masks=folder)
    with pytest.raises(UserError, match="found 1 masks, all of validation or test cases"):
        generate(tmp_path / "Dataset951", masks=folder, drop_held_out_masks=True)
    shutil.copy(seen.label, folder)
    run_generate(Generate(out=tmp_path / "Dataset951", masks=folder, drop_held_out_masks=True, dry_run=True))
    assert "left out 1 of 2 masks" in caplog.text and "are named after no case" not in caplog.text
    (folder / f"{held_back[1].id}.png").unlink()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "empty.png")
    out = generate(tmp_path / "Dataset951", masks=folder, samples=2)
    assert "1 of 2 masks are named after no case or group of Dataset950_Phantom" in caplog.text
    assert [row["source_case"] for row in rows(out)] == [None, seen.id]
    assert [row["source_mask"] for row in rows(out)] == ["empty.png", seen.id]  # a copy of its own mask
    Image.fromarray(np.ones((64, 64), np.uint8)).save(folder / "empty.png")
    with pytest.raises(UserError, match="found a generation with masks"):
        generate(out, masks=folder, samples=2)


def test_batch_members_do_not_matter(trained_run):
    """Pixels depend on a sample's mask and seed, not on its companions: what padding relies on."""
    run = read_run(trained_run)
    base = load_base(run.config.base.source)
    sampler = ImageSampler(
        base,
        *load_student(run, base, torch.float32),
        Sampling("unipc", 2, 2.0, "a polyp", "fp32", False),
        torch.device("cpu"),
        1,
    )
    masks = (np.random.default_rng(0).random((4, 64, 64)) > 0.5).astype(np.uint8)
    batch = sampler(masks, [1, 2, 3, 4])
    np.testing.assert_array_equal(sampler(masks[[3, 3, 1, 1]], [4, 4, 2, 2])[[0, 2]], batch[[3, 1]])


def test_files_of_no_chunk_are_removed_at_the_end(generated, tmp_path):
    """What a kill left of a sample that was dropped when its chunk was made again."""
    out = Path(shutil.copytree(generated, tmp_path / generated.name))
    (out / "dataset.json").unlink()
    for part, name in (("imagesTr", "law_000099_0000.png"), ("labelsTr", "law_000099.png")):
        shutil.copy(next((out / part).glob("law_*.png")), out / part / name)
    generate(out)
    assert hashes(out) == hashes(generated) and len(read_dataset(out).training_cases) == SAMPLES


def test_grey_is_judged_as_it_is_written(grey_run):
    """Without the colours that the model gave it, which no file keeps."""
    from types import SimpleNamespace

    from law_synth.generation.chunks import _as_stored

    run = read_run(grey_run)
    plan = SimpleNamespace(view=run.view(dataset_of(grey_run)), original_size=False)
    image = np.random.default_rng(0).uniform(50, 200, (32, 32, 3))
    stored, *_ = _as_stored(plan, image, np.zeros((32, 32)), None, np.zeros((32, 32)))
    (written,) = plan.view.window.from_rgb(stored)
    assert np.array_equal(plan.view.window.to_rgb(written[None]), np.rint(stored))
    assert np.array_equal(stored, np.rint(image.mean(-1, keepdims=True)).repeat(3, -1))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 1000}, "found --steps 1000, expected 1 to 999"),
        ({"guidance_scale": math.nan}, "scale nan"),
    ],
)
def test_numbers_that_no_sampler_takes(tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        Generate(out=tmp_path / "Dataset951", **option).check()


def test_a_judge_of_fold_all_saw_every_case(trained_run, tmp_path, monkeypatch):
    """Also those that the first fold leaves out."""
    from law_synth.judging.segmenter import Segmenter

    judge = write_judge(tmp_path / "nnUNetTrainer__nnUNetPlans__2d", ("all",))
    dataset = dataset_of(trained_run)
    ids = [case.id for case in dataset.training_cases]
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_raw", str(dataset.folder.parent))
    folds = tmp_path / "Dataset950_Phantom" / "splits_final.json"
    folds.parent.mkdir()
    folds.write_text(json.dumps([{"train": ids[:2], "val": ids[2:4]}, {"train": ids[:2], "val": ids[4:6]}]))
    assert Segmenter(judge).train_cases == sorted(ids)
    folds.write_text('{"train": []}')
    with pytest.raises(UserError, match="found object, expected array"):
        _ = Segmenter(judge).train_cases


@pytest.mark.parametrize(
    ("record", "stays"),
    [
        ('{"chunk": 0, "files": {}, "rows": []}', False),
        ('{"chunk": 0, "files": {"imagesTr/a.png": "0"}, "rows": []}', True),
        ("{", True),
    ],
)
def test_only_a_generation_without_images_is_removed(tmp_path, record, stays):
    """What a chunk holds whose record is damaged nobody knows: it stays."""
    out = tmp_path / "Dataset951"
    (out / ".generation").mkdir(parents=True)
    (out / ".generation" / "chunk_000000.json").write_text(record)
    with pytest.raises(UserError, match="refused"), no_ruins(out, is_alone=True):
        raise UserError("refused")
    assert out.exists() == stays
