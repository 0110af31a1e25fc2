"""This process, its ancestors and its siblings, as the operating system shows them.

On Linux they are read from ``/proc`` (proc(5)), and not with psutil, although Airflow loads psutil in most task
processes:

* After ``run_as_user`` in 3.0 and 3.1 the task process is a new interpreter without psutil, and importing it would be
  this package's cost. From 3.2 on that interpreter has psutil only because OpenTelemetry's SDK tries to import it.
  (2.11's has it, as have all task processes that are forked from Airflow's supervisor.)
* psutil computes start times from the wall clock, so that a correction of the clock would change them and with them the
  IDs of workers. It splits titles at spaces, and to list the children of a process it reads all processes of the
  machine.

macOS has no ``/proc``; there, in development, psutil is used where Airflow has loaded it.
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
_MAX_ANCESTORS = 64
_MAX_THREADS = 128
_MAX_BYTES = 4096
"""Maximum bytes of a command line to read; titles and Airflow's own commands are shorter."""


class Process(NamedTuple):
    """One process.

    Command lines may hold secrets: they are only compared, never stored or sent.
    """

    pid: int
    argv: tuple[str, ...]
    """Arguments of the process, or its title as the only item if it has set one."""
    start: str
    """Start time as the kernel recorded it: it never changes and differs for a reused pid."""
    create_time: float | None
    """Start time in seconds since 1970, accurate to some milliseconds."""

    @property
    def title(self) -> str:
        """Title of the process as ``ps`` shows it."""
        return " ".join(self.argv)


def lineage() -> list[Process]:
    """Return this process and its visible ancestors, nearest first.

    The result is cached, so that all callers in a process get the same.
    """
    return _lineage_of(os.getpid())


@lru_cache(maxsize=1)
def _lineage_of(pid: int) -> list[Process]:
    return lineage_from_proc(pid) if sys.platform == "linux" else lineage_from_psutil()


def lineage_from_proc(pid: int, proc: str = _PROC) -> list[Process]:
    """Return the process ``pid`` and its ancestors from a mounted proc(5) file system.

    The list ends with the first process of the pid namespace, or before a process that ``hidepid`` hides.
    """
    hertz = os.sysconf("SC_CLK_TCK")
    boot_time = _boot_time()
    processes: list[Process] = []
    child_ticks: int | None = None
    while pid > 0 and len(processes) < _MAX_ANCESTORS:
        try:
            stat = read_start(f"{proc}/{pid}/stat", _MAX_BYTES)
            arguments = argv(pid, proc)
            # The command name is in parentheses and may contain parentheses and spaces: split after the last one.
            fields = stat[stat.rindex(b")") + 2 :].split()
            parent, ticks = int(fields[1]), int(fields[19])
        except (OSError, ValueError, IndexError):
            break
        # A parent that is younger than its child is another process: its pid was reused during the walk.
        if child_ticks is not None and ticks > child_ticks:
            break
        child_ticks = ticks
        create_time = None if boot_time is None else boot_time + ticks / hertz
        processes.append(Process(pid=pid, argv=arguments, start=str(ticks), create_time=create_time))
        pid = parent
    return processes


def process_id() -> str | None:
    """Return an ID of this process, unique across hosts and reboots; at most 64 characters.

    A report that Airflow's client sends again carries the same ID, so that a process is counted once. Returns ``None``
    if the process cannot be read.
    """
    own_process = next(iter(lineage()), None)
    if own_process is None or own_process.pid != os.getpid():
        return None
    facts = (boot_id(), pid_namespace(), os.uname().nodename, str(own_process.pid), own_process.start)
    return hashlib.blake2b("\0".join(facts).encode("utf-8", "replace"), digest_size=12).hexdigest()


def argv(pid: int, proc: str = _PROC) -> tuple[str, ...]:
    """Return the arguments of a process, or its title as the only item.

    :raises OSError: if the process is gone
    """
    arguments = read_start(f"{proc}/{pid}/cmdline", _MAX_BYTES).rstrip(b"\0").split(b"\0")
    return tuple(argument.decode("utf-8", "replace") for argument in arguments)


def children(pid: int, proc: str = _PROC) -> list[int]:
    """Return the pids of the running children that the threads of a process have started.

    :raises OSError: if the process is gone, or if the kernel does not list children (built without
        CONFIG_PROC_CHILDREN)
    :raises ValueError: if the process has too many threads
    """
    pids = _children_of_thread(pid, pid, proc)
    with os.scandir(f"{proc}/{pid}/task") as threads:
        for count, thread in enumerate(threads):
            if count == _MAX_THREADS:
                raise ValueError(f"process {pid} has more than {_MAX_THREADS} threads")
            if thread.name != str(pid):
                with suppress(FileNotFoundError):  # it has just ended
                    pids += _children_of_thread(pid, int(thread.name), proc)
    return pids


def has_children(pid: int, proc: str = _PROC) -> bool:
    """Return whether the main thread of a process has running children.

    Raises as :func:`children` does.
    """
    return bool(_children_of_thread(pid, pid, proc))


def boot_id() -> str:
    """Return the ID of the machine's boot, which its containers share; empty if not on Linux."""
    return read_text(f"{_PROC}/sys/kernel/random/boot_id")


def pid_namespace() -> str:
    """Return the inode number of the pid namespace; empty if unknown.

    Each container of a host may have its own pid 1.
    """
    try:
        return str(Path(_PROC, "self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _children_of_thread(pid: int, thread: int, proc: str) -> list[int]:
    return [int(child) for child in read_start(f"{proc}/{pid}/task/{thread}/children", _MAX_BYTES).split()]


def _boot_time() -> float | None:
    """Return the boot time of the machine in seconds since 1970.

    Both clocks are slewed alike, so their difference is the same in every process unless the clock is set. (``btime``
    in ``/proc/stat`` is the same in whole seconds, but that file grows with the CPUs.)
    """
    try:
        return time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return None


def lineage_from_psutil() -> list[Process]:
    """Return this process and its ancestors as psutil shows them; empty if Airflow has not loaded psutil here."""
    psutil: Any = sys.modules.get("psutil")
    if psutil is None:
        return []
    processes: list[Process] = []
    process: Any = psutil.Process()
    try:
        while process is not None and len(processes) < _MAX_ANCESTORS:
            create_time = float(process.create_time())
            try:
                argv = tuple(process.cmdline())
            except psutil.AccessDenied:  # another user's process: its arguments are hidden
                argv = ()
            processes.append(Process(process.pid, argv, f"{create_time:.2f}", create_time))
            process = process.parent()
    except psutil.Error:
        pass
    return processes


def read_start(path: str, length: int) -> bytes:
    """Return at most ``length`` bytes from the start of a file.

    :raises OSError: if the file cannot be read
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, length)
    finally:
        os.close(descriptor)


def read_text(path: str, length: int = 16384) -> str:
    """Return the stripped text from the start of a file; empty if it cannot be read.

    :param length: the maximum number of bytes to read
    """
    try:
        return read_start(path, length).decode("utf-8", "replace").strip()
    except OSError:
        return ""
