"""`nnunet-order demo`: all the way from drawn polyps to a table and a picture by stock nnU-Net commands."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dataset_conversion.user_error import UserError

logger = logging.getLogger(__name__)

DATASET = "Dataset990_Phantom"
TRAINERS = {"ORDER": "nnUNetTrainerORDER_5epochs", "MK-UNet": "nnUNetTrainerMKUNet_5epochs"}


@dataclass(frozen=True)
class Demo:
    """Draw polyps, train ORDER and MK-UNet with stock nnU-Net, predict, evaluate: about 3 minutes on 2 cores.

    Every step is a command that is printed and can be run by hand. A killed demo goes on where it was.
    """

    out: Path = Path("order_demo")
    """Folder for data, models and results."""
    cases: int = 64
    """Training images."""
    test_cases: int = 24
    """Test images."""
    size: int = 128
    """Image side in pixels."""
    seed: int = 0
    """Of the drawing and of the trainings."""

    def run(self) -> None:
        start = time.perf_counter()
        steps = DemoSteps(self)
        steps.check_settings()
        steps.convert()
        steps.plan()
        steps.train()
        steps.predict()
        steps.evaluate()
        logger.info("all of it took %.0f s", time.perf_counter() - start)


@dataclass(frozen=True)
class DemoSteps:
    """The commands of a demo; each is skipped when the file that it ends with is there."""

    demo: Demo

    @property
    def out(self) -> Path:
        return self.demo.out.resolve()

    @property
    def environment(self) -> dict[str, str]:
        """nnU-Net's variables: folders inside the demo's, few processes, one thread for each training."""
        folders = {
            f"nnUNet_{name}": str(self.out / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")
        }
        modest = {"nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "NNUNET_ORDER_SEED": str(self.demo.seed)}
        return {**os.environ, **folders, **modest}

    @property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def check_settings(self) -> None:
        """Record the demo's settings in demo.json. UserError: the folder holds something else."""
        settings = {name: value for name, value in asdict(self.demo).items() if name != "out"}
        record = self.out / "demo.json"
        if record.is_file():
            if (found := json.loads(record.read_text())) != settings:
                raise UserError(f"{self.out} holds a demo with {found}, not {settings}; choose another --out")
            return
        if self.out.is_dir() and any(self.out.iterdir()):
            raise UserError(f"{self.out} holds something other than a demo; choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(settings))

    def convert(self) -> None:
        raw = self.out / "nnUNet_raw" / DATASET
        if not (raw / "dataset.json").is_file():
            self._run(
                "draw phantoms",
                f"nnunet-order convert phantom --out {shlex.quote(str(raw))} --cases {self.demo.cases} "
                f"--test-cases {self.demo.test_cases} --size {self.demo.size} --seed {self.demo.seed}",
            )

    def plan(self) -> None:
        preprocessed = self.out / "nnUNet_preprocessed" / DATASET
        done = preprocessed / "preprocessed"
        if not done.is_file():
            self._run(
                "plan and preprocess",
                "nnUNetv2_plan_and_preprocess -d 990 -c 2d -np 1 -npfp 1 --verify_dataset_integrity",
            )
            done.touch()

    def train(self) -> None:
        commands = {}
        for name, trainer in TRAINERS.items():
            fold = self.model(trainer) / "fold_0"
            if not (fold / "validation" / "summary.json").is_file():
                resume = " --c" if (fold / "checkpoint_latest.pth").is_file() else ""
                commands[name] = f"nnUNetv2_train 990 2d 0 -tr {trainer} -device {self.device}{resume}"
        self._train_side_by_side(commands)

    def predict(self) -> None:
        test_images = shlex.quote(str(self.out / "nnUNet_raw" / DATASET / "imagesTs"))
        for name, trainer in TRAINERS.items():
            target = self.out / "predictions" / name
            if len(list(target.glob("*.png"))) < self.demo.test_cases:
                self._run(
                    f"predict with {name}",
                    f"nnUNetv2_predict -i {test_images} -o {shlex.quote(str(target))} -d 990 -c 2d -f 0 "
                    f"-tr {trainer} -device {self.device} -npp 1 -nps 1",
                )

    def evaluate(self) -> None:
        from nnunet_order.evaluate import Evaluate

        predictions = tuple(f"{name}={self.out / 'predictions' / name}" for name in TRAINERS)
        Evaluate(
            dataset=str(self.out / "nnUNet_raw" / DATASET),
            predictions=predictions,
            out=self.out / "evaluation",
        ).run()

    def model(self, trainer: str) -> Path:
        """nnU-Net's folder of a trained model."""
        return self.out / "nnUNet_results" / DATASET / f"{trainer}__nnUNetPlans__2d"

    def _run(self, title: str, command: str) -> None:
        from rich.console import Console

        logger.info("%s", command)
        with Console().status(title):
            log = self._log(title)
            with log.open("w") as stream:
                code = subprocess.run(
                    self._argv(command), env=self.environment, stdout=stream, stderr=subprocess.STDOUT
                ).returncode
        self._check(title, code, log)

    def _train_side_by_side(self, commands: dict[str, str]) -> None:
        """Trainings in parallel, one thread each; a progress bar per network, read from nnU-Net's output."""
        from rich.progress import Progress

        environment = {**self.environment, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"}
        running = {}
        for name, command in commands.items():
            logger.info("%s", command)
            log = self._log(f"train {name}")
            with log.open("w") as stream:
                process = subprocess.Popen(
                    self._argv(command), env=environment, stdout=stream, stderr=subprocess.STDOUT
                )
            running[name] = process, log
        try:
            with Progress() as progress:
                bars = {name: progress.add_task(f"train {name}", total=5) for name in running}
                while any(process.poll() is None for process, _ in running.values()):
                    time.sleep(0.5)
                    for name, (_, log) in running.items():
                        progress.update(
                            bars[name], completed=finished_epochs(log.read_text(errors="replace"))
                        )
        finally:  # Ctrl-C: no training is left behind
            for process, _ in running.values():
                process.terminate()
        for name, (process, log) in running.items():
            self._check(f"train {name}", process.wait(), log)

    def _log(self, title: str) -> Path:
        folder = self.out / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{title.replace(' ', '_')}.txt"

    @staticmethod
    def _argv(command: str) -> list[str]:
        """The command with its program from this Python's environment, which need not be on PATH."""
        program, *arguments = shlex.split(command)
        beside = Path(sys.executable).parent
        found = shutil.which(program, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
        if found is None:
            raise UserError(f"found no command {program}; is nnunetv2 installed? see nnunet-order doctor")
        return [found, *arguments]

    @staticmethod
    def _check(title: str, code: int, log: Path) -> None:
        if code:
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            raise UserError(
                f"{title} ended with exit code {code}: {' '.join(last)}; the whole output is in {log}"
            )


def finished_epochs(log: str) -> int:
    """Epochs that nnU-Net's log reports as ended."""
    return max((int(epoch) + 1 for epoch in re.findall(r"Epoch (\d+)(?=[\s\S]*?Epoch time)", log)), default=0)
