"""Export to ONNX and prediction without nnU-Net, against nnU-Net itself on models trained here."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError
from nnunet_order.export import export, write_frame_model, write_network
from nnunet_order.export_check import check_frame_graph
from nnunet_order.image_steps import centre_weights, normalize, tiles, to_labels
from nnunet_order.model_folder import ModelFolder, find_fold, load_checkpoint, load_model, open_model_folder
from nnunet_order.network_plans import with_network
from nnunet_order.onnx_file import CT_STATISTICS, METADATA_KEY, OnnxMetadata, as_properties, read_properties
from nnunet_order.onnx_model import OnnxModel
from nnunet_order.options import Export, Predict
from nnunet_order.predict import predict

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

DATASET = "Dataset901_Export"
TRAINERS = {"nnUNetTrainer_1epoch": 6, "nnUNetTrainerORDER": 40}  # iterations
LABELS = {"background": 0, "polyp": 1}
MAX_SIDE = 500  # larger than all images here, so that it changes nothing but is passed on


def draw_case(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB image with a bright disc inside a black frame, and the disc's mask."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centre = random.uniform(0.3, 0.7, 2) * (height, width)
    mask = np.hypot(rows - centre[0], columns - centre[1]) < random.uniform(0.12, 0.25) * min(height, width)
    image = random.normal(90, 20, (height, width, 3)) + mask[..., None] * [90, 30, 20]
    image = np.clip(image, 1, 255).astype(np.uint8)
    image[:3], image[:, -5:] = 0, 0
    return image, mask.astype(np.uint8)


def write_dataset(raw: Path) -> None:
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    for seed in range(8):
        image, mask = draw_case(seed, 64, 64)
        Image.fromarray(image).save(raw / "imagesTr" / f"case_{seed}_0000.png")
        Image.fromarray(mask).save(raw / "labelsTr" / f"case_{seed}.png")
    channels = {"0": "R", "1": "G", "2": "B"}
    content = {"channel_names": channels, "labels": LABELS, "numTraining": 8, "file_ending": ".png"}
    content["max_side"] = MAX_SIDE
    (raw / "dataset.json").write_text(json.dumps(content))


def train(trainer_name: str, iterations: int, plans_file: Path, dataset_json: Path) -> None:
    """One short epoch and a final checkpoint, through nnU-Net's own entry points."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    torch.manual_seed(0)
    plans = json.loads(plans_file.read_text()) | {"continue_training": False}
    trainer_class = recursive_find_trainer_class_by_name(trainer_name)
    trainer = trainer_class(plans, "2d", "all", json.loads(dataset_json.read_text()), torch.device("cpu"))
    trainer.num_epochs = 1
    if hasattr(trainer, "learning_rate"):
        trainer.initial_lr = 1e-2
    trainer.initialize()
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = iterations, 1
    trainer.run_training()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """nnU-Net's folders with a planned data set and one model per trainer; images to predict."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        patch.setenv("nnUNet_compile", "f")
        patch.setenv("nnUNet_def_n_proc", "1")
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api

        from nnunet_order.registration import register

        register()
        write_dataset(root / "nnUNet_raw" / DATASET)
        patch.setenv("nnUNet_n_proc_DA", "1")  # planning crashes with 0
        api.extract_fingerprints([901], num_processes=1, check_dataset_integrity=False)
        api.plan_experiments([901])
        api.preprocess([901], configurations=["2d"], num_processes=[1])
        patch.setenv("nnUNet_n_proc_DA", "0")
        preprocessed = root / "nnUNet_preprocessed" / DATASET
        for trainer_name, iterations in TRAINERS.items():
            train(trainer_name, iterations, preprocessed / "nnUNetPlans.json", preprocessed / "dataset.json")
        yield root


OLD_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

class nnUNetTrainerOfBefore(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(
        architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
        num_input_channels, num_output_channels, enable_deep_supervision=True,
    ):
        return get_network_from_plans(
            architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
            num_input_channels, num_output_channels, deep_supervision=enable_deep_supervision,
        )
"""


