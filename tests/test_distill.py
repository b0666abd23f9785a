"""`nnunet-order distill`: from a teacher and images without outlines to a trained student."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.system.errors import UserError
from nnunet_order.distilling.distill import distill
from nnunet_order.distilling.options import Distill
from nnunet_order.fold_ensemble import FoldEnsemble
from nnunet_order.soft_labels.files import read_soft_label, soft_label_path
from nnunet_order.soft_labels.record import read_distillation
from nnunet_order.trainers import nnUNetTrainerLite40K

STUDENT = "NNUNET_ORDER_OPTIONS"
SHORT = "epochs=2 minimum_iterations=2 samples_per_step=4 checkpoint_every=1"


@pytest.fixture
def teacher(make, nnunet, tmp_path, monkeypatch):
    """teacher(data set, folds): a model folder of Lite40K with random weights."""

    def of(dataset=901, folds=(0,)):
        for fold in folds:
            torch.manual_seed(7)
            trainer = make(nnUNetTrainerLite40K, dataset, fold)
            trainer.initialize()
            (tmp_path / f"fold_{fold}").mkdir()
            torch.nn.init.normal_(trainer.network.decoder.seg_layers[0].weight, std=2.0)
            trainer.save_checkpoint(str(tmp_path / f"fold_{fold}" / "checkpoint_final.pth"))
        folder = tmp_path / "nnUNetTrainerLite40K__nnUNetPlans__2d"
        folder.mkdir()
        for fold in folds:
            (tmp_path / f"fold_{fold}").rename(folder / f"fold_{fold}")
        (folder / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
        (folder / "dataset.json").write_text(json.dumps(trainer.dataset_json))
        return folder

    return of


@pytest.fixture
def more_images(tmp_path):
    """A folder of six pictures without outlines, two of them JPEG, named after no case."""
    drawn = tmp_path / "Dataset999_More"
    convert_phantom(ConvertPhantom(out=drawn, cases=6, size=64, seed=5))
    folder = tmp_path / "more"
    folder.mkdir()
    for number, path in enumerate(sorted((drawn / "imagesTr").iterdir())):
        Image.open(path).save(folder / f"video_{number}.{'jpg' if number < 2 else 'png'}")
    return folder


@pytest.fixture
def out(nnunet):
    """A free place for a data set; it goes after the test, with what was planned and trained of it."""
    folder = nnunet.raw / "Dataset980_Student"
    yield folder
    for root in (nnunet.raw, nnunet.preprocessed, nnunet.results):
        shutil.rmtree(root / folder.name, ignore_errors=True)


def options(nnunet, out, teacher, *unlabelled, **more) -> Distill:
    dataset = f"{nnunet.raw / 'Dataset901_Phantom'}"
    return Distill(dataset, teacher, out, tuple(unlabelled), device="cpu", **more)


def test_a_student_data_set(nnunet, teacher, more_images, out):
    source, folder = read_dataset(nnunet.raw / "Dataset901_Phantom"), teacher()
    distill(options(nnunet, out, folder, more_images))
    student = read_dataset(out)
    split = read_splits(source)[0]
    new = [f"video_{number}" for number in range(6)]
    assert read_splits(student) == [{"train": sorted([*split["train"], *new]), "val": sorted(split["val"])}]
    assert [case.id for case in student.test_cases] == [case.id for case in source.test_cases]
    assert student.origin == source.name and student.json["soft_labels"] is True
    ensemble = FoldEnsemble(folder)
    for case in student.training_cases:
        image, properties = student.read_stored_image(case)
        label = student.read_label(case.label)
        if case.id in split["val"]:
            assert not soft_label_path(out, case.id).exists()
            assert np.array_equal(label, source.read_label(source.case(case.id).label))
            continue
        found, probabilities = ensemble.predict_probabilities(image, properties["spacing"])
        soft = read_soft_label(soft_label_path(out, case.id), 1, label.shape)
        assert np.abs(soft / 255 - probabilities).max() < 0.51 / 255
        if case.id in new:  # nobody has outlined it but the teacher
            assert np.array_equal(label, found)
        else:
            assert np.array_equal(label, source.read_label(source.case(case.id).label))
    record = read_distillation(out)
    assert record.teacher.sha256 == ensemble.hash and record.teacher.train_cases == sorted(split["train"])
    assert {name: one.file for name, one in record.unlabelled.items()} == {
        name: f"{name}.{'jpg' if number < 2 else 'png'}" for number, name in enumerate(new)
    }
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    distill(options(nnunet, out, folder, more_images))  # finished: nothing to do
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def leak(nnunet, more_images, kind: str) -> tuple[str, str]:
    """Put an image of a held-out case among the unlabelled ones; -> its id and a part of the message."""
    source = read_dataset(nnunet.raw / "Dataset901_Phantom")
    test, validation = source.test_cases[0], source.case(read_splits(source)[0]["val"][0])
    if kind == "name":
        shutil.copy(test.images[0], more_images / f"{test.id.upper()}.png")
        return test.id.upper(), f"named after {test.id}"
    if kind == "group":
        shutil.copy(source.training_cases[0].images[0], more_images / f"{test.id}_frame7.png")
        return f"{test.id}_frame7", f"of {test.id}"
    shutil.copy(validation.images[0], more_images / "copy.png")
    return "copy", f"the pixels of {validation.id}"


@pytest.mark.parametrize("kind", ["name", "group", "pixels"])
def test_held_out_images_are_refused_or_left_out(nnunet, teacher, more_images, out, kind):
    name, message = leak(nnunet, more_images, kind)
    folder = teacher()
    with pytest.raises(UserError, match=message):
        distill(options(nnunet, out, folder, more_images))
    assert not out.exists()
    distill(options(nnunet, out, folder, more_images, drop_held_out=True))
    assert name not in {case.id for case in read_dataset(out).training_cases}
    assert len(read_distillation(out).unlabelled) == 6


def test_groups_come_from_a_table(nnunet, teacher, more_images, out, tmp_path, caplog):
    test = read_dataset(nnunet.raw / "Dataset901_Phantom").test_cases[0].id
    table = tmp_path / "groups.csv"
    table.write_text(f"case,group\nvideo_0,{test}\nvideo_1,elsewhere\nvideo_2,elsewhere\n")
    given = options(nnunet, out, teacher(), more_images, unlabelled_groups=table)
    with pytest.raises(UserError, match=f"of {test}"):
        distill(given)
    table.write_text("case,group\nvideo_0,mine\nvideo_1,elsewhere\nvideo_2,elsewhere\n")
    distill(given)
    assert "3 of 6 unlabelled images are named after no case or group" in caplog.text
    groups = read_dataset(out).groups
    assert groups["video_1"] == groups["video_2"] == "elsewhere" and groups["video_5"] == "video_5"


def test_larger_images_are_shrunk(nnunet, teacher, more_images, out):
    for path in more_images.iterdir():
        Image.open(path).resize((128, 96)).save(path)
    distill(options(nnunet, out, teacher(), more_images, max_side=64))
    student = read_dataset(out)
    assert student.read_image(student.case("video_0")).shape == (3, 1, 48, 64)
    assert soft_label_path(out, "video_0").is_file()
    assert read_soft_label(soft_label_path(out, "video_0"), 1, (1, 48, 64)).any()


def test_one_id_twice_is_refused(nnunet, teacher, more_images, out, tmp_path):
    """Also if only letter case or a character that ids do not have tells the files apart."""
    second = tmp_path / "second"
    second.mkdir()
    folder = teacher()
    for name in ("video_3.png", "VIDEO_3.png", "video 3.png"):
        shutil.copy(more_images / "video_4.png", second / name)
        with pytest.raises(UserError, match="found a second image of the id"):
            distill(options(nnunet, out, folder, more_images, second))
        (second / name).unlink()


def test_an_image_named_like_a_training_case_is_left_out(nnunet, teacher, more_images, out):
    source = read_dataset(nnunet.raw / "Dataset901_Phantom")
    name = read_splits(source)[0]["train"][0]
    shutil.copy(more_images / "video_4.png", more_images / f"{name.upper()}.png")
    distill(options(nnunet, out, teacher(), more_images))
    assert len(read_distillation(out).unlabelled) == 6


def test_pictures_with_nnunets_names_are_shrunk_too(nnunet, teacher, tmp_path, out):
    folder = tmp_path / "named"
    folder.mkdir()
    for number, case in enumerate(read_dataset(nnunet.raw / "Dataset901_Phantom").training_cases[:2]):
        picture = Image.open(case.images[0]).resize((128, 96))
        picture.save(folder / f"new{number}_0000.png")
    distill(options(nnunet, out, teacher(), folder, max_side=64))
    student = read_dataset(out)
    assert {student.read_image(student.case(f"new{i}")).shape for i in (0, 1)} == {(3, 1, 48, 64)}


def test_numbered_frames_are_pictures(nnunet, teacher, more_images, out):
    for number, path in enumerate(sorted(more_images.glob("*.png"))):
        path.rename(more_images / f"clip_{number:04d}.png")
    distill(options(nnunet, out, teacher(), more_images))
    assert {"clip_0000", "clip_0003", "video_0"} <= read_distillation(out).unlabelled.keys()


def test_a_teacher_that_knows_the_validation_cases_is_refused(nnunet, teacher, more_images, out):
    folder = teacher(folds=(0, 1))
    with pytest.raises(UserError, match="found a teacher trained on"):
        distill(options(nnunet, out, folder, more_images, teacher_folds=("1",)))
    with pytest.raises(UserError, match="found a teacher trained on"):
        distill(options(nnunet, out, folder, more_images, teacher_folds=("0", "1")))
    distill(options(nnunet, out, folder, more_images))  # its fold 0 alone
    assert read_distillation(out).teacher.name.endswith("fold 0")


def test_fold_all_takes_every_case_and_fold(nnunet, teacher, more_images, out):
    distill(options(nnunet, out, teacher(folds=(0, 1)), more_images, fold="all"))
    assert read_distillation(out).teacher.name.endswith("fold 0+1")
    assert len(list((out / "softlabelsTr").iterdir())) == 18 and not (out / "splits_final.json").exists()


def test_another_task_is_refused(nnunet, teacher, more_images, out):
    with pytest.raises(UserError, match="give a model of the same task"):
        distill(options(nnunet, out, teacher(903), more_images))
    assert not out.exists()


def test_options_that_do_not_fit_are_refused(nnunet, out, tmp_path):
    for more in ({"fold": "x"}, {"teacher_folds": ("-1",)}, {"drop_held_out": True}, {"max_side": 64}):
        with pytest.raises(UserError):
            distill(options(nnunet, out, tmp_path, **more))
    with pytest.raises(UserError, match="correct --unlabelled"):
        distill(options(nnunet, out, tmp_path, tmp_path / "nowhere"))


def test_regions_and_their_order(nnunet, teacher, out):
    """With an ignore label, which the teacher never says."""
    folder = teacher(904)
    dataset = f"{nnunet.raw / 'Dataset904_Regions'}"
    distill(Distill(dataset, folder, out, device="cpu"))
    student, ensemble = read_dataset(out), FoldEnsemble(folder)
    case = student.case(read_splits(student)[0]["train"][0])
    image, properties = student.read_stored_image(case)
    _, probabilities = ensemble.predict_probabilities(image, properties["spacing"])
    soft = read_soft_label(soft_label_path(out, case.id), 2, image.shape[1:])
    assert np.abs(soft / 255 - probabilities).max() < 0.51 / 255


@pytest.mark.slow
def test_kill_and_go_on_then_train_by_command(nnunet, teacher, more_images, out):
    """With the real commands: distill, plan, train, go on with --c."""
    folder = teacher()
    arguments = ("--dataset", 901, "--teacher", folder, "--unlabelled", more_images, "--out", out)
    command = nnunet.command("nnunet-order", "distill", *arguments, "--device", "cpu")
    partial = out.with_name(f".{out.name}.partial")
    with subprocess.Popen(command, env=nnunet.environment) as process:
        while process.poll() is None and not list(partial.glob(".journal/*.json")):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists() and partial.is_dir()
    assert "were finished before" in nnunet.run("nnunet-order", "distill", *arguments, "--device", "cpu")
    assert len(read_distillation(out).unlabelled) == 6 and not partial.exists()
    nnunet.plan(980)
    train = ("nnUNetv2_train", 980, "2d", 0, "-device", "cpu", "-tr")
    output = nnunet.run(*train, "nnUNetTrainerLite40K", **{STUDENT: SHORT})
    training = read_splits(read_dataset(out))[0]["train"]
    assert f"soft labels of {len(training)} training cases" in output
    results = nnunet.results / out.name / "nnUNetTrainerLite40K__nnUNetPlans__2d"
    (results / "fold_0" / "checkpoint_final.pth").rename(results / "fold_0" / "checkpoint_latest.pth")
    output = nnunet.run(*train, "nnUNetTrainerLite40K", "--c", **{STUDENT: SHORT.replace("=2 min", "=3 min")})
    assert "Epoch 2" in output and "Epoch 1 " not in output
    # Whoever judges with the student knows what its teacher has seen.
    assert set(read_distillation(out).teacher.train_cases) <= set(FoldEnsemble(results).train_cases)
