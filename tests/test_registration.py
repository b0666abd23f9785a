"""Our trainers are found right after an install, in fresh and spawned processes; an uninstall is clean."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from nnunet_order import registration
from nnunet_order.registry import NETWORKS, TRAINERS, trainer_of

REPOSITORY = Path(__file__).resolve().parents[1]

FIND = """
import multiprocessing, os, pickle, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

def look(name):
    return pickle.loads(pickle.dumps(find(name))).__module__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = [look("nnUNetTrainerORDER"), *pool.map(look, ["nnUNetTrainerMKUNet"])]
    # The optimizer's package imports transformers, and all of nnU-Net's workers import the trainers.
    print("FOUND", *found, "pytorch_optimizer" in sys.modules)
"""


STATE = f"import os; print(os.environ.get({registration.VARIABLE!r}))"


def registration_folder(packages: Path, editable: bool) -> str:
    """Where the shim lies after an install."""
    return str((REPOSITORY if editable else packages) / "nnunet_order" / "ext_trainer")


def clean_environment(**variables: str) -> dict[str, str]:
    drop = (registration.VARIABLE, registration.OPT_OUT, "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in drop} | variables


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A virtual environment that sees our dependencies, but not us. -> (its python, its site-packages)"""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    python = root / ("Scripts" if os.name == "nt" else "bin") / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    )
    # A folder named in a .pth file is searched, but its own .pth files are not processed.
    (packages / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python, packages


def pip(python: Path, *arguments: object) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, *map(str, arguments), *options],
        check=True,
        env=clean_environment(),
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_trainers_are_found_after_install_and_gone_after_uninstall(fresh, tmp_path, editable):
    python, packages = fresh
    script = tmp_path / "find.py"
    script.write_text(FIND)

    def look(*command: object, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [python, *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean_environment(**variables),
        )

    before = sorted(path.name for path in packages.iterdir())
    source = ["--editable", "."] if editable else ["."]
    pip(python, "install", "--no-deps", "--no-build-isolation", "--ignore-installed", *source)
    found = look(script)
    assert "FOUND nnunet_order.trainers nnunet_order.trainers False" in found.stdout, found.stderr
    # nnU-Net looks nowhere else, as doctor's test in test_cli.py shows; asking it again takes 20 seconds.
    assert look("-c", STATE).stdout.strip() == registration_folder(packages, editable)
    assert look("-c", STATE, **{registration.OPT_OUT: "1"}).stdout == "None\n"
    pip(python, "uninstall", "--yes", "law-order")
    assert sorted(path.name for path in packages.iterdir()) == before
    assert look("-c", STATE).stdout == "None\n"


def test_register_appends_once_and_keeps_the_users_folders(monkeypatch):
    monkeypatch.setenv(registration.VARIABLE, f"/mine{os.pathsep}/yours")
    registration.register()
    registration.register()
    assert os.environ[registration.VARIABLE].split(os.pathsep) == [
        "/mine",
        "/yours",
        registration.shim_folder(),
    ]


START = """
import os, sys, site
before = set(sys.modules)
site.addsitedir(sys.argv[1])
new = [name for name in set(sys.modules) - before if not name.startswith("encodings")]  # reads .pth files
print(os.environ.get("nnUNet_extTrainer"), sorted(new))
"""


def start(site_folder: Path, *flags: str, code: str = START, **variables: str) -> str:
    """What a Python prints that processes the .pth file of a folder; nothing on stderr."""
    command = [sys.executable, "-S", *flags, "-c", code, site_folder]
    place = site_folder.parent  # which is on the path of -c
    done = subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(**variables), cwd=place
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.fixture
def site_folder(tmp_path) -> Path:
    """A folder as pip leaves site-packages, with our package and the .pth file."""
    folder = tmp_path / "site packages"
    shutil.copytree(REPOSITORY / "nnunet_order", folder / "nnunet_order")
    shutil.copy(REPOSITORY / "packaging" / "nnunet_order.pth", folder)
    return folder


@pytest.mark.parametrize("flags", [(), ("-I",), ("-E",)])
def test_start_up_registers_and_imports_nothing(site_folder, flags):
    shim = str(site_folder / "nnunet_order" / "ext_trainer")
    assert start(site_folder, *flags) == f"{shim} []"
    mine = os.pathsep.join(["/mine", "/yours"])
    assert start(site_folder, *flags, nnUNet_extTrainer=mine) == f"{mine}{os.pathsep}{shim} []"
    assert start(site_folder, *flags, nnUNet_extTrainer=shim) == f"{shim} []"  # in worker processes
    assert start(site_folder, *flags, NNUNET_ORDER_NO_AUTOLOAD="0") == f"{shim} []"
    assert start(site_folder, *flags, NNUNET_ORDER_NO_AUTOLOAD="1") == "None []"


def test_start_up_finds_the_package_that_would_be_imported(site_folder, tmp_path):
    """An editable install has its folder in another .pth file, whose name is an earlier one."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (site_folder / "nnunet_order").rename(checkout / "nnunet_order")
    assert start(site_folder) == "None []"
    (site_folder / "_editable_impl_law_order.pth").write_text(f"{checkout}\n")
    assert start(site_folder) == f"{checkout / 'nnunet_order' / 'ext_trainer'} []"
    imported = "import nnunet_order.registration as r; print(r.shim_folder() == os.environ[r.VARIABLE])"
    assert start(site_folder, code=START + imported).endswith("True")


def test_start_up_is_silent_whatever_is_left_of_the_package(site_folder):
    """Code of the package is not looked at, so what is broken in it cannot show."""
    package = site_folder / "nnunet_order"
    shim = f"{package / 'ext_trainer'} []"
    for name in ("registration.py", "trainers.py", "__init__.py"):
        (package / name).write_text("this is no Python")
    assert start(site_folder) == shim
    for name in ("registration.py", "__init__.py"):
        (package / name).unlink()
    assert start(site_folder) == shim
    (package / "ext_trainer" / "nnunet_order_shim.py").unlink()
    assert start(site_folder) == "None []"
    shutil.rmtree(package / "ext_trainer")
    assert start(site_folder) == "None []"
    shutil.rmtree(package)
    assert start(site_folder) == "None []"
    package.write_text("a file")
    assert start(site_folder) == "None []"
    odd = START.replace("before", "sys.path.insert(0, None)\nbefore", 1)  # a fault of somebody else's
    assert start(site_folder, code=odd) == "None []"


def test_registration_does_not_import_torch():
    code = (
        "import sys, nnunet_order.registration; assert not {'torch', 'numpy', 'nnunetv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=clean_environment())


def test_the_shim_lists_every_trainer():
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_order import trainers

    registration.register()
    names = [name for name in vars(trainers) if name.startswith("nnUNetTrainer") and name != "nnUNetTrainer"]
    assert sorted(names) == sorted(TRAINERS) and {trainer_of(name) for name in NETWORKS} <= {*names}
    for name in names:
        found = recursive_find_trainer_class_by_name(name)
        assert found is getattr(trainers, name) and pickle.loads(pickle.dumps(found)) is found
        assert found.__doc__ == TRAINERS[name].about and found.__module__ == trainers.__name__