def test_trainers_of_the_older_signature_are_built(workplace, tmp_path, monkeypatch):
    (tmp_path / "old_trainer.py").write_text(OLD_TRAINER)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    folder = untrained_folder(workplace, tmp_path / "model")
    _, configuration = folder.configuration("2d")
    old, new = (
        folder.build_network(configuration, trainer).state_dict()
        for trainer in ("nnUNetTrainerOfBefore", "nnUNetTrainer")
    )
    assert {name: value.shape for name, value in old.items()} == {
        name: value.shape for name, value in new.items()
    }


def untrained_folder(workplace: Path, target: Path, change=lambda plans: plans) -> ModelFolder:
    """A results folder with the data set's plans, which `change` may alter, but without a checkpoint."""
    preprocessed = workplace / "nnUNet_preprocessed" / DATASET
    target.mkdir()
    shutil.copy(preprocessed / "dataset.json", target)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    (target / "plans.json").write_text(json.dumps(change(plans)))
    return open_model_folder(target)


def model_folder(workplace: Path, trainer: str) -> Path:
    return workplace / "nnUNet_results" / DATASET / f"{trainer}__nnUNetPlans__2d"


@pytest.fixture(scope="module")
def exported(workplace):
    """ONNX file of frames per trainer; ORDER's lies beside that of its network alone."""
    files = {trainer: workplace / trainer / "frames.onnx" for trainer in TRAINERS}
    stock = "nnUNetTrainer_1epoch"
    export(Export(model_folder(workplace, stock), files[stock]))
    options = Export(model_folder(workplace, "nnUNetTrainerORDER"), files["nnUNetTrainerORDER"])
    model, network = load_model(options.model, None), options.out.with_name("network.onnx")
    network.parent.mkdir()
    write_network(model, network)
    write_frame_model(model, network, options)
    return files


@pytest.fixture(scope="module")
def order_model(exported) -> Path:
    return exported["nnUNetTrainerORDER"]


@pytest.fixture(scope="module")
def order_network(order_model) -> Path:
    """As `export --logits-only` writes it, and as `export` did before format 2."""
    return order_model.with_name("network.onnx")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * ((first > 0) & (second > 0)).sum() / ((first > 0).sum() + (second > 0).sum())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_predictions_equal_nnunet(workplace, exported, trainer):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
        perform_everything_on_device=False,
    )
    predictor.initialize_from_trained_model_folder(str(model_folder(workplace, trainer)), ("all",))
    segmenter = OnnxModel(exported[trainer])
    # As large as the patch, smaller, mixed, larger, and black.
    for seed, size in enumerate([(64, 64), (50, 61), (40, 90), (130, 101)]):
        image, _ = draw_case(100 + seed, *size)
        stack = image.transpose(2, 0, 1)[:, None].astype(np.float32)
        expected = predictor.predict_single_npy_array(stack, {"spacing": (999, 1, 1)}, None, None, False)[0]
        found = segmenter(image)
        assert found.shape == size
        assert expected.any() and not expected.all()
        assert (found != expected).sum() <= 3
        assert dice(found, expected) >= 0.99
        if trainer == "nnUNetTrainerORDER":  # so does the file of the network alone
            assert np.array_equal(OnnxModel(exported[trainer].with_name("network.onnx"))(image), found)
    assert segmenter(np.zeros((30, 40, 3), dtype=np.uint8)).shape == (30, 40)


def test_export_refuses_a_graph_that_says_something_else(workplace, order_model):
    """Here one of another model, as a wrong version of onnxruntime might compute it."""
    other = load_model(model_folder(workplace, "nnUNetTrainer_1epoch"), None)
    with pytest.raises(UserError, match=r"other labels than PyTorch's .*expected at most 0"):
        check_frame_graph(other, order_model.with_name("network.onnx"), order_model)


def test_whole_image_equals_tiles_up_to_the_patch_and_is_close_above(order_network):
    tiled, whole = OnnxModel(order_network), OnnxModel(order_network, whole_image=True)
    small, _ = draw_case(1, 64, 50)
    assert np.array_equal(tiled(small), whole(small))
    large, _ = draw_case(2, 130, 101)
    assert dice(tiled(large), whole(large)) > 0.9


