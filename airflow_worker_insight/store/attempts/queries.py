"""Read what was recorded: attempts as the pages and the REST API show them, and workers.

An attempt is a try with all the workers that ran it; it is assembled from one row per worker. What Airflow knows better
at this moment (the state of a try that has not been closed yet) is read from Airflow's own tables, so that a page is
never behind Airflow's own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import and_, select

from airflow_worker_insight import config
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import Attempt, AttemptPage, AttemptWorker, lost_tries
from airflow_worker_insight.domain.attribution import attribute
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.filters import EveryDag
from airflow_worker_insight.domain.keys import TaskInstanceKey, TryKey, run_key
from airflow_worker_insight.domain.states import FINISHED, NOT_ON_A_WORKER, REPORTED, UNKNOWN
from airflow_worker_insight.store import airflow_history, placements
from airflow_worker_insight.store.attempts import search
from airflow_worker_insight.store.dialects import given, in_given_rows
from airflow_worker_insight.store.tables import NO_WORKER, attempt, placement, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.attempts import AirflowTry
    from airflow_worker_insight.domain.filters import AttemptFilter
    from airflow_worker_insight.domain.keys import RowKey


def find_attempts(
    connection: Connection, filters: AttemptFilter, *, dag_ids: Collection[str] | EveryDag, limit: int, offset: int
) -> AttemptPage:
    """Return a page of attempts, the latest start first.

    :param dag_ids: the Dags the reader may see; nothing of any other Dag is listed or counted
    """
    readable = None if isinstance(dag_ids, EveryDag) else frozenset(dag_ids)
    page = search.find(connection, filters, dag_ids=readable, limit=limit, offset=offset)
    return AttemptPage(load_attempts(connection, page.keys), page.total, page.total_is_exact, page.is_cut)


def list_attempts(
    connection: Connection, filters: AttemptFilter, *, dag_ids: Collection[str] | EveryDag, limit: int, offset: int
) -> tuple[list[Attempt], int]:
    """Return the attempts of :func:`find_attempts` and their total, for those who do not say whether it is exact."""
    page = find_attempts(connection, filters, dag_ids=dag_ids, limit=limit, offset=offset)
    return page.attempts, page.total


def task_instance_attempts(
    connection: Connection, *, dag_id: str, run_id: str, task_id: str, map_index: int
) -> list[Attempt]:
    """Return every try of a task instance, the latest first; none when neither Airflow nor we know it.

    A try that Airflow has and we have not recorded is shown with what Airflow's own columns tell.
    """
    if not search.can_be_ids(connection, dag_id, run_id, task_id):
        return []
    known = airflow_history.tries_of_task_instance(
        connection, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
    )
    known += lost_tries(known)
    row_keys = [row_key for one in known for row_key in one.row_keys]
    recorded = {one.attempt.row_key: one.attempt for one in _load(connection, row_keys)}
    tries: dict[int, Attempt] = {}
    for one in known:
        found = next((recorded[row_key] for row_key in one.row_keys if row_key in recorded), None)
        tries[one.key.try_number] = _unrecorded(one) if found is None else _live(found, one)
    missing = {one.key.try_number for one in known if one.is_lost and not tries[one.key.try_number].is_recorded}
    if map_index >= 0 and known:
        # A mapped task instance that comes again under its index would be given the tries of the one before it.
        missing = set()
    if missing or not known:
        # Airflow has removed its history of these tries, or all that it had of the task instance.
        by_name = _recorded_by_name(connection, TaskInstanceKey(dag_id, run_id, task_id, map_index), set(row_keys))
        present = [one for one in by_name if one.deleted != "run"]
        tries |= {one.try_number: one for one in present if not known or one.try_number in missing}
        if not known and not present:
            return sorted(by_name, key=lambda one: -one.try_number)
    return sorted(tries.values(), key=lambda one: -one.try_number)


def _recorded_by_name(connection: Connection, key: TaskInstanceKey, others: Collection[RowKey]) -> list[Attempt]:
    """Return what was recorded of task instances of a name, but for some: also of those of deleted Dag runs."""
    names = zip(("dag_id", "run_id", "task_id", "map_index"), key.as_tuple(), strict=True)
    rows = connection.execute(
        select(attempt.c.run_key, attempt.c.task_key, attempt.c.try_number).where(
            attempt.c.run_key == run_key(key.dag_id, key.run_id), *(attempt.c[name] == value for name, value in names)
        )
    )
    found = sorted({(row.run_key, row.task_key, row.try_number) for row in rows} - set(others))
    return load_attempts(connection, found)


def load_attempts(connection: Connection, keys: Sequence[RowKey]) -> list[Attempt]:
    """Return the recorded tries with these keys as they are now, in the order given."""
    return _as_now(connection, _load(connection, keys))


def are_all_dags(connection: Connection, dag_ids: Collection[str]) -> bool:
    """Return whether these are all Dags that Airflow has."""
    return frozenset(dag_ids) >= {*connection.execute(select(metadata_database.dag_table().c.dag_id)).scalars()}


def key_of(one: Attempt) -> TryKey:
    """Return a try's names."""
    return TryKey(one.dag_id, one.run_id, one.task_id, one.map_index, one.try_number)


