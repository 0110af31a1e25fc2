"""Find a worker by its ID, or by a name that only one living worker has."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.filters import WorkerFilter
from airflow_worker_insight.domain.states import SOURCE_KINDS, UNKNOWN_STATE
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerRow

PAGE = 1000
MAX_CANDIDATES = 10
"""Workers that an error message lists at most."""


def find_worker(connection: Connection, named: str, *, include_ended: bool = False) -> WorkerRow:
    """Return the worker with an ID or a name.

    :param named: an ID, or a name that is unique among the worker instances that have not ended
    :param include_ended: if every instance of the name has ended, return the latest and print a notice; for commands
        that only read
    :raises SystemExit: if no worker or more than one matches, with the candidates
    """
    by_id = worker_queries.get_worker(connection, named)
    instances = list(_instances(connection, named))
    active = [worker for worker in instances if worker.ended_at is None]
    # A task can report an invented worker with another worker's name as its ID or name: prefer what a source confirms.
    confirmed = [worker for worker in active if worker.kind in SOURCE_KINDS and not worker.is_report_only]
    if by_id is not None and not any(worker.ref != by_id.ref for worker in confirmed):
        return by_id
    active = confirmed or active
    if len(active) == 1:
        return active[0]
    if active:
        raise SystemExit(
            f"{len(active)} living workers have the name {named!r}; use the ID of one:{_candidate_lines(active)}"
        )
    if instances and include_ended:
        latest = instances[0]
        print(
            f"No living worker has the name {named!r}: this is its latest instance, {latest.worker_id} "
            f"({latest.state or UNKNOWN_STATE}).",
            file=sys.stderr,
        )
        return latest
    if instances:
        raise SystemExit(f"No living worker has the name {named!r}; ended instances:{_candidate_lines(instances)}")
    similar, _ = worker_queries.list_workers(connection, WorkerFilter(search=named), limit=MAX_CANDIDATES + 1, offset=0)
    if similar:
        raise SystemExit(f"No worker {named!r} was found; similar ones:{_candidate_lines(similar)}")
    raise SystemExit(f"No worker {named!r} was found: `airflow-worker-insight workers list` lists the known ones.")


def _instances(connection: Connection, name: str) -> Iterator[WorkerRow]:
    """Yield all worker instances of a name, latest first."""
    offset = 0
    while True:
        page, _ = worker_queries.list_workers(connection, WorkerFilter(name=name), limit=PAGE, offset=offset)
        yield from page
        offset += PAGE
        if len(page) < PAGE:
            return


def _candidate_lines(candidates: Iterable[WorkerRow]) -> str:
    lines = [
        f"  {worker.worker_id}  {worker.name}  {worker.kind}  {worker.hostname}  {worker.state or UNKNOWN_STATE}"
        for worker in candidates
    ]
    shown = lines[:MAX_CANDIDATES]
    if len(lines) > len(shown):
        shown.append("  …")
    return "".join(f"\n{line}" for line in shown)
