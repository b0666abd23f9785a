"""One process's hold on one stage: its lock, its records, and the command that runs now."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import write_json
from dataset_conversion.system.names import check_inside
from dataset_conversion.system.provenance import git_commit, machine
from nnunet_order.stages import guard
from nnunet_order.stages.stage import Stage, other_versions, versions

logger = logging.getLogger(__name__)

TAIL = 1 << 16  # bytes at the end of a log in which to look for what it says last


@dataclass(frozen=True)
class StageFiles:
    """A stage's records and log in the experiment's folder."""

    folder: Path
    stage: Stage
    key: str

    @property
    def record(self) -> Path:
        return self.folder / "stages" / f"{self.stage.name}.json"

    @property
    def begun(self) -> Path:
        return self.folder / "stages" / f"{self.stage.name}.begun.json"

    @property
    def lock(self) -> Path:
        return self.folder / "stages" / f"{self.stage.name}.lock"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.stage.name}.txt"

    @property
    def aside(self) -> Path:
        """Outputs on which a command could not go on, while it is tried from scratch."""
        return self.folder / "stages" / f"{self.stage.name}.before"

    def is_done(self) -> bool:
        """Whether it was finished as it stands now and its outputs are still there."""
        return _read(self.record).get("key") == self.key and not self.missing_outputs()

    def other_versions(self) -> list[str] | None:
        """As `stage.other_versions`, of the versions that finished it."""
        return other_versions(_read(self.record).get("versions"))

    def forget(self) -> None:
        """Let a finished stage count as not done; its record still names the outputs to remove."""
        write_json(self.record, _read(self.record) | {"key": None})

    def has_begun(self) -> bool:
        """Whether it was started as it stands now, and neither finished nor changed since."""
        return _read(self.begun).get("key") == self.key and not self.record.exists()

    def missing_outputs(self) -> list[str]:
        return [output for output in self.stage.outputs if not (self.folder / output).exists()]

    def clear(self) -> None:
        """Remove what the stage wrote, also under the names that an earlier form of it gave.

        UserError: a record names something outside of the experiment's folder.
        """
        outputs = {check_inside(output, self.folder) for output in self.stage.outputs}
        for path in (self.record, self.begun):
            recorded = _read(path).get("outputs", [])
            for output in recorded if isinstance(recorded, list) else [recorded]:
                outputs.add(check_inside(output, path))
        for output in outputs:
            _remove(self.folder / output)
        self.record.unlink(missing_ok=True)
        self.begun.unlink(missing_ok=True)
        _remove(self.aside)

    def set_aside(self, progress: dict) -> None:
        """Move the outputs away, unless older ones already are: those have come further."""
        record, outputs = self.aside / "begun.json", [self.folder / output for output in self.stage.outputs]
        if not record.exists():
            there = [place for place, output in enumerate(outputs) if output.exists()]
            write_json(record, progress | {"aside": there})
        for place in _read(record)["aside"]:  # a kill may have come between two of them
            if outputs[place].exists() and not (self.aside / str(place)).exists():
                os.replace(outputs[place], self.aside / str(place))
        for output in outputs:
            _remove(output)

    def put_back(self) -> None:
        """Undo `set_aside`, if anything was."""
        if not self.aside.exists():
            return
        for output in self.stage.outputs:
            _remove(self.folder / output)
        for place, output in enumerate(self.stage.outputs):
            if (self.aside / str(place)).exists():
                os.replace(self.aside / str(place), self.folder / output)
        os.replace(self.aside / "begun.json", self.begun)
        _remove(self.aside)

    def tail(self) -> str:
        """The end of its log since the last command was started."""
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - TAIL))
            text = stream.read().decode(errors="replace").replace("\r", "\n")
        return text.rpartition("\n=== ")[2]


class StageRun:
    """Runs a stage's commands; `poll` carries it on.

    A stage that was begun goes on; if that fails, its outputs are set aside and it runs once more from
    scratch: a kill in the middle of a foreign program's write may leave a file on which nothing can go on. If
    that fails, too, the files were not to blame but, say, a busy GPU: they are put back.
    """

    def __init__(self, files: StageFiles, environment: Mapping[str, str]):
        """`environment`: all variables of its commands."""
        self.files, self.stage, self.environment = files, files.stage, environment
        self.seconds: float | None = None
        """What its commands took, once they have ended; None also where the stage was done before."""
        self._lock: int | None = None
        self._process: subprocess.Popen | None = None

    def start(self) -> bool:
        """Take the lock and begin, or go on; False while another process, or its command, holds the stage.

        UserError: the outputs are there, but nothing says who made them.
        """
        import fcntl  # not on Windows, where `Experiment` refuses to run

        self.files.lock.parent.mkdir(parents=True, exist_ok=True)
        self.files.log.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.files.lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            return False
        except OSError as error:
            self._release()
            raise UserError(
                f"{self.files.lock}: cannot be locked ({error.strerror}), expected a file system with flock; "
                "choose another --out"
            ) from error
        if self.files.is_done():
            return True
        begun = _read(self.files.begun) if self.files.has_begun() else {}
        if not begun:
            self._make_room()
        self._resumed = bool(begun)
        self._attempts, self._finished = begun.get("attempts", 0) + 1, begun.get("finished_commands", 0)
        self._started, self._clock = datetime.now(timezone.utc), time.monotonic()
        self._next_command()
        return True

    def poll(self) -> bool:
        """Whether the stage is done; starts its next command. UserError: a command failed."""
        if self._process is None:  # it was done before
            self._release()
            return True
        code = self._process.poll()
        if code is None:
            return False
        self._process = None
        if code == 0:
            self._finished += 1
        complete = self._finished == len(self.stage.commands)
        failed = bool(code) or (complete and bool(self.files.missing_outputs()))
        if failed and self._resumed:
            logger.info("%s cannot go on: from scratch", self.stage.name)
            self.files.set_aside(self._progress)
            self._resumed, self._finished, self._attempts = False, 0, self._attempts + 1
        elif failed:
            self.files.put_back()
            raise self._error(code)
        elif complete:
            self._complete()
            return True
        self._next_command()
        return False

    def note(self) -> str:
        """How far the command is by its output: nnU-Net's epochs, law-synth's "120 of 400 (30 %)"."""
        told = re.findall(r"\bEpoch \d+|\d+ of \d+(?= \(\d+ %\))", self.files.tail())
        return told[-1].lower() if told else ""

    def end(self) -> None:
        """Kill the command with its whole family and let go of the stage."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._release()

    @property
    def _progress(self) -> dict:
        """Content of the record of a stage that has begun."""
        begun = {"name": self.stage.name, "key": self.files.key, "outputs": list(self.stage.outputs)}
        return begun | {"attempts": self._attempts, "finished_commands": self._finished}

    def _make_room(self) -> None:
        files = self.files
        if files.record.exists() or files.begun.exists():
            files.clear()
            return
        if self.stage.replaces_outputs:
            return
        for output in self.stage.outputs:
            if (files.folder / output).exists():
                raise UserError(
                    f"{files.folder / output}: found it, but no record of stage {self.stage.name} in "
                    f"{files.record.parent}, expected nothing there; remove it or choose another folder"
                )

    def _next_command(self) -> None:
        command = self.stage.commands[self._finished]
        write_json(self.files.begun, self._progress)
        program, *arguments = shlex.split(command)
        family = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())]
        argv = [*family, find_program(program), *arguments]
        logger.info("%s", command)
        with self.files.log.open("ab") as log:
            log.write(
                f"\n=== {datetime.now(timezone.utc).isoformat(timespec='seconds')} {command}\n".encode()
            )
            log.flush()
            self._process = subprocess.Popen(
                argv,
                cwd=self.files.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self._lock],
            )

    def _complete(self) -> None:
        stage = self.stage
        self.seconds = round(time.monotonic() - self._clock, 1)  # of the last attempts, since `started`
        record = {
            "name": stage.name,
            "key": self.files.key,
            "commands": list(stage.commands),
            "environment": dict(stage.environment),
            "inputs": stage.inputs,
            "after": list(stage.after),
            "outputs": list(stage.outputs),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "attempts": self._attempts,
            "versions": versions(),
            "commit": git_commit(),
            "machine": machine(),
        }
        write_json(self.files.record, record)
        self.files.begun.unlink(missing_ok=True)
        _remove(self.files.aside)
        self._release()

    def _error(self, code: int) -> UserError:
        if code == 0:
            missing = ", ".join(self.files.missing_outputs())
            return UserError(
                f"stage {self.stage.name} ended well but left no {missing}; its output is in {self.files.log}"
            )
        return UserError(
            f"stage {self.stage.name} ended with exit code {code}: {telling_line(self.files.tail())}; its "
            f"whole output is in {self.files.log}"
        )

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def find_program(name: str) -> str:
    """Path of a program of this Python's environment, which need not be on PATH, or else of PATH's.

    UserError: there is none.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise UserError(
            f"found no program {name}, expected it beside {sys.executable}; see nnunet-order doctor"
        )
    return str(Path(found).absolute())  # the command runs in another folder


def telling_line(output: str) -> str:
    """The last line of a failed command's output that names an error, or else its last line."""
    lines = [line.strip() for line in output.splitlines()[1:] if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(error|Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["no output"])[-1]


def _read(path: Path) -> dict:
    """A record; empty when there is none, or none that is whole."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