def without_neighbours(one: Attempt) -> Attempt:
    """Leave out how many other tries ran beside it, and the sentence, which names workers that did not run it.

    These tries may be of Dags that the reader may not see.
    """
    workers = tuple(replace(worker, running_beside=None) for worker in one.workers)
    return replace(one, workers=workers, placement_detail=None)


# --- assembling ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A recorded try, and whether Airflow has a Dag run of its names, which may be a later one."""

    attempt: Attempt
    has_run: bool
    run_began_at: datetime | None
    any_placed: bool
    """Whether anything is placed at all: without an executor of this package there never is."""

    @property
    def may_have_changed(self) -> bool:
        """Whether Airflow may have another word for it: it is open, or may be of a Dag run before this one."""
        is_of_it = self.run_began_at is not None and airflow_history.is_of_run(
            self.attempt.started_at, self.run_began_at
        )
        return self.has_run and (self.attempt.ended_at is None or not is_of_it)


@cache
def _rows(dialect: str) -> Any:
    """Select the rows of given attempts with their workers and Dag runs; where there is none of these it has NULLs."""
    run = metadata_database.dag_run_table()
    same_run = and_(run.c.dag_id == attempt.c.dag_id, run.c.run_id == attempt.c.run_id)
    rows = select(
        attempt,
        worker.c.worker_id,
        worker.c.name,
        worker.c.kind,
        worker.c.hostname,
        worker.c.host_only,
        run.c.id.label("run_row"),
        airflow_history.run_began(run).label("run_began_at"),
        select(placement.c.run_key).limit(1).exists().label("any_placed"),
    ).select_from(attempt.outerjoin(worker, worker.c.id == attempt.c.worker_ref).outerjoin(run, same_run))
    return rows.where(in_given_rows(dialect, search.KEY, "keys"))


def _load(connection: Connection, keys: Sequence[RowKey]) -> list[_Loaded]:
    """Load these tries in full, in the order given."""
    if not keys:
        return []
    rows = connection.execute(_rows(connection.dialect.name), given(connection, keys, "keys")).all()
    position = {key: index for index, key in enumerate(keys)}
    loaded = _assemble(sorted(rows, key=lambda row: position[row.run_key, row.task_key, row.try_number]))
    if not any(one.any_placed for one in loaded):
        return loaded
    sentences = placements.sentences(connection, keys)
    return [
        replace(one, attempt=replace(one.attempt, placement_detail=sentences.get(one.attempt.row_key)))
        for one in loaded
        if one.attempt.row_key is not None
    ]


