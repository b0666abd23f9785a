"""What plans.json and checkpoints name is looked at before nnU-Net imports and calls it."""

from __future__ import annotations

import sys

import pytest

from dataset_conversion.system.errors import UserError
from nnunet_order.trusted_networks import TRUST_VARIABLE, check_architecture, find_trainer

SMP = "nnunet_order.networks.SMP"
UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
MODULE = (
    "from torch import nn\nimport os\n\nclass Net(nn.Module): pass\n\ndef build(**options): return Net()\n"
)


def architecture(name=UNET, imported=("conv_op", "nonlin"), **options) -> dict:
    layers = {"conv_op": "torch.nn.modules.conv.Conv2d", "nonlin": "torch.nn.LeakyReLU"}
    return {"network_class_name": name, "arch_kwargs": layers | options, "_kw_requires_import": imported}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's own, my_networks; -> the file that exists once it has been imported."""
    (tmp_path / "my_networks").mkdir()
    imported = tmp_path / "imported"
    code = f"import pathlib\npathlib.Path({str(imported)!r}).touch()\n"
    (tmp_path / "my_networks" / "__init__.py").write_text(code + "from my_networks.nets import Net\n")
    (tmp_path / "my_networks" / "nets.py").write_text(MODULE)
    (tmp_path / "my_networks" / "broken.py").write_text("raise RuntimeError('first\\nsecond')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    yield imported
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_networks"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "good",
    [
        architecture(),
        architecture(
            "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"
        ),  # moved
        architecture("nnunet_order.networks.ORDER", (), strides=[[1, 1]]),
        architecture("nnunet_order.networks.SigmoidHead", (), network="nnunet_order.networks.MKUNet"),
        architecture("nnunet_order.networks.Lite40K", (), input_map="affine"),
        architecture("nnunet_order.networks.SigmoidHead", (), network="nnunet_order.networks.LiteUNet"),
        architecture(SMP, (), decoder="Unet", encoder="tu-resnet18"),
        architecture("nnunet_order.networks.SigmoidHead", (), network=SMP),
        architecture(imported=("conv_op", "dropout_op"), dropout_op=None),
        architecture(
            imported=("conv_op", "block"),
            block="dynamic_network_architectures.building_blocks.residual.BasicBlockD",
        ),
    ],
    ids=lambda one: one["network_class_name"].rpartition(".")[2],
)
def test_networks_of_nnunet_and_ours_may_be_built(good):
    check_architecture(good)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            architecture("torch.hub.load"),
            r'found torch\.hub\.load, .* or nnunet_order\.networks; .*="torch\.hub"',
        ),
        (architecture("os.system"), r"found os\.system, "),
        (architecture("builtins.exec"), r"found builtins\.exec, "),
        (architecture("my_networks.Net"), r'found my_networks\.Net, .*="my_networks"'),
        (architecture("nnunet_order.networks_of_others.Net"), "found nnunet_order.networks_of_others"),
        (architecture("nnunet_order.networks.mk_unet.torch.hub.load"), "which would run here"),
        (architecture("dynamic_network_architectures.architectures.unet.nn.Module"), "which would run here"),
        (architecture("dynamic_network_architectures.architectures.unet.np"), "which would run here"),
        (architecture("nnunet_order.networks.mk_unet.check_strides"), "which would run here"),
        (architecture("nnunet_order.networks.NoSuchNet"), "which is not installed"),
        (architecture("nnunet_order.networks.SigmoidHead", network="torch.hub.load"), "found torch.hub.load"),
        (architecture(SMP, decoder="load"), "found decoder='load', expected one of"),
        (architecture(SMP, encoder="tu-hf-hub:a/b"), "found encoder='tu-hf-hub:a/b'"),
        (
            architecture("nnunet_order.networks.SigmoidHead", network=SMP, encoder="local-dir:x"),
            "found encoder='local-dir:x', expected tu- and the name",
        ),
        (architecture(nonlin="os.system"), r"found os\.system, .* or torch\.nn; "),
        (architecture(nonlin="torch.nn.functional.relu"), "which would run here"),
        (architecture(nonlin="torch.nn.modules.module.torch.hub.load"), "which would run here"),
        (architecture(imported=(), conv_op="my_networks.Net"), r"found my_networks\.Net"),  # nnUNetTrainerBN
        (architecture("$(touch x).\n"), r"found '\$\(touch x\)\.\\n', expected the dotted name"),
        (architecture(7), "found 7, expected the dotted name"),
        (architecture(nonlin=["os.system"]), "expected the dotted name"),
        (architecture(imported=("norm_op",)), "cannot be read .KeyError: 'norm_op'"),
        (architecture(imported=None), "cannot be read .TypeError"),
        ({}, "cannot be read .KeyError: 'arch_kwargs'"),
        ([], "cannot be read .TypeError"),
    ],
    ids=lambda one: None if isinstance(one, str) else str(one)[:60],
)
def test_nothing_else_is_imported(package, bad, message):
    with pytest.raises(UserError, match=message) as error:
        check_architecture(bad)
    assert "\n" not in str(error.value) and not package.exists()


@pytest.mark.parametrize("name", ["my_networks.Net", "my_networks.nets.Net", "my_networks.nets.build"])
def test_a_package_that_the_user_trusts(package, monkeypatch, name):
    monkeypatch.setenv(TRUST_VARIABLE, "others my_networks")
    check_architecture(architecture(name))
    for other in ("my_networks2.Net", "my_networks.nets.os.system", "torch.hub.load"):
        with pytest.raises(UserError, match=f'found {other}.*="others my_networks '):
            check_architecture(architecture(other))
    with pytest.raises(
        UserError, match=r"found my_networks\.broken\.Net, whose import ends in 'first second'"
    ):
        check_architecture(architecture("my_networks.broken.Net"))


def test_a_network_that_an_installed_trainer_names_itself(package):
    check_architecture(architecture("my_networks.Net"), own=["my_networks.Net"])
    with pytest.raises(UserError, match=r"found my_networks\.nets\.build"):
        check_architecture(architecture("my_networks.nets.build"), own=["my_networks.Net"])


@pytest.mark.parametrize(
    "name", ["os", "join", "nnUNetPredictor", "../x", "a.b", "", None, 3, ["nnUNetTrainer"]]
)
def test_trainers_are_trainers(name):
    with pytest.raises(UserError, match=r"found (no|the) trainer"):
        find_trainer(name)


def test_trainers_are_found():
    from nnunet_order.trainers import nnUNetTrainerORDER

    assert find_trainer("nnUNetTrainerORDER") is nnUNetTrainerORDER
