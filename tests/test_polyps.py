"""The public polyp data sets in their published layouts into one nnU-Net raw data set."""

from __future__ import annotations

import csv
import json
import logging
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion.polyps import ConvertPolyps, convert_polyps, pairs_of, read_sequences, split_groups
from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared_data = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="the real polyp data sets are not beside this checkout"
)


@pytest.fixture(autouse=True)
def no_nnunet_variables(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


def save_pairs(
    images: Path, masks: Path, stems: list, image_ending: str, mask_ending: str, mask_prefix: str = ""
):
    """An image (48, 64) and a 0/255 mask with a block of 17 x 32 px, off JPEG's 8 px grid, for each stem."""
    mask = np.zeros((48, 64), np.uint8)
    mask[13:30, 18:50] = 255
    for number, stem in enumerate(stems):
        image = np.full((48, 64, 3), 40 + number, np.uint8)
        for path, array in (
            (images / f"{stem}{image_ending}", image),
            (masks / f"{mask_prefix}{stem}{mask_ending}", mask),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def make_kvasir(root: Path, with_lists: bool = True) -> Path:
    stems = [f"cju{i:02d}" for i in range(10)]
    save_pairs(root / "images", root / "masks", stems, ".jpg", ".jpg")
    (root / "kavsir_bboxes.json").write_text("{}")
    if with_lists:
        (root / "train.txt").write_text("\n".join(stems[:8]))
        (root / "val.txt").write_text("\n".join(f"{stem}.jpg" for stem in stems[8:]) + "\n")
    return root


def make_clinicdb(root: Path, frames: range = range(20, 180, 4)) -> Path:
    save_pairs(root / "Original", root / "Ground Truth", list(frames), ".tif", ".tif")
    return root


def make_pranet(root: Path) -> Path:
    train, test = root / "TrainDataset", root / "TestDataset"
    save_pairs(train / "image", train / "mask", ["cju1", "cju2", 1, 27, 52, 70, 612], ".png", ".png")
    for name in ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir"):
        save_pairs(test / name / "images", test / name / "masks", [2, 3], ".png", ".png")
    return root


def test_default_protocol(tmp_path, caplog):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    etis = tmp_path / "etis"
    save_pairs(etis / "ETIS-LaribPolypDB", etis / "Ground Truth", [1, 2], ".tif", ".tif", mask_prefix="p")
    colondb = tmp_path / "colondb"
    save_pairs(colondb / "images", colondb / "masks", [1, 2, 3], ".png", ".png")
    out = tmp_path / "Dataset500_Polyps"
    with caplog.at_level(logging.WARNING):
        convert_polyps(
            ConvertPolyps(
                out=out,
                kvasir=make_kvasir(tmp_path / "kvasir"),
                clinicdb=make_clinicdb(tmp_path / "clinicdb"),
                colondb=colondb,
                etis=etis,
            )
        )
    verify_dataset_integrity(str(out), 1)
    dataset = read_dataset(out)
    assert Counter(case.id.split("_")[0] for case in dataset.training_cases) == {"kvasir": 8, "clinicdb": 40}
    assert {name: len(ids) for name, ids in dataset.test_sets.items()} == {
        "Kvasir": 2,
        "CVC-ColonDB": 3,
        "ETIS-LaribPolypDB": 2,
    }
    assert dataset.test_sets["Kvasir"] == ["kvasir_cju08", "kvasir_cju09"]
    assert "clinicdb_020" in {case.id for case in dataset.training_cases}
    assert dataset.regions == {"polyp": (1,)}
    assert all(dataset.read_label(case.label).sum() == 17 * 32 for case in dataset.training_cases)
    assert "neither black nor white" in caplog.text  # Kvasir-SEG's JPEG masks

    groups = split_groups_by_id(dataset)
    for split in json.loads((out / "splits_final.json").read_text()):
        assert not {groups[c] for c in split["train"]} & {groups[c] for c in split["val"]}


def split_groups_by_id(dataset) -> dict[str, int | str]:
    """Sequence by the frame ranges of ClinicDB's README, written out for the frames used here."""
    first, groups = [1, 26, 51, 68, 79, 104, 127, 152, 178], {}
    for case in dataset.training_cases:
        source, name = case.id.split("_")
        groups[case.id] = sum(int(name) >= f for f in first) if source == "clinicdb" else case.id
    return groups


def test_clinicdb_as_unseen_test_set(tmp_path):
    out = tmp_path / "Dataset500_Polyps"
    clinicdb = tmp_path / "clinicdb"
    save_pairs(clinicdb / "PNG" / "Original", clinicdb / "PNG" / "Ground Truth", [1, 2], ".png", ".png")
    kvasir = make_kvasir(tmp_path / "kvasir")
    convert_polyps(
        ConvertPolyps(out=out, kvasir=kvasir, clinicdb=clinicdb, test_only=("clinicdb",), max_side=32)
    )
    dataset = read_dataset(out)
    assert dataset.test_sets["CVC-ClinicDB"] == ["clinicdb_001", "clinicdb_002"]
    assert all(case.id.startswith("kvasir") for case in dataset.training_cases)
    assert dataset.read_image(dataset.training_cases[0]).shape == (3, 1, 24, 32)
    assert dataset.description.max_side == 32


def test_kvasir_without_lists_trains_on_all_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        convert_polyps(
            ConvertPolyps(
                out=tmp_path / "Dataset500_Polyps", kvasir=make_kvasir(tmp_path / "kvasir", with_lists=False)
            )
        )
    dataset = read_dataset(tmp_path / "Dataset500_Polyps")
    assert (len(dataset.training_cases), len(dataset.test_cases)) == (10, 0)
    assert "no val.txt, so all 10 Kvasir-SEG images are training images" in caplog.text


def test_lists_are_found_beside_the_images_and_above_them(tmp_path):
    make_kvasir(tmp_path / "download" / "Kvasir-SEG")
    clinicdb = make_clinicdb(tmp_path / "clinic" / "CVC-ClinicDB", range(1, 21))
    (clinicdb / "sequences.csv").write_text("sequence,first,last\n1,1,10\n2,11,20\n")
    for number, moved in ((500, ""), (501, "val.txt"), (502, "train.txt")):
        if moved:
            (tmp_path / "download" / "Kvasir-SEG" / moved).rename(tmp_path / "download" / moved)
        out = tmp_path / f"Dataset{number}_Polyps"
        convert_polyps(ConvertPolyps(out=out, kvasir=tmp_path / "download", clinicdb=tmp_path / "clinic"))
        dataset = read_dataset(out)
        assert dataset.test_sets["Kvasir"] == ["kvasir_cju08", "kvasir_cju09"]
        groups = {dataset.groups[f"clinicdb_{frame:03d}"] for frame in range(1, 21)}
        assert groups == {"clinicdb sequence 1", "clinicdb sequence 2"}


def test_clinicdb_whose_names_tell_no_frame_does_not_train(tmp_path):
    clinicdb = tmp_path / "clinicdb"
    stems = [f"CVC_{i:03d}" for i in range(1, 11)]
    save_pairs(clinicdb / "Original", clinicdb / "Ground Truth", stems, ".png", ".png")
    out, kvasir = tmp_path / "Dataset500_P", make_kvasir(tmp_path / "kvasir")
    with pytest.raises(UserError, match=r"CVC_001\.png: found 10 training images .* names tell no frame"):
        convert_polyps(ConvertPolyps(out=out, kvasir=kvasir, clinicdb=clinicdb))
    assert not out.exists()
    convert_polyps(ConvertPolyps(out=out, kvasir=kvasir, clinicdb=clinicdb, test_only=("clinicdb",)))
    assert len(read_dataset(out).test_sets["CVC-ClinicDB"]) == 10


def test_pranet(tmp_path, caplog):
    out = tmp_path / "Dataset500_PraNet"
    with caplog.at_level(logging.WARNING):
        convert_polyps(ConvertPolyps(out=out, pranet=make_pranet(tmp_path / "pranet")))
    # Frames 2 and 3 are of the sequence of training frame 1.
    assert "2 test images are of video sequences that the published split trains on" in caplog.text
    dataset = read_dataset(out)
    training = {case.id for case in dataset.training_cases}
    assert training == {"kvasir_cju1", "kvasir_cju2"} | {f"clinicdb_{i:03d}" for i in (1, 27, 52, 70, 612)}
    assert {name: ids[0] for name, ids in dataset.test_sets.items()} == {
        "CVC-300": "cvc300_002",
        "CVC-ClinicDB": "clinicdb_002",
        "CVC-ColonDB": "colondb_002",
        "ETIS-LaribPolypDB": "etis_002",
        "Kvasir": "kvasir_002",
    }


@pytest.mark.parametrize("name", ["train.txt", "val.txt"])
def test_kvasir_lists_must_fit_the_images(tmp_path, name):
    kvasir = make_kvasir(tmp_path / "kvasir")
    with (kvasir / name).open("a") as file:
        file.write("\ncju99")
    with pytest.raises(UserError, match="found cju99 in"):
        convert_polyps(ConvertPolyps(out=tmp_path / "Dataset500_P", kvasir=kvasir))
    (kvasir / "train.txt").write_text("\n".join(f"cju{i:02d}" for i in range(9)))
    (kvasir / "val.txt").write_text("cju08\ncju09")
    with pytest.raises(UserError, match="found cju08 in train"):
        convert_polyps(ConvertPolyps(out=tmp_path / "Dataset500_P", kvasir=kvasir))
    (kvasir / "train.txt").write_text("cju00")
    with pytest.raises(UserError, match="found cju01 in neither"):
        convert_polyps(ConvertPolyps(out=tmp_path / "Dataset500_P", kvasir=kvasir))


def test_wrong_sources_are_refused(tmp_path):
    out, kvasir = tmp_path / "Dataset500_P", make_kvasir(tmp_path / "kvasir")
    with pytest.raises(UserError, match="found no source"):
        convert_polyps(ConvertPolyps(out=out))
    with pytest.raises(UserError, match=r"expected one of: images \+ masks, .*Original \+ Ground Truth"):
        convert_polyps(ConvertPolyps(out=out, clinicdb=kvasir / "images"))
    with pytest.raises(UserError, match="found no TrainDataset and no TestDataset"):
        convert_polyps(ConvertPolyps(out=out, pranet=kvasir))
    with pytest.raises(UserError, match="expected it alone"):
        convert_polyps(ConvertPolyps(out=out, pranet=make_pranet(tmp_path / "pranet"), kvasir=kvasir))
    with pytest.raises(UserError, match="found no training image"):
        convert_polyps(ConvertPolyps(out=out, kvasir=kvasir, test_only=("kvasir",)))
    save_pairs(kvasir / "images", kvasir / "masks", ["1", "001"], ".jpg", ".jpg")
    (kvasir / "val.txt").unlink()
    with pytest.raises(UserError, match="kvasir_001 twice"):
        convert_polyps(ConvertPolyps(out=out, kvasir=kvasir))
    assert not out.exists()


def test_lists_name_images_in_the_other_unicode_form(tmp_path, caplog):
    """And the same command says that it is done, unless a list has changed since."""
    names = [unicodedata.normalize("NFD", f"é{i}") for i in range(8)]
    kvasir = tmp_path / "kvasir"
    save_pairs(kvasir / "images", kvasir / "masks", names, ".jpg", ".jpg")
    (kvasir / "val.txt").write_text("\u00e90 \n\u00e91.jpg\n", encoding="utf-8")
    options = ConvertPolyps(out=tmp_path / "new" / "Dataset500_P", kvasir=kvasir)
    convert_polyps(options)
    made = read_dataset(options.out)
    assert made.test_sets == {"Kvasir": ["kvasir_\u00e90", "kvasir_\u00e91"]}
    with caplog.at_level("INFO"):
        convert_polyps(options)
    assert "is finished already" in caplog.text
    (kvasir / "val.txt").write_text("\u00e90\n", encoding="utf-8")
    with pytest.raises(UserError, match="found existing content"):
        convert_polyps(options)


def test_own_sequence_table_is_used(tmp_path):
    clinicdb = make_clinicdb(tmp_path / "clinicdb", range(1, 21))
    (clinicdb / "sequences.csv").write_text(
        "sequence,first,last\n" + "".join(f"{i},{4 * i - 3},{4 * i}\n" for i in range(1, 6))
    )
    convert_polyps(ConvertPolyps(out=tmp_path / "Dataset500_P", clinicdb=clinicdb))
    groups = json.loads((tmp_path / "Dataset500_P" / "groups.json").read_text())
    assert groups == {f"clinicdb_{i:03d}": f"clinicdb sequence {(i + 3) // 4}" for i in range(1, 21)}
    for split in json.loads((tmp_path / "Dataset500_P" / "splits_final.json").read_text()):
        frames = sorted(int(case.split("_")[1]) for case in split["val"])
        assert frames == list(range(frames[0], frames[0] + 4))
        assert frames[0] % 4 == 1
    for wrong in ("sequence,start\n1,1\n", "sequence,first,last\n"):
        (clinicdb / "sequences.csv").write_text(wrong)
        with pytest.raises(UserError, match="expected columns sequence,first,last"):
            convert_polyps(ConvertPolyps(out=tmp_path / "Dataset501_P", clinicdb=clinicdb))


@needs_shared_data
def test_published_sequences_agree_with_the_release():
    folder = SHARED / "data" / "cvc_clinicdb"
    assert read_sequences(None) == read_sequences(folder)
    with (folder / "sequences.csv").open() as file:
        last = [int(row["last"]) for row in csv.DictReader(file)]
    assert [first - 1 for first in read_sequences(None)[1:]] + [612] == last


@needs_shared_data
def test_real_sources_are_understood():
    data = SHARED / "data"
    pairs = [
        *pairs_of("kvasir", data / "kvasir_seg", ()),
        *pairs_of("clinicdb", data / "cvc_clinicdb", ()),
    ]
    assert Counter((pair.case_id.split("_")[0], pair.is_test) for pair in pairs) == {
        ("kvasir", False): 880,
        ("kvasir", True): 120,
        ("clinicdb", False): 612,
    }
    groups = split_groups(pairs, read_sequences(data / "cvc_clinicdb"))
    assert len(set(groups.values())) == 880 + 29
