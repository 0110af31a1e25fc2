"""This process, its ancestors and the processes beside it, as the operating system shows them.

On Linux they are read from ``/proc`` directly (proc(5)): psutil is not loaded in every task process, and its
start times are computed from the wall clock, so that a correction of the clock would change them.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


_PROC = "/proc"
_MOST_ANCESTORS = 64
_MOST_THREADS = 128
_MOST_BYTES = 4096
"""Bytes of a command line that are read: titles and Airflow's own commands are shorter."""


class Process(NamedTuple):
    """One process.

    Command lines may hold secrets: they are only looked at, never stored or sent.
    """

    pid: int
    argv: tuple[str, ...]
    """Its arguments, or its title as the only item where it has set one."""
    start: str
    """When it started, as the kernel wrote it down: it never changes, and a reused pid has another."""
    started: float | None
    """The same as seconds since 1970, to some milliseconds."""

    @property
    def title(self) -> str:
        """What ``ps`` shows."""
        return " ".join(self.argv)


def lineage() -> list[Process]:
    """Return this process and its ancestors, nearest first, up to the first that cannot be seen.

    It is looked up once in each process: whoever asks shall see the same.
    """
    return _lineage_of(os.getpid())


@lru_cache(maxsize=1)
def _lineage_of(pid: int) -> list[Process]:
    if sys.platform == "linux":
        found = lineage_from_proc(pid)
        if found:
            return found
    return _lineage_from_psutil()


def lineage_from_proc(pid: int, proc: str = _PROC) -> list[Process]:
    """Return the process ``pid`` and its ancestors from a mounted proc(5) file system.

    The walk ends at the first process of the pid namespace, or before one that ``hidepid`` hides.
    """
    hertz = os.sysconf("SC_CLK_TCK")
    booted = _booted()
    found: list[Process] = []
    youngest: int | None = None
    while pid > 0 and len(found) < _MOST_ANCESTORS:
        try:
            stat = read_start(f"{proc}/{pid}/stat", _MOST_BYTES)
            words = argv(pid, proc)
            # The command's name stands in brackets and may hold brackets and spaces: count from the last.
            fields = stat[stat.rindex(b")") + 2 :].split()
            parent, ticks = int(fields[1]), int(fields[19])
        except (OSError, ValueError, IndexError):
            break
        # No parent is younger than its child: that pid was given to another process while we looked.
        if youngest is not None and ticks > youngest:
            break
        youngest = ticks
        started = None if booted is None else booted + ticks / hertz
        found.append(Process(pid=pid, argv=words, start=str(ticks), started=started))
        pid = parent
    return found


def process_id() -> str | None:
    """Return what tells this process from every other, on any host and after any reboot; at most 64 characters.

    A report that Airflow's client sends again has the same: so a process is counted once.
    """
    this = next(iter(lineage()), None)
    if this is None or this.pid != os.getpid():
        return None
    facts = (boot_id(), pid_namespace(), os.uname().nodename, str(this.pid), this.start)
    return hashlib.blake2b("\0".join(facts).encode("utf-8", "replace"), digest_size=12).hexdigest()


def argv(pid: int, proc: str = _PROC) -> tuple[str, ...]:
    """Return the arguments of a process, or its title as the only one; an ``OSError`` where it is gone."""
    words = read_start(f"{proc}/{pid}/cmdline", _MOST_BYTES).rstrip(b"\0").split(b"\0")
    return tuple(part.decode("utf-8", "replace") for part in words)


def children(pid: int, proc: str = _PROC) -> list[int]:
    """Return the processes that the threads of a process have started and that have not ended.

    :raises OSError: where it is gone, or where the kernel does not tell (it was built without CONFIG_PROC_CHILDREN)
    :raises ValueError: where there are too many threads to look at
    """
    found = _children_of_thread(pid, pid, proc)
    with os.scandir(f"{proc}/{pid}/task") as threads:
        for number, thread in enumerate(threads):
            if number == _MOST_THREADS:
                raise ValueError(f"process {pid} has more than {_MOST_THREADS} threads")
            if thread.name != str(pid):
                with suppress(FileNotFoundError):  # it has just ended
                    found += _children_of_thread(pid, int(thread.name), proc)
    return found


def has_children(pid: int, proc: str = _PROC) -> bool:
    """Return whether the main thread of a process has started one that has not ended; raises as ``children``."""
    return bool(_children_of_thread(pid, pid, proc))


def boot_id() -> str:
    """Return the ID of this boot of the machine, which its containers share; empty where it is not Linux."""
    return read_text(f"{_PROC}/sys/kernel/random/boot_id")


def pid_namespace() -> str:
    """Return the number of the space our pids count in: each container of a host may have its own pid 1."""
    try:
        return str(Path(_PROC, "self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _children_of_thread(pid: int, thread: int, proc: str) -> list[int]:
    return [int(child) for child in read_start(f"{proc}/{pid}/task/{thread}/children", _MOST_BYTES).split()]


def _booted() -> float | None:
    """Return when the machine booted, in seconds since 1970.

    Both clocks are slewed alike, so that their difference is the same in every process as long as nobody sets
    the clock. (``btime`` in ``/proc/stat`` is the same in whole seconds, in a file that grows with the CPUs.)
    """
    try:
        return time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return None


def _lineage_from_psutil() -> list[Process]:
    """Do the same where there is no ``/proc`` (macOS, where Airflow is run for development)."""
    from importlib import import_module

    psutil: Any = import_module("psutil")
    found: list[Process] = []
    process: Any = psutil.Process()
    try:
        while process is not None and len(found) < _MOST_ANCESTORS:
            started = float(process.create_time())
            try:
                argv = tuple(process.cmdline())
            except psutil.AccessDenied:  # another user's process: it is there, but silent
                argv = ()
            found.append(Process(process.pid, argv, f"{started:.2f}", started))
            process = process.parent()
    except psutil.Error:
        pass
    return found


def read_start(path: str, length: int) -> bytes:
    """Return at most ``length`` bytes from the start of a file; an ``OSError`` where it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, length)
    finally:
        os.close(descriptor)


def read_text(path: str, length: int = 16384) -> str:
    """Return the same as text without the blanks around it; nothing where it cannot be read."""
    try:
        return read_start(path, length).decode("utf-8", "replace").strip()
    except OSError:
        return ""