def test_file_describes_itself(order_model, order_network, exported):
    import onnx

    model = onnx.load(order_network)
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 3, "height", "width"]
    assert model.opset_import[0].version >= 17
    # 42 K weights and a graph, nothing else.
    assert max(order_network.stat().st_size, order_model.stat().st_size) < 400_000
    record = json.loads(model.metadata_props[0].value)
    assert model.metadata_props[0].key == METADATA_KEY
    assert record["labels"] == LABELS and record["label_values"] == [0, 1]
    assert record["trainer"] == "nnUNetTrainerORDER" and record["fold"] == "all"
    assert record["patch_size"] == [64, 64] and record["file_ending"] == ".png"
    assert record["normalization_schemes"] == ["ZScoreNormalization"] * 3
    assert record["binary_sigmoid"] is True
    assert record["max_side"] == MAX_SIDE and record["median_size"] == [61, 59]  # of draw_case
    of_frames = dataclasses.asdict(OnnxModel(order_model).metadata)
    assert of_frames == record | {"takes_frames": True}
    assert OnnxModel(exported["nnUNetTrainer_1epoch"]).metadata.binary_sigmoid is False


def write_images(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    folder.mkdir(parents=True)
    for seed, (name, size) in enumerate(sizes.items()):
        Image.fromarray(draw_case(seed, *size)[0]).save(folder / name)
    return folder


def test_predict_writes_label_maps_without_torch_and_nnunet(order_model, tmp_path):
    images = write_images(tmp_path / "images", {"a_0000.png": (64, 64), "b_0000.tif": (70, 90)})
    (images / "notes.txt").write_text("no image")
    program = (
        "import sys; from pathlib import Path; from nnunet_order.predict import Predict, predict\n"
        "model, images, out = map(Path, sys.argv[1:])\n"
        "predict(Predict(model, (images,), out))\n"
        "sys.exit(bool({'torch', 'nnunetv2', 'onnx'} & set(sys.modules)))"
    )
    root = str(Path(__file__).resolve().parents[1])
    arguments = [str(order_model), str(images), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, env=environment)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    written = np.asarray(Image.open(tmp_path / "out" / "b.png"))
    assert written.dtype == np.uint8
    assert np.array_equal(written, OnnxModel(order_model)(draw_case(1, 70, 90)[0]))


def test_predict_reads_what_nnunet_reads(order_model, tmp_path):
    """White-is-zero TIFF, one bit, a palette: with the values as stored."""
    import onnx
    import tifffile
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    model = onnx.load(order_model)
    record = json.loads(model.metadata_props[0].value) | {"channel_names": {"0": "grey"}}
    record |= {name: record[name][:1] for name in ("normalization_schemes", "use_mask_for_norm")}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(record)})
    onnx.save(model, tmp_path / "grey.onnx")
    segmenter = OnnxModel(tmp_path / "grey.onnx")
    image, mask = draw_case(0, 64, 64)
    grey = image[..., 1]
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "bits.tif", mask > 0)
    tifffile.imwrite(
        tmp_path / "palette.tif", grey, photometric="palette", colormap=np.zeros((3, 256), np.uint16)
    )
    tifffile.imwrite(tmp_path / "turned.tif", grey, extratags=[(274, 3, 1, 6, True)])
    Image.fromarray(mask > 0).save(tmp_path / "bits.png")
    for name in ("white.tif", "bits.tif", "palette.tif", "turned.tif", "bits.png"):
        expected = NaturalImage2DIO().read_images([str(tmp_path / name)])[0][0, 0]
        np.testing.assert_array_equal(segmenter.read(tmp_path / name, Notes()), expected, err_msg=name)


