"""Conditions on the worker's machine when a try starts: three numbers stored with the try.

Each task process computes them, so they must be cheap: a few files of ``/proc`` and two more for each process of the
worker are read.
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

MAX_CHILDREN = 128
"""Number of a worker's child processes from which on ``running_beside`` is not counted."""


class Conditions(TypedDict):
    """Conditions on the machine; ``None`` means unknown."""

    load: float | None
    """See :func:`load`."""
    memory_free: float | None
    """See :func:`memory_free`."""
    running_beside: int | None
    """See :func:`running_beside`."""


def conditions(main_pid: int | None) -> Conditions:
    """Return the current conditions. Never raises, starts no process, sends no request.

    :param main_pid: the worker's main process, as in :class:`~airflow_worker_insight.identity.worker.Worker`
    """
    return {
        "load": safe_call(load, None),
        "memory_free": safe_call(
            lambda: memory_free(read_text("/proc/meminfo", 256), machine.own_memory_limits()), None
        ),
        "running_beside": safe_call(lambda: running_beside(main_pid, process.lineage()), None),
    }


def load() -> float | None:
    """Return the load average of the last minute per CPU; 1.0 means all CPUs are just busy.

    The kernel counts the processes of all containers, so this divides by all CPUs of the machine, not only by those
    that this container may use.
    """
    cpus = os.cpu_count()
    return round(os.getloadavg()[0] / cpus, 2) if cpus else None


def memory_free(meminfo: str, limits: Iterable[machine.MemoryLimit]) -> float | None:
    """Return the free share of the memory, 0 to 1, or ``None`` if unknown.

    It is the machine's share or that of the cgroup with the least left.

    :param meminfo: the start of ``/proc/meminfo``
    :param limits: the limits of this process's cgroups
    """
    kilobytes = _parse_table(meminfo.replace(":", ""))
    total, available = kilobytes.get("MemTotal", 0), kilobytes.get("MemAvailable")
    if not total or available is None:
        return None
    least = min(1.0, available / total, *_free_shares(limits, total * 1024))
    return round(max(least, 0.0), 3)


def running_beside(main_pid: int | None, lineage: Sequence[Process], proc: str = "/proc") -> int | None:
    """Return how many other tries the worker runs, counted by its processes.

    :param main_pid: the worker's main process
    :param lineage: a task process of the worker and its ancestors, nearest first
    :param proc: the path of the proc(5) file system
    :return: the number, or ``None`` if the main process is no ancestor, its child is of no known kind, or it has too
        many children
    :raises OSError: as :func:`.process.children`
    :raises ValueError: as :func:`.process.children`
    """
    pids = [ancestor.pid for ancestor in lineage]
    if main_pid not in pids[1:]:
        return None
    index = pids.index(main_pid)
    # With the start method "forkserver" a fork server stands between a scheduler and its workers.
    if index > 1 and detection.is_fork_server(lineage[index - 1].argv):
        index -= 1
    parent, own_child = lineage[index], lineage[index - 1]
    sibling_pids = [child for child in process.children(parent.pid, proc) if child != own_child.pid]
    if not sibling_pids:
        return 0
    if len(sibling_pids) < MAX_CHILDREN:
        if detection.is_task_process(own_child.argv):
            return sum(_is_task(sibling_pid, proc) for sibling_pid in sibling_pids)
        if detection.is_task_parent(own_child.argv):
            return sum(_has_task(sibling_pid, proc) for sibling_pid in sibling_pids)
    return None


def _is_task(pid: int, proc: str) -> bool:
    try:
        return detection.is_task_process(process.argv(pid, proc))
    except OSError:  # it has just ended
        return False


def _has_task(pid: int, proc: str) -> bool:
    try:
        # Without a child it is idle: its title is still that of its last try.
        return process.has_children(pid, proc) and detection.is_task_parent(process.argv(pid, proc))
    except OSError:
        return False


def _free_shares(limits: Iterable[machine.MemoryLimit], machine_bytes: int) -> Iterator[float]:
    """Yield the free share of each cgroup limit that is below the machine's memory."""
    for limit in limits:
        used_bytes = _read_integer(limit.used_file) if limit.size < machine_bytes else None
        if used_bytes is not None:
            reclaimable_bytes = _parse_table(read_text(limit.stat_file)).get(limit.cache_field, 0)
            yield 1 - max(used_bytes - reclaimable_bytes, 0) / limit.size


def _read_integer(path: str) -> int | None:
    text = read_text(path, 64)
    return int(text) if text.isdigit() else None


def _parse_table(text: str) -> dict[str, int]:
    """Parse lines of a name and an integer; other lines are skipped."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
