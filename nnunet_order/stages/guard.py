"""Run one command and take its whole family along when the experiment dies, also by kill -9.

Started as a script, with the experiment's pid and the command, at the head of a process group of its own.
Nothing but the standard library: it must start in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # of Linux's prctl: a signal to this process when its parent dies


def main(parent: int, command: list[str]) -> int:
    """Exit code of `command`; every process of the group is killed when `parent` dies or on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be watched
        return 1
    return subprocess.call(command, close_fds=False)  # the command holds the stage's lock, too


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)
