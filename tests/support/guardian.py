"""
End what a test session started, however the session ends.

Servers and Airflow processes run in sessions of their own, so that a signal from the terminal does not reach them, and
a session that is killed runs no fixture's teardown. ``guard`` names a folder to a small process beside the session;
once the session is gone, that process kills everything whose working directory lies below a named folder and removes
the folders. ``install`` has SIGINT and SIGTERM end the session in order, and at once if that takes too long.

``python -m tests.support.guardian`` is that process: it reads ``+folder`` and ``-folder`` lines.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.processes import end, working_below

if TYPE_CHECKING:
    from types import FrameType

#: After the first signal, the other processes of the session are signalled too, and later all of it is left.
FORWARD_AFTER, LEAVE_AFTER = 3.0, 10.0
#: Several signals within this time are one: ``timeout`` signals its child and then the child's group.
DEBOUNCE = 0.5


class _Session:
    """The guardian of this process, and the signals it received."""

    guardian: subprocess.Popen[bytes] | None = None
    interrupted_at: float | None = None


def guard(folder: Path) -> None:
    """Kill all processes below a folder and remove it once this process is gone."""
    _tell("+", folder)


def release(folder: Path) -> None:
    """Undo ``guard``."""
    _tell("-", folder)


def _tell(sign: str, folder: Path) -> None:
    guardian = _Session.guardian
    if guardian is None or guardian.poll() is not None:
        guardian = _Session.guardian = subprocess.Popen(
            [sys.executable, "-m", "tests.support.guardian"],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(guardian.wait, 30)
        atexit.register(guardian.stdin.close)  # type: ignore[union-attr]
    assert guardian.stdin
    # Unbuffered, so that a signal leaves no half of a line.
    os.write(guardian.stdin.fileno(), os.fsencode(f"{sign}{folder.resolve()}\n"))


def install() -> None:
    """End this session in order on SIGINT and SIGTERM, at once on the second signal."""
    owner = os.getpid()

    def interrupted(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != owner:
            signal.default_int_handler(number, frame)
        elif _Session.interrupted_at is None:
            _Session.interrupted_at = now
            threading.Thread(target=_insist, args=(128 + number,), daemon=True).start()
            raise KeyboardInterrupt
        elif now - _Session.interrupted_at > DEBOUNCE:
            _leave(128 + number)

    # Also where the caller ignores SIGINT, as a shell does for background jobs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)


def _insist(status: int) -> None:
    time.sleep(FORWARD_AFTER)
    # Workers of pytest-xdist, where the signal reached this process alone: execnet starts them, xdist names them.
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            command = " ".join(child.cmdline())
            if "execnet" in command or "pytest-xdist" in command:
                child.send_signal(signal.SIGINT)
    time.sleep(LEAVE_AFTER - FORWARD_AFTER)
    _leave(status)


def _leave(status: int) -> None:
    os.write(2, b"\nDid not end in time: leaving the rest to the guardian.\n")
    os._exit(status)


def _watch() -> None:
    """Collect the folders of the parent until it is gone, and clear them then."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    folders: set[Path] = set()
    pending = b""
    while os.getppid() == parent:
        # A forked child of the parent may hold the pipe open when the parent is gone.
        if not select.select([0], [], [], 0.5)[0]:
            continue
        read = os.read(0, 65536)
        if not read:
            break
        *lines, pending = (pending + read).split(b"\n")
        for line in lines:
            folder = Path(os.fsdecode(line[1:]))
            (folders.add if line[:1] == b"+" else folders.discard)(folder)
    if not folders:
        return
    # More than once: a process that is being killed may just have started another.
    for _ in range(10):
        left = {process for folder in folders for process in working_below(folder)}
        if not left:
            break
        end(left)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _watch()