def _assemble(rows: Iterable[Row[Any]]) -> list[_Loaded]:
    """Gather the rows of each try, keeping the order in which the tries come."""
    tries: dict[RowKey, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        tries[row.run_key, row.task_key, row.try_number].append(row)
    return [
        _Loaded(
            _attempt(row_key, sorted(group, key=lambda row: row.ordinal)),
            has_run=group[0].run_row is not None,
            run_began_at=utc(group[0].run_began_at),
            any_placed=bool(group[0].any_placed),
        )
        for row_key, group in tries.items()
    ]


def _attempt(row_key: RowKey, rows: Sequence[Row[Any]]) -> Attempt:
    decided = next((row.placement for row in rows if row.placement is not None), None)
    # A report is the worker's own word: where one exists, nothing inferred beside it counts.
    rows = [row for row in rows if row.attribution == REPORTED] or rows
    first = rows[0]
    started_at, ended_at = utc(first.started_at), utc(first.ended_at)
    return Attempt(
        dag_id=first.dag_id,
        run_id=first.run_id,
        task_id=first.task_id,
        map_index=first.map_index,
        try_number=first.try_number,
        state=first.state,
        started_at=started_at,
        ended_at=ended_at,
        duration=_duration(started_at, ended_at),
        attribution=first.attribution or UNKNOWN,
        workers=tuple(
            AttemptWorker(
                worker_id=row.worker_id,
                name=row.name,
                kind=row.kind,
                hostname=row.hostname,
                host_only=row.host_only,
                process_count=row.process_count,
                first_started_at=utc(row.first_started_at or row.started_at),
                last_started_at=utc(row.last_started_at or row.first_started_at or row.started_at),
                load=_share(row.load, 100),
                memory_free=_share(row.memory_free, 1000),
                running_beside=row.running_beside,
            )
            for row in rows
            if row.worker_ref != NO_WORKER and row.worker_id is not None
        ),
        placement=decided,
        row_key=row_key,
        ran_in_a_test=first.attribution == NOT_ON_A_WORKER and first.process_count > 0,
    )


# --- what Airflow knows better ---------------------------------------------------------------------------------------


def _as_now(connection: Connection, loaded: Sequence[_Loaded]) -> list[Attempt]:
    """Give the tries the state that Airflow has for them now, and say which ones it has deleted.

    Airflow is asked only of those of which something can have changed: most of a list are closed, and of the Dag run
    that Airflow has.
    """
    doubted = [one.attempt for one in loaded if one.may_have_changed]
    known = airflow_history.tries_by_row(connection, map(key_of, doubted)) if doubted else {}
    placed = [key_of(one.attempt) for one in loaded if one.any_placed and one.attempt.row_key in known]
    reasons = placements.reasons(connection, placed) if placed else {}
    names = {one.key for one in known.values() if not one.is_lost}
    found = []
    for one in loaded:
        attempt, now = one.attempt, None if one.attempt.row_key is None else known.get(one.attempt.row_key)
        if now is not None:
            attempt = attempt if attempt.ended_at is not None else _live(attempt, now)
            decided = reasons.get(key_of(attempt))
            if decided is not None:
                sentence = placements.sentence(decided.detail)
                attempt = replace(attempt, placement=decided.reason, placement_detail=sentence)
        elif one.may_have_changed or not one.has_run:
            attempt = attempt if attempt.ended_at is not None else _forgotten(attempt)
            attempt = replace(attempt, deleted=_deleted(one, names))
        found.append(attempt)
    return found


def _deleted(one: _Loaded, known: Collection[TryKey]) -> str | None:
    """Return what Airflow has deleted of a try that it does not have; nothing where only its history is gone.

    :param known: the tries that Airflow has of this name
    """
    if not one.has_run or not airflow_history.is_of_run(one.attempt.started_at, one.run_began_at):
        return "run"
    key = key_of(one.attempt)
    numbers = {other.try_number for other in known if other.task_instance == key.task_instance}
    if key.try_number in numbers or not numbers or key.try_number > max(numbers):
        return "task_instance" if one.run_began_at is not None or not numbers else "run"
    return None


def _forgotten(one: Attempt) -> Attempt:
    """Say nothing of the state of a try that Airflow forgot before it ended: it does not run for ever."""
    return one if one.state in FINISHED else replace(one, state=None)


def _live(one: Attempt, now: AirflowTry) -> Attempt:
    started_at = now.started_at or one.started_at
    ended_at = now.ended_at if now.is_finished else None
    return replace(
        one, state=now.state, started_at=started_at, ended_at=ended_at, duration=_duration(started_at, ended_at)
    )


def _unrecorded(one: AirflowTry) -> Attempt:
    verdict = attribute(one, lives=(), default_executor=config.executor())
    return Attempt(
        dag_id=one.key.dag_id,
        run_id=one.key.run_id,
        task_id=one.key.task_id,
        map_index=one.key.map_index,
        try_number=one.key.try_number,
        state=one.state,
        started_at=one.started_at,
        ended_at=one.ended_at,
        duration=_duration(one.started_at, one.ended_at),
        attribution=verdict.attribution,
        workers=(
            AttemptWorker(
                worker_id=verdict.worker.worker_id,
                name=verdict.worker.name,
                kind=verdict.worker.kind,
                hostname=verdict.worker.hostname,
                host_only=True,
                process_count=1,
                first_started_at=one.started_at,
                last_started_at=one.started_at,
            ),
        )
        if verdict.worker is not None
        else (),
        is_recorded=False,
        ran_in_a_test=one.ran_in_a_test,
    )


def _share(stored: int | None, unit: int) -> float | None:
    """Return what :class:`~.attempts.Conditions` stored in so small a unit."""
    return None if stored is None else stored / unit


def _duration(started_at: datetime | None, ended_at: datetime | None) -> float | None:
    if started_at is None or ended_at is None:
        return None
    return max(0.0, (ended_at - started_at).total_seconds())
