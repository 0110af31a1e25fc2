"""Small tools for starting, watching and ending real processes in tests."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from typing import TYPE_CHECKING, TypeVar

import psutil

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable
    from pathlib import Path

T = TypeVar("T")

#: What every limit of a wait is multiplied by. Limits tell a fault from slowness, so they are large: a wait ends as
#: soon as its condition holds, and only a test that fails takes longer.
TIME_FACTOR = float(os.environ.get("WORKER_INSIGHT_TIME_FACTOR", "3"))

_given_ports: set[int] = set()


class WaitTimeoutError(AssertionError):
    """A condition did not come true in time."""


class MissingRequirementError(RuntimeError):
    """Something that a test needs is not installed on this machine."""

    def __init__(self, name: str, hint: str) -> None:
        super().__init__(f"{name} is not installed: {hint}")
        self.name = name


def slowness() -> float:
    """
    Return how many times slower than alone this process runs now, from 1 to 5.

    For the time-outs of what is under test, which a test waits out and a busy machine must not reach.
    """
    begun, worked = time.monotonic(), time.process_time()
    while time.process_time() - worked < 0.2:
        sum(range(1000))
    return min(5.0, max(1.0, (time.monotonic() - begun) / 0.2))


def wait_for(
    condition: Callable[[], T],
    timeout: float = 60,
    what: str = "the condition",
    *,
    interval: float = 0.2,
) -> T:
    """
    Call ``condition`` until it returns something truthy, and return that.

    ``timeout`` is what a quiet machine never needs; it is multiplied by ``TIME_FACTOR``.
    """
    timeout *= TIME_FACTOR
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise WaitTimeoutError(f"waited {timeout:g} s for {what}; last seen: {value!r}")
        time.sleep(interval)


def free_port() -> int:
    """
    Return a port that nothing listens on, and never the same one twice.

    It lies outside the range from which the kernel takes ports for outgoing connections, so that none of those can
    take it before the server does.
    """
    while True:
        port = random.randrange(20000, 32000)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port


def accepts_connections(port: int) -> bool:
    """Tell whether something listens on this port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tail(path: Path, lines: int = 40) -> str:
    """Return the last lines of a log file, or nothing if there is no such file."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants, as far as they are still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def working_below(folder: Path) -> list[psutil.Process]:
    """
    Return the processes whose working directory lies in a folder.

    This finds what no process tree and no process group has any more: task processes start sessions of their own and
    outlive a parent that was killed.
    """
    prefix = str(folder.resolve())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            cwd = process.cwd()
            if process.pid != os.getpid() and (cwd == prefix or cwd.startswith(prefix + os.sep)):
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process], sig: int = signal.SIGKILL, timeout: float = 10) -> None:
    """
    Signal processes and wait until they are gone.

    A zombie is gone: its parent may be an init that collects no orphans, as in many containers.
    """
    gone = list(processes)
    for process in gone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(sig)
    deadline = time.monotonic() + timeout
    while any(map(_runs, gone)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def stop(process: subprocess.Popen[bytes], sig: int = signal.SIGTERM, timeout: float = 10) -> None:
    """Ask a process to end, and kill it if it does not."""
    if process.poll() is None:
        process.send_signal(sig)
        with contextlib.suppress(Exception):
            process.wait(timeout)
    if process.poll() is None:
        end(tree(process.pid))
    process.wait(timeout)
