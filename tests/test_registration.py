"""Our trainers are found right after an install, in fresh and spawned processes; an uninstall is clean."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from nnunet_order import registration

REPOSITORY = Path(__file__).resolve().parents[1]

FIND = """
import multiprocessing, os, pickle
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

def look(name):
    return pickle.loads(pickle.dumps(find(name))).__module__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("FOUND", look("nnUNetTrainerORDER"), *pool.map(look, ["nnUNetTrainerMKUNet"]))
"""


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

    def look(**variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [python, script], capture_output=True, text=True, cwd=tmp_path, env=clean_environment(**variables)
        )

    before = sorted(path.name for path in packages.iterdir())
    source = ["--editable", "."] if editable else ["."]
    pip(python, "install", "--no-deps", "--no-build-isolation", "--ignore-installed", *source)
    found = look()
    assert "FOUND nnunet_order.trainers nnunet_order.trainers" in found.stdout, found.stderr
    switched_off = look(**{registration.OPT_OUT: "1"})
    assert "Could not find requested nnunet trainer" in switched_off.stderr
    pip(python, "uninstall", "--yes", "law-order")
    assert sorted(path.name for path in packages.iterdir()) == before
    assert look().returncode != 0


def test_register_appends_once_and_keeps_the_users_folders(monkeypatch):
    monkeypatch.setenv(registration.VARIABLE, f"/mine{os.pathsep}/yours")
    registration.register()
    registration.register()
    assert os.environ[registration.VARIABLE].split(os.pathsep) == [
        "/mine",
        "/yours",
        registration.shim_folder(),
    ]


def test_register_never_raises(monkeypatch):
    monkeypatch.setattr(registration, "os", None)
    registration.register()


def test_start_up_line_is_silent_without_the_package(tmp_path):
    """An editable install whose folder was removed must not disturb every Python start."""
    line = (REPOSITORY / "packaging" / "nnunet_order.pth").read_text()
    code = f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n{line}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr == "" == done.stdout


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
    assert len(names) >= 9
    for name in names:
        assert recursive_find_trainer_class_by_name(name) is getattr(trainers, name)
