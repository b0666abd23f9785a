"""The real nnU-Net commands, end to end on generated PNGs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from dataset_conversion.system.errors import UserError
from nnunet_order.model_folder import load_checkpoint

pytestmark = pytest.mark.slow

ORDER = "nnUNetTrainerORDER_tiny"


def losses(folder) -> list[str]:
    """Training and validation losses in the order of the epochs, from all logs of a fold."""
    by_epoch = {}
    for log in sorted(folder.glob("training_log_*.txt")):
        epoch = None
        for line in log.read_text().splitlines():
            if found := re.search(r": Epoch (\d+)", line):
                epoch = int(found[1])
            elif found := re.search(r"((?:train|val)_loss \S+)", line):
                by_epoch.setdefault((epoch, found[1].split()[0]), found[1])
    return [by_epoch[key] for key in sorted(by_epoch)]


@pytest.fixture(scope="module")
def trained(nnunet):
    """ORDER trained by the real command; -> its model folder."""
    output = nnunet.run("nnUNetv2_train", 901, "2d", 0, "-tr", ORDER, "-device", "cpu", "--npz")
    assert f"Using trainer '{ORDER}' from" in output and "patch [64, 64], batch 4, seed 0" in output
    return nnunet.results / "Dataset901_Phantom" / f"{ORDER}__nnUNetPlans__2d"


def test_training_leaves_what_nnunet_promises(trained):
    fold = trained / "fold_0"
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "validation/summary.json"):
        assert (fold / name).stat().st_size > 0
    assert list((fold / "validation").glob("*.npz"))
    settings = json.loads((trained / "plans.json").read_text())["configurations"]["2d"]
    assert settings["architecture"]["network_class_name"] == "nnunet_order.networks.SigmoidHead"
    assert len(losses(fold)) == 6


def test_killed_and_resumed_run_repeats_the_uninterrupted_one(nnunet, trained):
    """kill -9 after the first epoch's checkpoint, then --c: the same losses."""
    fold = trained / "fold_0"
    expected = losses(fold)
    fold.rename(trained / "uninterrupted")
    command = nnunet.command("nnUNetv2_train", 901, "2d", 0, "-tr", ORDER, "-device", "cpu")
    process = subprocess.Popen(command, env=nnunet.environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (fold / "checkpoint_latest.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (fold / "checkpoint_final.pth").exists()
    nnunet.run("nnUNetv2_train", 901, "2d", 0, "-tr", ORDER, "-device", "cpu", "--c")
    assert losses(fold) == expected


@pytest.fixture(scope="module")
def predictions(nnunet, trained):
    """Predictions for the test images by the real command."""
    out = nnunet.root / "predictions"
    nnunet.run(
        "nnUNetv2_predict",
        *("-i", nnunet.raw / "Dataset901_Phantom" / "imagesTs", "-o", out, "-d", 901, "-c", "2d", "-f", 0),
        *("-tr", ORDER, "-device", "cpu", "-npp", 1, "-nps", 1),
    )
    return out


def test_predict_and_evaluate(nnunet, predictions):
    files = sorted(predictions.glob("*.png"))
    assert len(files) == 4
    for file in files:
        label = np.asarray(Image.open(file))
        assert label.shape == (64, 64) and set(np.unique(label)) <= {0, 1}
    truth = nnunet.raw / "Dataset901_Phantom" / "labelsTs"
    nnunet.run(
        "nnUNetv2_evaluate_folder",
        *(truth, predictions, "-djfile", truth.parent / "dataset.json", "-np", 1),
        *("-pfile", predictions / "plans.json"),
    )
    theirs = json.loads((predictions / "summary.json").read_text())["foreground_mean"]["Dice"]
    out = nnunet.root / "evaluation"
    nnunet.run(
        "nnunet-order", "evaluate", "--dataset", 901, "--predictions", f"ORDER={predictions}", "--out", out
    )
    rows = json.loads((out / "summary.json").read_text())["rows"]
    ours = next(row["mDice"] for row in rows if row["label"] == "foreground mean")
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert (out / "examples.png").stat().st_size > 10_000


def test_export_and_import_keep_the_predictions(nnunet, trained, predictions, tmp_path):
    archive = tmp_path / "order.zip"
    nnunet.run(
        "nnUNetv2_export_model_to_zip",
        *("-d", 901, "-o", archive, "-c", "2d", "-tr", ORDER, "-f", 0, "--not_strict"),
    )
    elsewhere = tmp_path / "results"
    elsewhere.mkdir()
    nnunet.run("nnUNetv2_install_pretrained_model_from_zip", archive, nnUNet_results=str(elsewhere))
    out = tmp_path / "again"
    nnunet.run(
        "nnUNetv2_predict",
        *("-i", nnunet.raw / "Dataset901_Phantom" / "imagesTs", "-o", out, "-d", 901, "-c", "2d", "-f", 0),
        *("-tr", ORDER, "-device", "cpu", "-npp", 1, "-nps", 1),
        nnUNet_results=str(elsewhere),
    )
    for file in predictions.glob("*.png"):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_fold_all_is_trained_without_predicting_its_own_cases(nnunet, tmp_path):
    """It is shared all the same, and --val predicts them when they are wanted."""
    train = ("nnUNetv2_train", 901, "2d", "all", "-tr", "nnUNetTrainerORDER_quick", "-device", "cpu")
    output = nnunet.run(*train)
    assert "No final validation" in output and "predicting" not in output
    model = nnunet.results / "Dataset901_Phantom" / "nnUNetTrainerORDER_quick__nnUNetPlans__2d"
    validation = model / "fold_all" / "validation"
    assert [path.name for path in validation.iterdir()] == ["summary.json"]
    archive = tmp_path / "all.zip"
    nnunet.run(
        "nnUNetv2_export_model_to_zip",
        *("-d", 901, "-o", archive, "-c", "2d", "-tr", "nnUNetTrainerORDER_quick", "-f", "all"),
    )
    names = zipfile.ZipFile(archive).namelist()
    assert any(name.endswith("fold_all/checkpoint_final.pth") for name in names)
    nnunet.run(*train, "--val")
    assert len(list(validation.glob("*.png"))) == 12
    assert len(json.loads((validation / "summary.json").read_text())["metric_per_case"]) == 12


def test_find_best_configuration_compares_our_trainers(nnunet, trained):
    nnunet.run("nnUNetv2_train", 901, "2d", 0, "-tr", "nnUNetTrainerMKUNet_tiny", "-device", "cpu", "--npz")
    nnunet.run(
        "nnUNetv2_find_best_configuration",
        *(
            901,
            "-c",
            "2d",
            "-tr",
            ORDER,
            "nnUNetTrainerMKUNet_tiny",
            "-f",
            0,
            "--disable_ensembling",
            "-np",
            1,
        ),
    )
    results = nnunet.results / "Dataset901_Phantom" / "inference_information.json"
    compared = json.loads(results.read_text())["all_results"]
    assert {name.split("__")[0] for name in compared} == {ORDER, "nnUNetTrainerMKUNet_tiny"}


def test_order_as_an_architecture_of_the_stock_trainer(nnunet):
    """Deep supervision on, as stock nnUNetTrainer has it; prediction builds the network without."""
    nnunet.run("nnunet-order", "plan", 901, "--batch-size", 4)
    nnunet.run(
        "nnUNetv2_train", 901, "2d", "all", "-p", "ORDERPlans", "-tr", "nnUNetTrainer_tiny", "-device", "cpu"
    )
    folder = nnunet.results / "Dataset901_Phantom" / "nnUNetTrainer_tiny__ORDERPlans__2d"
    weights = load_checkpoint(folder / "fold_all" / "checkpoint_final.pth")["network_weights"]
    assert sum(name.startswith("decoder.seg_layers.") for name in weights) == 10  # 5, weight and bias
    out = nnunet.root / "architecture_predictions"
    nnunet.run(
        "nnUNetv2_predict",
        *(
            "-i",
            nnunet.raw / "Dataset901_Phantom" / "imagesTs",
            "-o",
            out,
            "-d",
            901,
            "-c",
            "2d",
            "-f",
            "all",
        ),
        *("-p", "ORDERPlans", "-tr", "nnUNetTrainer_tiny", "-device", "cpu", "-npp", 1, "-nps", 1),
    )
    assert len(list(out.glob("*.png"))) == 4


@pytest.mark.parametrize("dataset", ["902_Ignore", "903_MultiClass", "904_Regions"])
def test_labels_of_every_kind_train_and_validate(nnunet, dataset):
    nnunet.run("nnUNetv2_train", dataset[:3], "2d", 0, "-tr", "nnUNetTrainerORDER_quick", "-device", "cpu")
    folder = nnunet.results / f"Dataset{dataset}" / "nnUNetTrainerORDER_quick__nnUNetPlans__2d"
    validation = folder / "fold_0" / "validation"
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    allowed = set(range(len(labels) - ("ignore" in labels)))
    files = list(validation.glob("*.png"))
    assert len(files) == 3 and (validation / "summary.json").is_file()
    assert all(set(np.unique(np.asarray(Image.open(file)))) <= allowed for file in files)


def test_plan_refuses_what_is_not_there(nnunet):
    unknown = nnunet.run("nnunet-order", "plan", 909, code=2)
    assert "found none for data set 909" in unknown.replace("\n", " ") and "Traceback" not in unknown
    missing = nnunet.run("nnunet-order", "plan", 901, "--source", "NoPlans", code=2)
    assert "NoPlans.json" in missing.replace("\n", "") and "Traceback" not in missing


@pytest.fixture
def synthetic(nnunet):
    """Data set 905: 12 phantoms of 32 px, whose own plans would be others than those of 901 (64 px)."""
    from dataset_conversion.phantom import ConvertPhantom, convert_phantom

    folder = nnunet.raw / "Dataset905_Synthetic"
    if not folder.exists():
        convert_phantom(ConvertPhantom(out=folder, cases=12, test_cases=0, size=32))
    return folder


def test_reused_plans_preprocess_and_train_without_planning(nnunet, synthetic):
    nnunet.run("nnunet-order", "plan", 905, "--reuse-plans-from", 901)
    folder = nnunet.preprocessed / synthetic.name
    source = json.loads((nnunet.preprocessed / "Dataset901_Phantom" / "nnUNetPlans.json").read_text())
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    assert (
        plans["dataset_name"] == synthetic.name and plans | {"dataset_name": "Dataset901_Phantom"} == source
    )
    raw, planned = (json.loads((at / "dataset.json").read_text()) for at in (synthetic, folder))
    assert raw == planned

    nnunet.run(
        "nnUNetv2_preprocess",
        *("-d", 905, "-c", "2d", "-plans_name", "nnUNetPlans", "-np", 1),
        nnUNet_n_proc_DA="1",
    )
    assert len(list((folder / "nnUNetPlans_2d").glob("phantom_*.pkl"))) == 12
    assert json.loads((folder / "nnUNetPlans.json").read_text()) == plans
    options = "epochs=1 iterations_per_epoch=2 samples_per_step=4 optimizer_name=AdamW"
    output = nnunet.run(
        "nnUNetv2_train",
        *(905, "2d", 0, "-tr", "nnUNetTrainerMKUNet", "-device", "cpu"),
        NNUNET_ORDER_OPTIONS=options,
    )
    assert "patch [64, 64], batch 4, seed 0, options: epochs=1, iterations_per_epoch=2, " in output
    model = nnunet.results / synthetic.name / "nnUNetTrainerMKUNet__nnUNetPlans__2d"
    assert (model / "fold_0" / "checkpoint_final.pth").is_file()


def test_reused_plans_take_the_reader_of_their_data_set_and_never_replace_others(
    nnunet, tmp_path, monkeypatch
):
    import SimpleITK as sitk

    from nnunet_order.options import Plan
    from nnunet_order.plan import plan

    source = shutil.copytree(
        nnunet.preprocessed / "Dataset901_Phantom",
        tmp_path / "pre" / "Dataset901_Phantom",
        ignore=shutil.ignore_patterns("*_2d", "gt_*"),
    )
    target = tmp_path / "raw" / "Dataset906_Volumes"
    for name in ("imagesTr/a_0000", "imagesTr/a_0001", "imagesTr/a_0002", "labelsTr/a"):
        path = target / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((1, 32, 32), np.uint8)), str(path))
    content = json.loads((source / "dataset.json").read_text()) | {"file_ending": ".nii.gz", "numTraining": 1}
    (target / "dataset.json").write_text(json.dumps(content))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    reuse = Plan("906", reuse_plans_from="901")

    (target / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "tumour": 1}}))
    with pytest.raises(
        UserError, match=r'found labels .*"tumour": 1.*expected .*"polyp": 1.* as in Dataset901'
    ):
        plan(reuse)
    names = {"0": "T1", "1": "T2", "2": "CT"}
    (target / "dataset.json").write_text(json.dumps(content | {"channel_names": names}))
    with pytest.raises(UserError, match="found channel_names"):
        plan(reuse)
    (target / "dataset.json").write_text(json.dumps(content))
    for options, message in (
        (Plan("906", reuse_plans_from="902"), "found none for data set 902"),
        (Plan("906", source="Other", reuse_plans_from="901"), "found no .*Other.json, expected it .*; run"),
        (Plan("906", batch_size=2, reuse_plans_from="901"), "found options of ORDER's plans"),
        (Plan("/somewhere/Dataset902_Other"), "found none for data set /somewhere/Dataset902_Other"),
        (Plan(""), "found none for data set"),
        (Plan("901", attention_stages=(7,)), "found --attention-stages 7, expected some of 0 1 2 3"),
    ):
        with pytest.raises(UserError, match=message):
            plan(options)
    assert not (tmp_path / "pre" / target.name).exists()

    plan(reuse)
    plan(reuse)  # the same again is fine
    path = tmp_path / "pre" / target.name / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    assert plans["image_reader_writer"] == "SimpleITKIO"
    path.write_text(json.dumps(plans | {"original_median_shape_after_transp": [1, 7, 7]}))
    with pytest.raises(UserError, match="found other plans, expected none or those of Dataset901_Phantom"):
        plan(reuse)
    assert json.loads(path.read_text())["original_median_shape_after_transp"] == [1, 7, 7]
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "dataset.json",
        "dataset_fingerprint.json",
        "nnUNetPlans.json",
    ]
