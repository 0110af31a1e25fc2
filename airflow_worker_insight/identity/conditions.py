"""What the worker's machine is like when a try starts: three numbers that are kept with the try.

Each task process works them out, so little is read: of ``/proc`` a few files and two per process that the worker has.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypedDict

from airflow_worker_insight.identity import detection, machine, process
from airflow_worker_insight.identity.process import read_text
from airflow_worker_insight.identity.safe_call import safe_call

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from airflow_worker_insight.identity.process import Process

MOST_CHILDREN = 128
"""Processes of a worker that are looked at: of one with more it is not known how many tries it runs."""


class Conditions(TypedDict):
    """What the machine is like; ``None`` is not known."""

    load: float | None
    """See :func:`load`."""
    memory_free: float | None
    """See :func:`memory_free`."""
    running_beside: int | None
    """See :func:`running_beside`."""


def conditions(main_pid: int | None) -> Conditions:
    """Return what the machine is like at this moment. Never raises, starts nothing, asks nobody.

    :param main_pid: the worker's main process, as :class:`~airflow_worker_insight.identity.worker.Worker` has it
    """
    return {
        "load": safe_call(load, None),
        "memory_free": safe_call(
            lambda: memory_free(read_text("/proc/meminfo", 256), machine.own_memory_limits()), None
        ),
        "running_beside": safe_call(lambda: running_beside(main_pid, process.lineage()), None),
    }


def load() -> float | None:
    """Return the load average of the last minute per CPU: 1.0 is a machine that is just busy.

    The kernel counts what runs in all of its containers, so all of its CPUs are meant, not only those for us.
    """
    cpus = os.cpu_count()
    return round(os.getloadavg()[0] / cpus, 2) if cpus else None


def memory_free(meminfo: str, limits: Iterable[machine.MemoryLimit]) -> float | None:
    """Return the free share of the memory, 0 to 1: of the machine's, or of the cgroup's that has the least left.

    :param meminfo: the start of ``/proc/meminfo``
    """
    kilobytes = _table(meminfo.replace(":", ""))
    total, available = kilobytes.get("MemTotal", 0), kilobytes.get("MemAvailable")
    if not total or available is None:
        return None
    least = min(1.0, available / total, *_shares_left(limits, total * 1024))
    return round(max(least, 0.0), 3)


def running_beside(main_pid: int | None, lineage: Sequence[Process], proc: str = "/proc") -> int | None:
    """Return how many other tries the worker runs, by its processes, or ``None`` where they are of no known kind.

    :param main_pid: the worker's main process
    :param lineage: a task process of the worker and its ancestors, nearest first
    """
    pids = [each.pid for each in lineage]
    if main_pid not in pids[1:]:
        return None
    at = pids.index(main_pid)
    # With the start method "forkserver" a server stands between a scheduler and its workers.
    if at > 1 and detection.is_fork_server(lineage[at - 1].argv):
        at -= 1
    parent, own = lineage[at], lineage[at - 1]
    others = [child for child in process.children(parent.pid, proc) if child != own.pid]
    if not others:
        return 0
    if len(others) < MOST_CHILDREN:
        if detection.is_task(own.argv):
            return sum(_is_task(other, proc) for other in others)
        if detection.holds_tasks(own.argv):
            return sum(_has_a_task(other, proc) for other in others)
    return None


def _is_task(pid: int, proc: str) -> bool:
    try:
        return detection.is_task(process.argv(pid, proc))
    except OSError:  # it has just ended
        return False


def _has_a_task(pid: int, proc: str) -> bool:
    try:
        # Without a child it is idle: then the title is that of its last try.
        return process.has_children(pid, proc) and detection.holds_tasks(process.argv(pid, proc))
    except OSError:
        return False


def _shares_left(limits: Iterable[machine.MemoryLimit], machine_bytes: int) -> Iterator[float]:
    """Yield which share of its limit each cgroup has left, of those with less than the machine."""
    for limit in limits:
        used = _number(limit.used_file) if limit.size < machine_bytes else None
        if used is not None:
            unread = _table(read_text(limit.stat_file)).get(limit.unread, 0)
            yield 1 - max(used - unread, 0) / limit.size


def _number(path: str) -> int | None:
    text = read_text(path, 64)
    return int(text) if text.isdigit() else None


def _table(text: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
