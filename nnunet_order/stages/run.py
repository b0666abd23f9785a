"""One process's hold on one stage: its lock, and the command that runs now."""

from __future__ import annotations

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
from datetime import datetime, timezone
from pathlib import Path

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json, write_json
from dataset_conversion.system.provenance import git_commit, machine
from nnunet_order.stages import guard
from nnunet_order.stages.stage_files import StageFiles
from nnunet_order.stages.stage_record import BegunStage, Machine, StageRecord, versions

logger = logging.getLogger(__name__)


class StageRun:
    """Runs a stage's commands; `poll` carries it on.

    After a kill, a stage that `resumes` goes on from what is there; any other starts over. Nothing that took
    days is thrown away because a command fails: the GPU may just have been busy.
    """

    def __init__(self, files: StageFiles, environment: Mapping[str, str]):
        """`environment`: all variables of its commands."""
        self.files, self.stage, self.environment = files, files.stage, environment
        self.seconds: float | None = None
        """What its commands took, once they have ended; None also where the stage was done before."""
        self._lock: int | None = None
        self._process: subprocess.Popen | None = None

    def start(self) -> bool:
        """Take the lock and begin or resume; False while another process, or its command, holds the stage.

        UserError: the outputs are there, but nothing says who made them.
        """
        import fcntl  # not on Windows, where `Pipeline` refuses to run

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
        attempts = self.files.attempts()
        self._resumed = attempts is not None and self.stage.resumes
        if self._resumed:
            self.files.remove_cut_checkpoints()
        else:
            self._make_room()
        self._attempts, self._finished = (attempts or 0) + 1, 0
        self._write_begun()
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
        self._finished += 1
        complete = self._finished == len(self.stage.commands)
        if code or (complete and self.files.missing_outputs()):
            raise self._error(code)
        if complete:
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

    def _write_begun(self) -> None:
        stage, attempts = self.stage, self._attempts
        begun = BegunStage(
            name=stage.name, key=self.files.key, outputs=list(stage.outputs), attempts=attempts
        )
        write_json(self.files.begun, as_json(begun))

    def _next_command(self) -> None:
        command = self.stage.commands[self._finished]
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
        record = StageRecord(
            name=stage.name,
            key=self.files.key,
            commands=list(stage.commands),
            environment=dict(stage.environment),
            inputs=stage.inputs,
            after=list(stage.after),
            outputs=list(stage.outputs),
            started=self._started.isoformat(timespec="seconds"),
            seconds=self.seconds,
            attempts=self._attempts,
            versions=versions(),
            commit=git_commit(),
            machine=Machine(**machine()),
        )
        write_json(self.files.record, as_json(record))
        self.files.begun.unlink(missing_ok=True)
        self._release()

    def _error(self, code: int) -> UserError:
        name, log = self.stage.name, self.files.log
        if code == 0:
            missing = ", ".join(self.files.missing_outputs())
            return UserError(f"stage {name} ended well but left no {missing}; its output is in {log}")
        remedy = f"its whole output is in {log}"
        if self._resumed:
            first = self.files.folder / self.stage.outputs[0]
            remedy += f"; if it cannot resume from {first}, remove that to start over"
        return UserError(
            f"stage {name} ended with exit code {code}: {telling_line(self.files.tail())}; {remedy}"
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