def test_predict_takes_images_of_other_endings_and_names_the_rest(order_model, tmp_path, caplog):
    images = write_images(tmp_path / "images", {"a.png": (64, 64), "b.gif": (64, 64), "c.jfif": (64, 64)})
    Image.fromarray(draw_case(4, 64, 64)[0]).save(images / "d.webp", lossless=True)
    (images / "e.heic").write_text("")
    predict(Predict(order_model, (images,), tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.png" for name in "abcd"]
    written = np.asarray(Image.open(tmp_path / "out" / "d.png"))
    assert np.array_equal(written, OnnxModel(order_model)(draw_case(4, 64, 64)[0]))
    assert "images: 1 left out" in caplog.text and "e.heic" in caplog.text


def test_predict_keeps_frame_numbers(order_model, tmp_path):
    images = write_images(tmp_path / "video", {"frame_0000.png": (64, 64), "frame_0001.png": (64, 64)})
    predict(Predict(order_model, tuple(sorted(images.iterdir())), tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["frame_0000.png", "frame_0001.png"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda images: None, "found an older file"),
        (lambda images: (images / "a.png").unlink(), "found no image"),
        (lambda images: Image.new("RGB", (64, 64)).save(images / "a.jpg"), "two images named a"),
        (lambda images: (images / "a.png").rename(images / "b.png").write_bytes(b"broken"), "cannot be read"),
        (
            lambda images: Image.new("L", (64, 64)).save((images / "a.png").rename(images / "b.png")),
            "found a grey",
        ),
    ],
)
def test_predict_refuses_bad_input_in_one_line(order_model, tmp_path, prepare, message):
    images = write_images(tmp_path / "images", {"a.png": (64, 64)})
    write_images(tmp_path / "out", {"a.png": (2, 2)})
    prepare(images)
    with pytest.raises(UserError, match=message) as caught:
        predict(Predict(order_model, (images,), tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_segmenter_refuses_other_models(order_model, tmp_path):
    import onnx

    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="cannot be opened"):
        OnnxModel(tmp_path / "text.onnx")
    with pytest.raises(UserError, match="found no file"):
        OnnxModel(tmp_path / "absent.onnx")
    model = onnx.load(order_model)
    record = json.loads(model.metadata_props[0].value)
    two_channels = {
        "channel_names": {"0": "T1", "1": "T2"},
        "normalization_schemes": ["ZScoreNormalization"] * 2,
        "use_mask_for_norm": [False] * 2,
    }
    changes = [
        ({"normalization_schemes": ["MyNormalization"] * 3}, "MyNormalization"),
        ({"file_ending": ".nii.gz"}, "nnUNetv2_predict"),
        (two_channels, "2-channel"),
    ]
    for change, message in changes:
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(record | change)})
        onnx.save(model, tmp_path / "changed.onnx")
        with pytest.raises(UserError, match=message):
            OnnxModel(tmp_path / "changed.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match="metadata"):
        OnnxModel(tmp_path / "bare.onnx")


def metadata_of_one_channel(scheme: str, masked: bool, properties: dict) -> OnnxMetadata:
    """Metadata of a model of grey images."""
    return OnnxMetadata(
        labels=LABELS,
        regions_class_order=None,
        label_values=[0, 1],
        channel_names={"0": "grey"},
        file_ending=".png",
        normalization_schemes=[scheme],
        use_mask_for_norm=[masked],
        intensity_properties=properties,
        spacing=[1.0, 1.0],
        patch_size=[64, 64],
        size_multiple=32,
        binary_sigmoid=False,
        architecture={},
        dataset=DATASET,
        plans="nnUNetPlans",
        trainer="nnUNetTrainer",
        fold="all",
        checkpoint="checkpoint_final.pth",
        versions={},
    )


PROPERTIES = as_properties(
    metadata_of_one_channel("CTNormalization", False, {"0": dict.fromkeys(CT_STATISTICS, 1.0)})
)
WRONG_METADATA = {
    "patch_size": [
        ("64", "found str at patch_size, expected array"),
        ([64, "64"], r"found str at patch_size\[1\], expected int"),
        ([64], "found 1 values at patch_size, expected 2"),
        ([0, 64], "expected 1 or more"),
        (None, "found null at patch_size, expected array"),
    ],
    "channel_names": [(["grey"], "found array at channel_names, expected object")],
    "normalization_schemes": [
        ("CTNormalization", "found str at normalization_schemes, expected array"),
        ([], "found 0 values at normalization_schemes, expected 1"),
    ],
    "intensity_properties": [
        ({"0": {"mean": [1]}}, "found array at intensity_properties.*, expected float"),
        ({}, "found no percentile_00_5 at intensity_properties of channel 0"),
    ],
    "regions_class_order": [(1, "found int at regions_class_order, expected array or null")],
    "size_multiple": [([32], "found array at size_multiple, expected int")],
    "fold": [(None, "found null at fold, expected str")],
    "labels": [({"polyp": "1"}, "found str at labels.*, expected int or array")],
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [(key, value, message) for key, cases in WRONG_METADATA.items() for value, message in cases],
)
def test_wrong_metadata_end_in_one_line(key, value, message):
    content = json.loads(PROPERTIES[METADATA_KEY])
    assert key in content
    with pytest.raises(UserError, match=rf"^m\.onnx: .*{message}.*; write the file again") as caught:
        read_properties({METADATA_KEY: json.dumps(content | {key: value})}, Path("m.onnx"))
    assert "\n" not in str(caught.value)
    del content[key]
    with pytest.raises(UserError, match=f"found no key {key}, expected one"):
        read_properties({METADATA_KEY: json.dumps(content)}, Path("m.onnx"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7"])
def test_metadata_of_another_kind_end_in_one_line(text):
    with pytest.raises(UserError, match=r"m\.onnx: found ") as caught:
        read_properties({METADATA_KEY: text}, Path("m.onnx"))
    assert "\n" not in str(caught.value)


def test_metadata_are_read_as_they_were_written():
    content = json.loads(PROPERTIES[METADATA_KEY])
    content["intensity_properties"]["0"]["median"] = math.nan  # as nnU-Net has it without foreground
    again = read_properties({METADATA_KEY: json.dumps(content)}, Path("m.onnx"))
    assert as_properties(again) == {METADATA_KEY: json.dumps(content)}


WRONG_MODEL_FILES = {
    "plans.json": {
        "dataset_name": [(3, "found int at dataset_name, expected str")],
        "plans_name": [(None, "found null at plans_name, expected str")],
        "transpose_forward": [(["0"], "found str at transpose_forward.*, expected int")],
        "configurations": [
            ([], "found array at configurations, expected object"),
            ({"2d": 7}, "found int at configurations.*, expected object"),
            ({"3d": {}}, "found the configurations 3d, expected 2d"),
            ({"2d": {}}, r"found a configuration 2d that nnU-Net cannot read \(KeyError"),
            ({"2d": {"inherits_from": "2d"}}, "found a configuration 2d that nnU-Net cannot read"),
        ],
        "foreground_intensity_properties_per_channel": [
            ({"0": 1}, "found int at foreground_.*, expected obj")
        ],
    },
    "dataset.json": {
        "channel_names": [({"0": 1}, "found int at channel_names.*, expected str")],
        "labels": [
            (["polyp"], "found array at labels, expected object"),
            ({"background": 0, "whole": [1, 2]}, "found labels that nnU-Net cannot read"),
        ],
        "file_ending": [(None, "found null at file_ending, expected str")],
    },
    "2d": {
        "patch_size": [
            (64, "found int at patch_size, expected array"),
            ([8, 64, 64], "found a 3D patch"),
        ],
        "spacing": [(["1"], "found str at spacing.*, expected float")],
        "normalization_schemes": [({}, "found object at normalization_schemes, expected array")],
        "use_mask_for_norm": [([0], "found int at use_mask_for_norm.*, expected bool")],
        "architecture": [
            ("ORDER", "found str at architecture, expected object"),
            ({"network_class_name": "x"}, "found no key arch_kwargs at architecture, expected one"),
        ],
    },
}


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (name, key, value, message)
        for name, keys in WRONG_MODEL_FILES.items()
        for key, cases in keys.items()
        for value, message in cases
    ],
)
def test_wrong_files_of_a_model_folder_end_in_one_line(workplace, tmp_path, name, key, value, message):
    folder = tmp_path / "model"
    shutil.copytree(model_folder(workplace, "nnUNetTrainerORDER"), folder)
    path = folder / (name if name != "2d" else "plans.json")
    whole = json.loads(path.read_text())
    content = whole if name != "2d" else whole["configurations"]["2d"]
    assert key in content
    content[key] = value
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder, None)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    del content[key]
    path.write_text(json.dumps(whole))
    key = {"architecture": "UNet_class_name"}.get(key, key)  # nnU-Net then looks for what older plans had
    with pytest.raises(UserError, match=key) as caught:
        load_model(folder, None)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer_name": 7}, "found int at trainer_name, expected str"),
        ({"init_args": None}, "found null at init_args, expected object"),
        ({"init_args": {}}, "found no key configuration at init_args"),
        ({"init_args": {"configuration": "3d_fullres"}}, "found the configurations .*, expected 3d_fullres"),
        ({"network_weights": [1]}, "found array at network_weights, expected object"),
    ],
)
def test_wrong_checkpoints_end_in_one_line(workplace, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        load_model(copied_model(workplace, tmp_path / "model", **change), None)
    assert "\n" not in str(caught.value)


def test_normalization_equals_nnunet():
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as theirs

    image = draw_case(3, 40, 50)[0].transpose(2, 0, 1).astype(np.float32)
    image[:, 10:14, :20] = 0
    image[:, 20:24, 15:25] = 0  # a hole, which nnU-Net leaves open in 2D
    image, outside, _ = crop_to_nonzero(image[:, None])
    properties = {"mean": 120.0, "std": 30.0, "percentile_00_5": 60.0, "percentile_99_5": 180.0}
    names = ("ZScore", "CT", "No", "RescaleTo01", "RGBTo01")
    for name, masked in [("ZScore", True), *((name, False) for name in names)]:
        scheme = f"{name}Normalization"
        metadata = metadata_of_one_channel(scheme, masked, {"0": properties})
        expected = getattr(theirs, scheme)(masked, properties).run(image[0].copy(), outside[0])
        np.testing.assert_allclose(normalize(image[:1, 0], metadata), expected, rtol=1e-5, atol=1e-6)


def test_eight_bit_normalization_refuses_brighter_images():
    metadata = metadata_of_one_channel("RGBTo01Normalization", False, {})
    with pytest.raises(UserError, match="found pixel values up to 300, expected at most 255"):
        normalize(np.full((1, 2, 2), 300.0), metadata)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (100, 130), (300, 96)])
