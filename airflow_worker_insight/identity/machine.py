"""The machine (or the container) that this process runs on, as far as it may use it."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from airflow_worker_insight.domain.names import clean
from airflow_worker_insight.identity.process import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class MemoryLimit(NamedTuple):
    """What a cgroup may use, and where it is written what it does use."""

    size: int
    """In bytes; where there is no limit, cgroup v1 says a number near 2**63."""
    used_file: str
    stat_file: str
    unread: str
    """The line of ``stat_file`` with the files in memory that nobody reads: they go when memory is short."""


def resources() -> dict[str, int | float | str]:
    """Return ``cpus`` (a container may have a fraction), ``memory_bytes``, ``os`` and ``architecture``."""
    found: dict[str, int | float | str] = {}
    controllers = cgroup_directories(read_text("/proc/self/cgroup"))
    count = cpus(controllers)
    if count is not None:
        found["cpus"] = count
    size = memory_bytes(own_memory_limits())
    if size is not None:
        found["memory_bytes"] = size
    uname = os.uname()
    found["os"] = os_name(read_text("/etc/os-release")) or clean(f"{uname.sysname} {uname.release}", 64)
    found["architecture"] = clean(uname.machine, 32)
    return found


def cpus(controllers: dict[str, list[str]]) -> int | float | None:
    """Return how many CPUs may be used here: those that we may run on, within the quota of our cgroups."""
    affinity = getattr(os, "sched_getaffinity", None)
    count: float | None = len(affinity(0)) if affinity is not None else os.cpu_count()
    for quota, period in _cpu_quotas(controllers):
        if quota > 0 and period > 0:
            count = min(quota / period, count or quota / period)
    if count is None:
        return None
    return int(count) if count == int(count) else round(count, 2)


def memory_bytes(limits: Iterable[MemoryLimit]) -> int | None:
    """Return the machine's memory in bytes, or less where a cgroup allows less."""
    try:
        size: int | None = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        size = None
    for limit in limits:
        size = min(limit.size, size or limit.size)
    # Without a size to compare with, v1's number for "no limit" would be taken at its word.
    return size if size is not None and size < 1 << 60 else None


@cache
def own_memory_limits() -> tuple[MemoryLimit, ...]:
    """Return the limits of our own cgroups; they are read once."""
    return tuple(memory_limits(cgroup_directories(read_text("/proc/self/cgroup"))))


def memory_limits(controllers: dict[str, list[str]]) -> Iterator[MemoryLimit]:
    """Return each limit of these directories of cgroups; cgroup v2 writes "max" where there is none."""
    for directory in controllers.get("", []):
        size = _number(read_text(f"{directory}/memory.max"))
        if size > 0:
            yield MemoryLimit(size, f"{directory}/memory.current", f"{directory}/memory.stat", "inactive_file")
    for directory in controllers.get("memory", []):
        size = _number(read_text(f"{directory}/memory.limit_in_bytes"))
        if size > 0:
            used_file, stat_file = f"{directory}/memory.usage_in_bytes", f"{directory}/memory.stat"
            yield MemoryLimit(size, used_file, stat_file, "total_inactive_file")


def os_name(os_release: str) -> str:
    """Return the name for people in the text of os-release(5), or nothing."""
    for line in os_release.splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return clean(value.strip().strip("\"'"), 64)
    return ""


def cgroup_directories(self_cgroup: str, mount: str = "/sys/fs/cgroup") -> dict[str, list[str]]:
    """Return per controller the directories whose limits apply to us; ``""`` stands for cgroup v2.

    Takes the text of ``/proc/self/cgroup`` (cgroups(7)). A limit of any ancestor applies too, so each group
    comes with all of its ancestors up to the mount point. Inside a container that is often all there is to
    see: the path of its group counts from a root that it has no view of.
    """
    found: dict[str, list[str]] = {}
    for line in self_cgroup.splitlines():
        _, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if not colon:
            continue
        for controller in names.split(",") if names else [""]:
            if controller in {"", "cpu", "memory"}:
                root = f"{mount}/{controller}" if controller else mount
                found[controller] = [f"{root}{level}" for level in _levels(path)]
    return found


def _levels(path: str) -> Iterator[str]:
    """Return ``/a/b``, ``/a`` and the empty path for ``/a/b``."""
    parts = [part for part in path.split("/") if part not in {"", ".."}][:16]
    for depth in range(len(parts), -1, -1):
        yield "".join(f"/{part}" for part in parts[:depth])


def _cpu_quotas(controllers: dict[str, list[str]]) -> Iterator[tuple[int, int]]:
    """Return each limit as microseconds of CPU per microseconds of time."""
    for directory in controllers.get("", []):
        quota, _, period = read_text(f"{directory}/cpu.max").partition(" ")
        if quota.isdigit():
            yield int(quota), _number(period)
    for directory in controllers.get("cpu", []):
        quota = read_text(f"{directory}/cpu.cfs_quota_us")
        if quota.isdigit():  # -1 is no limit
            yield int(quota), _number(read_text(f"{directory}/cpu.cfs_period_us"))


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
