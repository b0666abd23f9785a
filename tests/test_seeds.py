"""Seeds that a generator would refuse after hours are refused by every verb before it starts."""

from __future__ import annotations

import pytest

import law_synth.verbs
import nnunet_order.verbs
from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.subset import ConvertSubset
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.verbs import call
from law_synth.base.options import InitBase
from law_synth.evaluation.options import Evaluate as EvaluateSynthesis
from law_synth.experiment.options import Demo as LawDemo
from law_synth.experiment.options import Experiment
from law_synth.generation.options import Generate
from law_synth.training.options import Train
from nnunet_order.comparing.options import Compare
from nnunet_order.options import Benchmark, Demo, Evaluate
from nnunet_order.small_network_trainer import environment_seed


def law_experiment(out, data, seed):
    config = data.parent / "config.toml"
    config.write_text(f"dataset = '{data}'\narms = ['real']\nseeds = [{seed}]\n")
    return Experiment(config, out=out)


VERBS = {
    "phantom": lambda out, data, seed: ConvertPhantom(out=out, seed=seed),
    "subset": lambda out, data, seed: ConvertSubset(dataset=str(data), out=out, seed=seed),
    "evaluate": lambda out, data, seed: Evaluate(str(data), (str(data / "labelsTr"),), out, seed=seed),
    "benchmark": lambda out, data, seed: Benchmark(seed=seed),
    "demo": lambda out, data, seed: Demo(out=out, seed=seed),
    "compare": lambda out, data, seed: Compare(str(data), out, "paper-table3", seeds=(0, seed), device="cpu"),
    "init-base": lambda out, data, seed: InitBase(out=out, source=str(data), seed=seed),
    "train": lambda out, data, seed: Train(dataset=str(data), out=out, seed=seed),
    "generate": lambda out, data, seed: Generate(out=out, seed=seed),
    "law-synth evaluate": lambda out, data, seed: EvaluateSynthesis(str(data), out=out, seed=seed),
    "law-synth demo": lambda out, data, seed: LawDemo(out=out, seed=seed),
    "experiment": law_experiment,
}

COMMANDS = {
    (command, name): verb
    for command, verbs in (
        ("nnunet-order convert", nnunet_order.verbs.CONVERSIONS),
        ("nnunet-order", nnunet_order.verbs.VERBS),
        ("law-synth", law_synth.verbs.VERBS),
    )
    for name, verb in verbs.items()
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "Dataset900_Phantom"
    convert_phantom(ConvertPhantom(out=folder, cases=6, test_cases=2, size=32))
    return folder


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
@pytest.mark.parametrize("verb", VERBS)
def test_a_seed_that_some_generator_refuses_is_found_before_the_work(data, tmp_path, monkeypatch, verb, seed):
    monkeypatch.chdir(tmp_path)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=f" {seed}, expected 0 to 4294967295; change it"):
        call(COMMANDS, VERBS[verb](tmp_path / "new" / "Dataset901_New", data, seed))
    assert not [*tmp_path.iterdir()]


def test_the_trainers_seed_too(monkeypatch):
    for seed in ("4294967296", "-1", "\N{SUPERSCRIPT TWO}", "1e3"):
        monkeypatch.setenv("NNUNET_ORDER_SEED", seed)
        with pytest.raises(UserError, match=r"NNUNET_ORDER_SEED.* expected"):
            environment_seed()
    monkeypatch.setenv("NNUNET_ORDER_SEED", "4294967295")
    assert environment_seed() == 4294967295