def test_tiles_are_nnunets(size):
    from nnunetv2.inference.sliding_window_prediction import (
        compute_gaussian,
        compute_steps_for_sliding_window,
    )

    tile = (64, 96)
    rows, columns = compute_steps_for_sliding_window(size, tile, 0.5)
    assert [(r.start, c.start) for r, c in tiles(size, tile)] == [(r, c) for r in rows for c in columns]
    expected = compute_gaussian(tile, dtype=torch.float32, device=torch.device("cpu")).numpy()
    np.testing.assert_allclose(centre_weights(tile), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "order", "channels"),
    [
        ({"background": 0, "kidney": 1, "tumour": 2, "ignore": 3}, None, 3),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1, 2], 2),
    ],
)
def test_labels_and_regions_equal_nnunet(labels, order, channels):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(labels, order)
    values = [int(value) for value in manager.all_labels]
    logits = np.random.default_rng(0).normal(size=(channels, 20, 30)).astype(np.float32)
    assert np.array_equal(to_labels(logits, values, order), manager.convert_logits_to_segmentation(logits))


def test_fold_and_checkpoint_are_found_or_named(workplace, tmp_path):
    name = "checkpoint_final.pth"
    folder = model_folder(workplace, "nnUNetTrainerORDER")
    assert find_fold(folder / "fold_all", None, name) == find_fold(folder, "all", name) == (folder, "all")
    with pytest.raises(UserError, match=r"found checkpoint_final\.pth in folds: all; expected 3"):
        export(Export(folder, tmp_path / "model.onnx", fold="3"))
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / name).touch()
    with pytest.raises(UserError, match="exactly one"):
        find_fold(tmp_path, None, name)
    with pytest.raises(UserError, match=r"fold_0 with --fold 1, expected one fold"):
        find_fold(tmp_path / "fold_0", "1", name)
    assert find_fold(tmp_path / "fold_0", "0", name) == (tmp_path, "0")
    (tmp_path / "model.onnx").write_text("precious")
    with pytest.raises(UserError, match="expected a new file"):
        export(Export(folder, tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").read_text() == "precious"


def copied_model(workplace: Path, target: Path, **changes) -> Path:
    """A copy of the ORDER model whose checkpoint holds other values."""
    shutil.copytree(model_folder(workplace, "nnUNetTrainerORDER"), target)
    path = target / "fold_all" / "checkpoint_final.pth"
    torch.save(load_checkpoint(path) | changes, path)
    return target


def test_models_that_cannot_be_built_are_named(workplace, tmp_path):
    other = copied_model(workplace, tmp_path / "trainer", trainer_name="nnUNetTrainerUnheardOf")
    with pytest.raises(UserError, match="found no trainer nnUNetTrainerUnheardOf"):
        load_model(other, None, "checkpoint_final.pth")
    other = copied_model(workplace, tmp_path / "weights", network_weights={"other": torch.zeros(1)})
    with pytest.raises(UserError, match="do not fit") as caught:
        load_model(other, None, "checkpoint_final.pth")
    assert "\n" not in str(caught.value)
    (other / "plans.json").write_text("{")
    with pytest.raises(UserError, match=r"plans\.json: malformed"):
        load_model(other, None, "checkpoint_final.pth")


def test_code_that_plans_name_is_not_run(workplace, tmp_path):
    """The real command: torch.hub.load as network would run hubconf.py."""
    folder, mark = copied_model(workplace, tmp_path / "model"), tmp_path / "ran"
    (tmp_path / "hubconf.py").write_text(f"open({str(mark)!r}, 'w')\ndef entry(**options): pass\n")
    plans = json.loads((folder / "plans.json").read_text())
    hub = {"repo_or_dir": str(tmp_path), "model": "entry", "source": "local", "strides": [[32, 32]]}
    network = {"network_class_name": "torch.hub.load", "arch_kwargs": hub, "_kw_requires_import": []}
    plans["configurations"]["2d"]["architecture"] = network
    (folder / "plans.json").write_text(json.dumps(plans))
    program = Path(sys.executable).parent / "nnunet-order"
    command = [program, "export", "--model", folder, "--out", tmp_path / "model.onnx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and not mark.exists() and not (tmp_path / "model.onnx").exists()
    (line,) = [line for line in done.stderr.splitlines() if "hub" in line]
    assert line.startswith("error: plans.json: found torch.hub.load") and "NNUNET_ORDER_TRUSTED" in line


def test_the_users_own_networks_are_built(workplace, tmp_path, monkeypatch):
    """A trainer of two lines names a network itself; that of a plans file wants the user's trust."""
    (tmp_path / "my_nets.py").write_text(
        "from nnunet_order.networks import MKUNet\nclass Net(MKUNet): pass\n"
    )
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "mine.py").write_text(
        "from nnunet_order.trainers import nnUNetTrainerMKUNet\n"
        "class nnUNetTrainerMine(nnUNetTrainerMKUNet):\n    network_class = 'my_nets.Net'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers))
    options = {"batch_size": 2, "largest_patch": 64, "sigmoid_head": True}
    folder = untrained_folder(
        workplace, tmp_path / "model", lambda plans: with_network(plans, "2d", "my_nets.Net", {}, **options)
    )
    build = functools.partial(folder.build_network, folder.configuration("2d")[1])
    assert type(build("nnUNetTrainerMine").network).__name__ == "Net"
    with pytest.raises(UserError, match=r'found my_nets\.Net, .*export NNUNET_ORDER_TRUSTED_.*="my_nets"'):
        build("nnUNetTrainer")
    monkeypatch.setenv("NNUNET_ORDER_TRUSTED_NETWORKS", "my_nets")
    assert type(build("nnUNetTrainer").network).__name__ == "Net"


class Intruder:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoints_are_data_only(workplace, tmp_path):
    original = model_folder(workplace, "nnUNetTrainerORDER") / "fold_all" / "checkpoint_final.pth"
    (tmp_path / "cut.pth").write_bytes(original.read_bytes()[:5000])
    torch.save({"network_weights": {}}, tmp_path / "other.pth")
    torch.save({"network_weights": Intruder(tmp_path / "intruded")}, tmp_path / "intruder.pth")
    for name in ("cut", "other", "intruder"):
        with pytest.raises(UserError, match="expected an nnU-Net checkpoint") as caught:
            load_checkpoint(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "intruded").exists()


def test_checkpoints_of_numpy_1_load(workplace, tmp_path):
    original = model_folder(workplace, "nnUNetTrainerORDER") / "fold_all" / "checkpoint_final.pth"
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(tmp_path / "old.pth", "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert pickle.GLOBAL + b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(entry, content)
    assert load_checkpoint(tmp_path / "old.pth")["logging"] == load_checkpoint(original)["logging"]
