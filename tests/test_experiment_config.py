"""Configurations of `law-synth experiment`: what is refused, and that tables become the commands they say."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import tyro

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json
from law_synth.evaluation.options import Evaluate
from law_synth.experiment.command_line import command_line
from law_synth.experiment.config import PATHS, TABLES, make_config, read_config
from law_synth.experiment.demo import demo, demo_content, draw_command
from law_synth.experiment.options import Demo
from law_synth.experiment.presets import PRESETS, SCALES, preset_content
from law_synth.generation.options import Generate
from law_synth.training.options import DEFAULT_BASE, Train
from nnunet_order.stages.experiment_record import ExperimentRecord, read_experiment


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fractoin": 0.5}, "found fractoin, expected an option such as fraction"),
        ({"seeds": "a"}, "kvasir.toml: found str at seeds, expected array; correct it"),
        ({"seeds": [0, None]}, r"found null at seeds\[1\], expected int"),
        ({"rounds": [1]}, "found array at rounds, expected int"),
        ({"rounds": True}, "found bool at rounds, expected int"),
        ({"seeds": [1, 1]}, "found seeds .1, 1., expected one or more, each once"),
        ({"fraction": 0}, "found fraction 0.0, expected above 0, at most 1; change it"),
        ({"arms": ["real", "laww"]}, "found the arm laww, expected one of real, uniform"),
        ({"train": {"max_stepz": 3}}, r"\[train\]: found max_stepz, expected an option such as max_steps"),
        ({"train": {"seed": 3}}, r"\[train\]: found seed, expected only"),
        ({"train": {"weighting": "law"}}, r"\[train\]: found weighting, expected only"),
        ({"train": {"w_max": "much"}}, r"\[train\]: found str at w_max, expected float"),
        ({"arm": {"mine": {"weighting": "lwa"}}}, r"\[arm.mine\]: .*lwa"),
        ({"synthetic_per_real": 0}, "found synthetic_per_real 0.0, expected above 0"),
        (
            {"synthetic_per_real": 1, "generate": {"samples": 9}},
            "found synthetic_per_real and samples",
        ),
        (
            {"base": "base", "init_base": {}},
            r"kvasir.toml: found base and \[init_base\], expected one of them",
        ),
        ({"rounds": 2}, "found rounds 2 without min_agreement"),
        (
            {"rounds": 2, "judge": "nnUNetTrainerMKUNet", "generate": {"min_agreement": 0.5}},
            "found rounds 2 and the judge nnUNetTrainerMKUNet, expected one of the segmenters",
        ),
        ({"segmenters": [], "generate": {"min_agreement": 0.5}}, "expected a trainer that judges"),
        ({"train": 3}, "found int at train, expected object"),
        ({"arm": ["x"]}, "found array at arm, expected object"),
        ({"arm": {"law": 2}}, r"found int at arm\[\.\.\.\], expected object"),
        ({"arm": {"mine": {"weighting": "law"}}}, r"found a table \[arm.mine\], expected mine among arms"),
        ({"arm": {"real": {"weighting": "law"}}}, r"found a table \[arm.real\]"),
        ({"arms": ["mine"], "arm": {"mine": {"dice": False}}}, r"\[arm.mine\]: found no weighting"),
        ({"arms": ["a b"], "arm": {"a b": {"weighting": "law"}}}, "found the arm a b, expected letters"),
        ({"arms": ["law-round2"], "arm": {"law-round2": {"weighting": "law"}}}, "found the arm law-round2"),
        ({"arms": ["real", "LAW", "law"], "arm": {"LAW": {"weighting": "law"}}}, "the arms 'LAW' and 'law'"),
        ({"arms": ["real"], "segmenters": []}, "found neither synthetic arms nor segmenters"),
    ],
)
def test_bad_configurations_end_in_one_line(content, message):
    with pytest.raises(UserError, match=message) as error:
        make_config({"dataset": "500", **content}, "kvasir.toml")
    assert "\n" not in str(error.value)


def test_a_file_is_read_with_its_tables(tmp_path):
    path = tmp_path / "kvasir.toml"
    path.write_text("""
