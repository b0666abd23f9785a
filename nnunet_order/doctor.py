"""The verb `doctor`: what this installation looks like, and what to do about what is wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.terminal import verbatim
from nnunet_order.options import Doctor
from nnunet_order.registration import OPT_OUT, VARIABLE, shim_folder
from nnunet_order.registry import NETWORKS, RECOMMENDED, trainer_of

TRAINERS = tuple(map(trainer_of, sorted(NETWORKS, key=lambda name: name != RECOMMENDED)))
TRAIN = f"nnUNetv2_train DATASET 2d FOLD -tr {TRAINERS[0]}"
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
OLDEST_NNUNET = (2, 8, 0)


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` is empty where all is well."""

    subject: str
    found: str
    advice: str = ""


def doctor(options: Doctor) -> None:
    """Print a line per check. UserError: one failed."""
    options.check()
    findings = [*check_nnunet(), *check_trainers(), *check_folders(), check_device()]
    table = Table("", "check", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        mark = "[red]x" if finding.advice else "[green]ok"
        table.add_row(mark, *map(verbatim, (finding.subject, finding.found, finding.advice)))
    Console().print(table)
    wrong = [finding.subject for finding in findings if finding.advice]
    if wrong:
        raise UserError(
            f"found {len(wrong)} of {len(findings)} checks failed ({', '.join(wrong)}), expected none; do "
            "what the last column says"
        )


def check_nnunet() -> list[Finding]:
    """Which Python, which nnunetv2, and whether the commands on PATH belong to them."""
    findings = [Finding("python", f"{sys.version.split()[0]} at {sys.executable}")]
    specification = importlib.util.find_spec("nnunetv2")
    if specification is None:
        return [*findings, Finding("nnunetv2", "not installed", "pip install 'nnunetv2>=2.8'")]
    version = importlib.metadata.version("nnunetv2")
    place = str(Path(specification.origin).parent)
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    advice = (
        ""
        if numbers >= OLDEST_NNUNET
        else "pip install 'nnunetv2>=2.8': older ones know no external trainers"
    )
    findings.append(Finding("nnunetv2", f"{version} at {place}", advice))
    command = shutil.which("nnUNetv2_train")
    if command is None:
        advice = "activate the environment that holds nnunetv2"
    elif not runs_this_python(Path(command)):
        advice = f"this command runs another Python; put {sysconfig.get_path('scripts')} first in PATH"
    else:
        advice = ""
    return [*findings, Finding("nnUNetv2_train", command or "not on PATH", advice)]


def runs_this_python(command: Path) -> bool:
    """Whether a script that pip installed starts the Python that runs now."""
    here = Path(sys.executable).parent.resolve()
    start = command.read_bytes()[:1000]
    if start.startswith(b"#!"):  # for a long path, pip writes #!/bin/sh and an exec
        named = re.findall(rb"/[^\n'\"]*python[^\s'\"/]*", start)
        return any(Path(os.fsdecode(path)).parent.resolve() == here for path in named)
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    scripts = (Path(sysconfig.get_path("scripts", scheme)).resolve() for scheme in schemes)
    return command.resolve().parent in {here, *scripts}


def check_trainers() -> list[Finding]:
    """Whether a fresh Python, as nnU-Net's workers are, finds our trainers, and where from."""
    code = (
        "import os, sys; "
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "stdout, sys.stdout = sys.stdout, sys.stderr\n"
        f"found = [find(name) for name in {TRAINERS!r}]\n"
        "print(sys.modules[found[0].__module__].__file__, file=stdout)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    listed = os.environ.get(VARIABLE, "")
    if result.returncode == 0:
        return [
            Finding(VARIABLE, listed or "not set in this process"),
            Finding("trainers", f"{', '.join(TRAINERS)} from {result.stdout.strip()}"),
        ]
    if os.environ.get(OPT_OUT, "") not in ("", "0"):
        advice = f"unset {OPT_OUT}, which switches our registration off, or run: {export_line()}"
    else:
        advice = f"this environment processes no .pth files; run: {export_line()}"
    reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
    return [Finding(VARIABLE, listed or "not set"), Finding("trainers", f"not found: {reason}", advice)]


def export_line() -> str:
    """The shell line that registers the trainers by hand."""
    return f'export {VARIABLE}="${{{VARIABLE}:+${VARIABLE}{os.pathsep}}}{shim_folder()}"'


def check_folders() -> list[Finding]:
    """nnU-Net's three folders: set, there, writable."""
    findings = []
    for variable in NNUNET_FOLDERS:
        folder = os.environ.get(variable)
        if not folder:
            findings.append(Finding(variable, "not set", f"export {variable}=/a/folder/{variable}"))
        elif not Path(folder).is_dir():
            findings.append(Finding(variable, f"{folder}, which does not exist", f"mkdir -p {folder}"))
        elif not os.access(folder, os.W_OK):
            findings.append(
                Finding(variable, f"{folder}, not writable", f"chmod u+w {folder}, or choose another")
            )
        else:
            free = shutil.disk_usage(folder).free / 1e9
            findings.append(Finding(variable, f"{folder} ({free:.0f} GB free)"))
    return findings


def check_device() -> Finding:
    """What nnU-Net would train on, and the command to begin with."""
    import torch

    if torch.cuda.is_available():
        device, command = torch.cuda.get_device_name(), TRAIN
    elif torch.backends.mps.is_available():
        device, command = "Apple GPU", f"{TRAIN} -device mps"
    else:
        device, command = f"CPU, {torch.get_num_threads()} threads", f"{TRAIN}_30epochs -device cpu"
    return Finding("device", f"{device} (torch {torch.__version__}); train with: {command}")
