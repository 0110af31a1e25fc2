"""Find the worker that an operator means: by its ID, or by a name that only one living worker has."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.filters import WorkerFilter
from airflow_worker_insight.domain.states import ENGINE_KINDS, UNKNOWN_STATE
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerRow

PAGE = 1000
MAX_CANDIDATES = 10
"""Workers that an error names."""


def one_worker(connection: Connection, named: str, *, also_gone: bool = False) -> WorkerRow:
    """Return the worker that is meant.

    :param named: an ID, or a name that is unique among the lives that have not ended
    :param also_gone: where none lives take the latest life of the name, and say so: for commands that only read
    :raises SystemExit: with those that may have been meant
    """
    found = worker_queries.get_worker(connection, named)
    lives = list(_lives(connection, named))
    alive = [one for one in lives if one.ended_at is None]
    # A task can make up a worker whose ID, or name, is the name of another one.
    known = [one for one in alive if one.kind in ENGINE_KINDS and not one.is_told_only]
    if found is not None and not any(one.ref != found.ref for one in known):
        return found
    alive = known or alive
    if len(alive) == 1:
        return alive[0]
    if alive:
        raise SystemExit(f"{len(alive)} living workers are named {named!r}; name one by its ID:{_lines(alive)}")
    if lives and also_gone:
        latest = lives[0]
        print(
            f"No living worker is named {named!r}: this is its latest life, {latest.worker_id} "
            f"({latest.state or UNKNOWN_STATE}).",
            file=sys.stderr,
        )
        return latest
    if lives:
        raise SystemExit(f"No living worker is named {named!r}; these were:{_lines(lives)}")
    similar, _ = worker_queries.list_workers(connection, WorkerFilter(search=named), limit=MAX_CANDIDATES + 1, offset=0)
    if similar:
        raise SystemExit(f"There is no worker {named!r}; these are like it:{_lines(similar)}")
    raise SystemExit(f"There is no worker {named!r}: `airflow-worker-insight workers list` shows those that are known.")


def _lives(connection: Connection, name: str) -> Iterator[WorkerRow]:
    """Yield all workers of a name, the latest first."""
    offset = 0
    while True:
        page, _ = worker_queries.list_workers(connection, WorkerFilter(name=name), limit=PAGE, offset=offset)
        yield from page
        offset += PAGE
        if len(page) < PAGE:
            return


def _lines(candidates: Iterable[WorkerRow]) -> str:
    lines = [
        f"  {one.worker_id}  {one.name}  {one.kind}  {one.hostname}  {one.state or UNKNOWN_STATE}" for one in candidates
    ]
    shown = lines[:MAX_CANDIDATES]
    if len(lines) > len(shown):
        shown.append("  …")
    return "".join(f"\n{line}" for line in shown)