dataset = "500"
arms = ["real", "law", "no-dice"]
folds = [0, "all"]
[init_base]
vae_steps = 10
[train]
max_steps = 40
[arm.no-dice]
weighting = "law"
dice = false
joint = true
""")
    config = read_config(path)
    assert config.folds == (0, "all") and config.synthetic_arms == ["law", "no-dice"]
    assert config.train_options("law") == {"max_steps": 40, "weighting": "law"}
    assert (
        config.train_options("no-dice")["dice"] is False
        and config.train_options("no-dice")["max_steps"] == 40
    )
    path.write_text("dataset = 500 = 501")
    with pytest.raises(UserError, match="malformed"):
        read_config(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path / "other.toml")


def test_quoted_numbers_are_numbers_and_files_lie_beside_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn").mkdir()
    content = {
        "dataset": "500",
        "arms": ["real", "masks"],
        "train": {"learning_rate": "3e-4", "max_steps": "400"},
        "generate": {"min_agreement": "0.5", "samples": "40", "masks": "drawn"},
        "arm": {"masks": {"weighting": "law", "w_max": "4"}},  # named as an option that names a folder
    }
    config = make_config(content, "kvasir.toml")
    assert config.train == {"learning_rate": 3e-4, "max_steps": 400}
    assert config.generate == {"min_agreement": 0.5, "samples": 40, "masks": str(tmp_path / "drawn")}
    assert config.arm == {"masks": {"weighting": "law", "w_max": 4.0}}
    Train(dataset="500", **config.train_options("masks")).check()


def test_an_arm_named_after_a_weighting_has_it_whatever_else_it_changes():
    config = make_config({"dataset": "500", "arm": {"ratio": {"learning_rate": 1e-4}}}, "kvasir.toml")
    assert config.train_options("ratio") == {"weighting": "ratio", "learning_rate": 1e-4}


def test_all_options_that_name_files_are_known():
    for kind, ours in TABLES.values():
        files = {field.name for field in fields(kind) if "Path" in str(field.type)} - {*ours}
        assert files <= {*PATHS}, kind


@pytest.mark.parametrize(
    ("verb", "positional"),
    [
        (Train(dataset="my data", fold="all", w_max=math.inf, dice=False, joint=True, out=Path("a b")), ()),
        (Generate(out=Path("out"), with_real=True, min_agreement=0.5), ()),
        (Evaluate(dataset="raw/Dataset501", batch_size=4), ("dataset",)),
    ],
)
def test_a_command_line_means_its_verb(verb, positional):
    words = shlex.split(command_line("law-synth verb", verb, positional))
    assert words[:2] == ["law-synth", "verb"]
    assert tyro.cli(type(verb), args=words[2:]) == verb


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_differ_between_scales_in_sizes_and_steps_only(preset):
    configs = {scale: make_config(preset_content(preset, scale, "500"), preset) for scale in SCALES}
    for config in configs.values():
        assert config.arms == configs["paper"].arms and config.arm == configs["paper"].arm
        for arm in config.synthetic_arms:
            Train(dataset="500", **config.train_options(arm)).check()
    assert configs["paper"].train == {}  # the defaults of law-synth train are the paper's


@pytest.mark.parametrize("kind", ["endoscopy", "ct"])
def test_the_demo_is_an_ordinary_experiment(tmp_path, kind):
    options = Demo(out=tmp_path, kind=kind, seed=3)
    config = make_config(demo_content(options), "demo")
    assert config.seeds == (3,) and config.reference == "real" and config.synthetic_arms == ["law"]
    assert any("ORDER" in trainer for trainer in config.segmenters)
    assert any("ORDER" not in trainer for trainer in config.segmenters)
    Train(dataset=config.dataset, **config.train_options("law")).check()
    command = draw_command(options)
    words = shlex.split(command)
    assert words[words.index("--out") + 1] == Path(config.dataset).name and "--seed 3" in command
    assert ("--kind ct --slices 10" in command) == (kind == "ct")


def test_the_demo_of_pictures_has_no_slices(tmp_path):
    with pytest.raises(UserError, match="found --slices 8 with pictures"):
        demo(Demo(out=tmp_path / "demo", slices=8))
    assert not (tmp_path / "demo").exists()


def test_paths_are_those_of_the_place_where_the_command_is_given(tmp_path, monkeypatch):
    """The stages run elsewhere, in the experiment's folder."""
    (tmp_path / "sd15").mkdir()
    (tmp_path / "my masks").mkdir()
    monkeypatch.chdir(tmp_path)
    content = {"dataset": "500", "base": "sd15", "generate": {"masks": "my masks"}}
    config = make_config(content, "x.toml")
    assert config.base == str(tmp_path / "sd15") and config.generate["masks"] == str(tmp_path / "my masks")
    assert make_config({"dataset": "500", "base": "someone/model"}, "x.toml").base == "someone/model"


def test_the_base_on_record_is_the_one_that_is_used():
    assert make_config({"dataset": "500"}, "x.toml").base == DEFAULT_BASE
    own = make_config({"dataset": "500", "init_base": {}}, "x.toml")
    assert own.base is None and own.init_base == {}


def test_a_switch_that_settles_itself_takes_its_value(tmp_path):
    for given in (True, False):
        config = make_config({"dataset": "500", "generate": {"original_size": given}}, "x.toml")
        assert config.generate == {"original_size": given}
        words = command_line("law-synth generate", Generate(out=Path("o"), **config.generate)).split()
        assert words[-2:] == ["--original-size", str(given)]
        assert tyro.cli(Generate, args=words[2:]).original_size is given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmenters": ["nnUNetTrainerORDER"] * 2}, "found segmenters .* each once"),
        ({"seeds": [0, -1]}, "found the seed -1"),
        ({"synthetic_per_real": float("inf")}, "found synthetic_per_real inf"),
        ({"generate": {"masks": "nowhere"}}, "masks = .*nowhere, which is not there"),
    ],
)
def test_what_would_fail_at_its_stage_is_refused_at_once(change, message):
    with pytest.raises(UserError, match=message):
        make_config({"dataset": "500", **change}, "x.toml")


def test_an_infinite_bound_of_an_earlier_version_is_read(tmp_path):
    """Table 4 of the paper has arms without a highest weight; JSON has no infinity."""
    record = ExperimentRecord(
        title="t",
        config={"arm": {"delta": {"w_max": math.inf}}},
        real="r",
        on="test",
        reference="real",
        **{name: [] for name in ("arms", "trainers", "folds", "seeds", "segmentations", "syntheses")},
    )
    (tmp_path / "experiment.json").write_text(json.dumps(as_json(record), indent=2))
    assert "Infinity" in (tmp_path / "experiment.json").read_text()
    assert read_experiment(tmp_path).config == {"arm": {"delta": {"w_max": "inf"}}}
