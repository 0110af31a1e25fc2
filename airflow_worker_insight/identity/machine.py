"""The machine or container that this process runs on, within the limits set for it."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from airflow_worker_insight.domain.names import clean
from airflow_worker_insight.identity.process import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class MemoryLimit(NamedTuple):
    """Memory limit of a cgroup and the files that hold its use."""

    size: int
    """Limit in bytes; without a limit, cgroup v1 reports a number near 2**63."""
    used_file: str
    stat_file: str
    cache_field: str
    """Line of ``stat_file`` with the inactive file cache, which is reclaimed under pressure."""


def resources() -> dict[str, int | float | str]:
    """Return ``cpus``, ``memory_bytes``, ``os`` and ``architecture``.

    ``cpus`` may be a fraction in a container. ``cpus`` and ``memory_bytes`` are missing if unknown.
    """
    facts: dict[str, int | float | str] = {}
    controllers = cgroup_directories(read_text("/proc/self/cgroup"))
    cpu_count = cpus(controllers)
    if cpu_count is not None:
        facts["cpus"] = cpu_count
    memory_size = memory_bytes(own_memory_limits())
    if memory_size is not None:
        facts["memory_bytes"] = memory_size
    uname = os.uname()
    facts["os"] = os_name(read_text("/etc/os-release")) or clean(f"{uname.sysname} {uname.release}", 64)
    facts["architecture"] = clean(uname.machine, 32)
    return facts


def cpus(controllers: dict[str, list[str]]) -> int | float | None:
    """Return the number of usable CPUs: the CPU affinity, bounded by the cgroups' quotas.

    :param controllers: see :func:`cgroup_directories`
    :return: ``None`` if unknown
    """
    affinity = getattr(os, "sched_getaffinity", None)
    count: float | None = len(affinity(0)) if affinity is not None else os.cpu_count()
    for quota, period in _cpu_quotas(controllers):
        if quota > 0 and period > 0:
            count = min(quota / period, count or quota / period)
    if count is None:
        return None
    return int(count) if count == int(count) else round(count, 2)


def memory_bytes(limits: Iterable[MemoryLimit]) -> int | None:
    """Return the machine's memory in bytes, or the lowest cgroup limit below it.

    Returns ``None`` if unknown.
    """
    try:
        size: int | None = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        size = None
    for limit in limits:
        size = min(limit.size, size or limit.size)
    # If the machine's memory is unknown, v1's number for "no limit" must not count as a size.
    return size if size is not None and size < 1 << 60 else None


@cache
def own_memory_limits() -> tuple[MemoryLimit, ...]:
    """Return the memory limits of this process's cgroups; they are read once."""
    return tuple(memory_limits(cgroup_directories(read_text("/proc/self/cgroup"))))


def memory_limits(controllers: dict[str, list[str]]) -> Iterator[MemoryLimit]:
    """Yield the memory limit of each cgroup directory that has one.

    Cgroup v2 writes "max" if there is no limit.
    """
    for directory in controllers.get("", []):
        size = _parse_integer(read_text(f"{directory}/memory.max"))
        if size > 0:
            yield MemoryLimit(size, f"{directory}/memory.current", f"{directory}/memory.stat", "inactive_file")
    for directory in controllers.get("memory", []):
        size = _parse_integer(read_text(f"{directory}/memory.limit_in_bytes"))
        if size > 0:
            used_file, stat_file = f"{directory}/memory.usage_in_bytes", f"{directory}/memory.stat"
            yield MemoryLimit(size, used_file, stat_file, "total_inactive_file")


def os_name(os_release: str) -> str:
    """Return the display name from the text of os-release(5), or an empty string."""
    for line in os_release.splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return clean(value.strip().strip("\"'"), 64)
    return ""


def cgroup_directories(self_cgroup: str, mount: str = "/sys/fs/cgroup") -> dict[str, list[str]]:
    """Return by controller the directories whose limits apply; ``""`` stands for cgroup v2.

    Limits of ancestors apply too, so each group comes with all of its ancestors up to the mount point. Inside a
    container often only the mount point is visible: the path of its group starts at a root outside the container's
    view.

    :param self_cgroup: the text of ``/proc/self/cgroup`` (cgroups(7))
    :param mount: the mount point of the cgroup file system
    """
    directories: dict[str, list[str]] = {}
    for line in self_cgroup.splitlines():
        _, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if not colon:
            continue
        for controller in names.split(",") if names else [""]:
            if controller in {"", "cpu", "memory"}:
                root = f"{mount}/{controller}" if controller else mount
                directories[controller] = [f"{root}{level}" for level in _ancestor_paths(path)]
    return directories


def _ancestor_paths(path: str) -> Iterator[str]:
    """Yield ``/a/b``, ``/a`` and the empty path for ``/a/b``."""
    parts = [part for part in path.split("/") if part not in {"", ".."}][:16]
    for depth in range(len(parts), -1, -1):
        yield "".join(f"/{part}" for part in parts[:depth])


def _cpu_quotas(controllers: dict[str, list[str]]) -> Iterator[tuple[int, int]]:
    """Yield each CPU quota and its period, both in microseconds."""
    for directory in controllers.get("", []):
        quota, _, period = read_text(f"{directory}/cpu.max").partition(" ")
        if quota.isdigit():
            yield int(quota), _parse_integer(period)
    for directory in controllers.get("cpu", []):
        quota = read_text(f"{directory}/cpu.cfs_quota_us")
        if quota.isdigit():  # -1 is no limit
            yield int(quota), _parse_integer(read_text(f"{directory}/cpu.cfs_period_us"))


def _parse_integer(text: str) -> int:
    return int(text) if text.isdigit() else 0
