"""
Hand out long files of integration tests first, so that no process is idle at the end.

``--dist loadfile`` alone starts with the files that have most tests. A file stays together where its tests share a
deployment; tests that start one of their own are units of their own.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

FOLDER = "tests/integration/"

#: Files whose tests share a deployment, longest first; the others follow them.
LONGEST_FIRST = (
    "test_executor_kills.py",
    "test_pages.py",
    "test_environments.py",
    "test_fab.py",
    "test_executors.py",
    "test_installation.py",
    "test_local.py",
    "test_fleet.py",
    "test_local_executor.py",
    "test_celery.py",
    "test_kills.py",
    "test_panel.py",
)

#: How the IDs of tests with a deployment of their own begin, longest first. They come last.
ALONE = (
    "test_fleet.py::test_ten_servers_",
    "test_fleet.py::test_workers_are_unresponsive_and_never_lost_",
    "test_executor_holds.py::",
    "test_executor_versions.py::",
    "test_versions.py::",
    "test_local_executor.py::test_tasks_are_spread_and_retries_",
    "test_local.py::test_in_process_runs_",
    "test_psycopg.py::",
    "test_table_locks.py::",
    "test_smoke.py::",
)


def rank(nodeid: str) -> int:
    """Return the place of a test in the order: a smaller one starts earlier."""
    name = nodeid.removeprefix(FOLDER)
    for number, start in enumerate(ALONE):
        if name.startswith(start):
            return len(LONGEST_FIRST) + 1 + number
    file = name.partition("::")[0]
    return LONGEST_FIRST.index(file) if file in LONGEST_FIRST else len(LONGEST_FIRST)


def unit(nodeid: str) -> str:
    """Return what stays together with a test: the other tests of its file, or nothing."""
    return nodeid if rank(nodeid) > len(LONGEST_FIRST) else nodeid.partition("::")[0]


class LongestFirst(LoadFileScheduling):
    """Hands out :func:`unit` by :func:`unit`, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)
