"""Read recorded attempts as the pages and the REST API show them, with their workers.

An attempt is a try with all the workers that ran it; it is assembled from one row per worker. What Airflow knows better
at this moment (the state of a try that is not closed yet) is read from Airflow's own tables, so that a page is never
behind Airflow's own.
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
from airflow_worker_insight.domain.filters import AllDags
from airflow_worker_insight.domain.keys import TaskInstanceKey, TryKey, run_key
from airflow_worker_insight.domain.states import FINISHED, Attribution
from airflow_worker_insight.store import airflow_history, placements
from airflow_worker_insight.store.attempts import search
from airflow_worker_insight.store.dialects import in_bound_rows, row_parameters
from airflow_worker_insight.store.tables import NO_WORKER, attempt, placement, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.attempts import AirflowTry
    from airflow_worker_insight.domain.filters import AttemptFilter
    from airflow_worker_insight.domain.keys import RowKey
    from airflow_worker_insight.store.attempts.search import SearchLimits


def find_attempts(
    connection: Connection,
    filters: AttemptFilter,
    *,
    dag_ids: Collection[str] | AllDags,
    limit: int,
    offset: int,
    limits: SearchLimits = search.LIMITS,
) -> AttemptPage:
    """Return a page of attempts, the latest start first.

    :param dag_ids: the Dags that the reader may see; attempts of other Dags are neither listed nor counted
    """
    readable = None if isinstance(dag_ids, AllDags) else frozenset(dag_ids)
    page = search.find(connection, filters, dag_ids=readable, limit=limit, offset=offset, limits=limits)
    return AttemptPage(load_attempts(connection, page.keys), page.total, page.total_is_exact, page.is_cut)


def list_attempts(
    connection: Connection,
    filters: AttemptFilter,
    *,
    dag_ids: Collection[str] | AllDags,
    limit: int,
    offset: int,
    limits: SearchLimits = search.LIMITS,
) -> tuple[list[Attempt], int]:
    """Return the attempts of :func:`find_attempts` and their total, without its exactness."""
    page = find_attempts(connection, filters, dag_ids=dag_ids, limit=limit, offset=offset, limits=limits)
    return page.attempts, page.total


def task_instance_attempts(
    connection: Connection, *, dag_id: str, run_id: str, task_id: str, map_index: int
) -> list[Attempt]:
    """Return every try of a task instance, the latest first; empty if it is unknown.

    A try that Airflow has but that was not recorded is shown with what Airflow's own columns hold.
    """
    if not search.can_be_ids(connection, dag_id, run_id, task_id):
        return []
    known = airflow_history.tries_of_task_instance(
        connection, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
    )
    known += lost_tries(known)
    row_keys = [row_key for airflow_try in known for row_key in airflow_try.row_keys]
    recorded = {loaded.attempt.row_key: loaded.attempt for loaded in _load(connection, row_keys)}
    tries: dict[int, Attempt] = {}
    for airflow_try in known:
        match = next((recorded[row_key] for row_key in airflow_try.row_keys if row_key in recorded), None)
        tries[airflow_try.key.try_number] = (
            _unrecorded(airflow_try) if match is None else _with_airflow_state(match, airflow_try)
        )
    missing = {
        airflow_try.key.try_number
        for airflow_try in known
        if airflow_try.is_lost and not tries[airflow_try.key.try_number].is_recorded
    }
    if map_index >= 0 and known:
        # A mapped task instance that reuses an index would otherwise get the tries of its predecessor.
        missing = set()
    if missing or not known:
        # Airflow has removed its history of these tries, or all that it had of the task instance.
        by_name = _recorded_by_name(connection, TaskInstanceKey(dag_id, run_id, task_id, map_index), set(row_keys))
        present = [attempt for attempt in by_name if attempt.deleted != "run"]
        tries |= {attempt.try_number: attempt for attempt in present if not known or attempt.try_number in missing}
        if not known and not present:
            return sorted(by_name, key=lambda attempt: -attempt.try_number)
    return sorted(tries.values(), key=lambda attempt: -attempt.try_number)


def _recorded_by_name(connection: Connection, key: TaskInstanceKey, excluded: Collection[RowKey]) -> list[Attempt]:
    """Return the recorded tries of a task instance's name, also those of deleted Dag runs.

    :param excluded: the keys of tries to leave out
    """
    names = zip(("dag_id", "run_id", "task_id", "map_index"), key.as_tuple(), strict=True)
    rows = connection.execute(
        select(attempt.c.run_key, attempt.c.task_key, attempt.c.try_number).where(
            attempt.c.run_key == run_key(key.dag_id, key.run_id), *(attempt.c[name] == value for name, value in names)
        )
    )
    row_keys = sorted({(row.run_key, row.task_key, row.try_number) for row in rows} - set(excluded))
    return load_attempts(connection, row_keys)


def load_attempts(connection: Connection, keys: Sequence[RowKey]) -> list[Attempt]:
    """Return the recorded tries with these keys as they are now, in the order given."""
    return _with_current_state(connection, _load(connection, keys))


def are_all_dags(connection: Connection, dag_ids: Collection[str]) -> bool:
    """Return whether these are all Dags that Airflow has."""
    return frozenset(dag_ids) >= {*connection.execute(select(metadata_database.dag_table().c.dag_id)).scalars()}


def try_key(attempt: Attempt) -> TryKey:
    """Return the key of an attempt's try."""
    return TryKey(attempt.dag_id, attempt.run_id, attempt.task_id, attempt.map_index, attempt.try_number)


def redact_other_dags(attempt: Attempt) -> Attempt:
    """Remove the number of tries that ran beside an attempt, and the placement sentence.

    The sentence names workers that did not run the attempt, and the tries beside it may be of Dags that the reader may
    not see.
    """
    workers = tuple(replace(worker, running_beside=None) for worker in attempt.workers)
    return replace(attempt, workers=workers, placement_detail=None)


# --- assembling ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A recorded try, and whether Airflow has a Dag run of its names.

    That run may be a later one.
    """

    attempt: Attempt
    has_run: bool
    run_started_at: datetime | None
    any_placed: bool
    """Whether the placement table has any row: without this package's executors it has none."""

    @property
    def may_have_changed(self) -> bool:
        """Whether Airflow may have another state for it.

        That is so if it is open, or may be of a Dag run before the current one.
        """
        is_of_it = self.run_started_at is not None and airflow_history.is_of_run(
            self.attempt.started_at, self.run_started_at
        )
        return self.has_run and (self.attempt.ended_at is None or not is_of_it)


@cache
def _rows(dialect: str) -> Any:
    """Select the rows of given attempts with their workers and Dag runs, or NULLs instead."""
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
        airflow_history.run_start(run).label("run_started_at"),
        select(placement.c.run_key).limit(1).exists().label("any_placed"),
    ).select_from(attempt.outerjoin(worker, worker.c.id == attempt.c.worker_ref).outerjoin(run, same_run))
    return rows.where(in_bound_rows(dialect, search.KEY, "keys"))


def _load(connection: Connection, keys: Sequence[RowKey]) -> list[_Loaded]:
    """Load these tries in full, in the order given."""
    if not keys:
        return []
    rows = connection.execute(_rows(connection.dialect.name), row_parameters(connection, keys, "keys")).all()
    position = {key: index for index, key in enumerate(keys)}
    loaded = _assemble(sorted(rows, key=lambda row: position[row.run_key, row.task_key, row.try_number]))
    if not any(recorded.any_placed for recorded in loaded):
        return loaded
    sentences = placements.sentences(connection, keys)
    return [
        replace(recorded, attempt=replace(recorded.attempt, placement_detail=sentences.get(recorded.attempt.row_key)))
        for recorded in loaded
        if recorded.attempt.row_key is not None
    ]


def _assemble(rows: Iterable[Row[Any]]) -> list[_Loaded]:
    """Group the rows by try, in the order in which the tries come."""
    tries: dict[RowKey, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        tries[row.run_key, row.task_key, row.try_number].append(row)
    return [
        _Loaded(
            _attempt(row_key, sorted(group, key=lambda row: row.ordinal)),
            has_run=group[0].run_row is not None,
            run_started_at=utc(group[0].run_started_at),
            any_placed=bool(group[0].any_placed),
        )
        for row_key, group in tries.items()
    ]


def _attempt(row_key: RowKey, rows: Sequence[Row[Any]]) -> Attempt:
    placement_reason = next((row.placement for row in rows if row.placement is not None), None)
    # A report comes from the worker itself: if one exists, inferred rows do not count.
    rows = [row for row in rows if row.attribution == Attribution.REPORTED] or rows
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
        attribution=first.attribution or Attribution.UNKNOWN,
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
                load=_in_units(row.load, 100),
                memory_free=_in_units(row.memory_free, 1000),
                running_beside=row.running_beside,
            )
            for row in rows
            if row.worker_ref != NO_WORKER and row.worker_id is not None
        ),
        placement=placement_reason,
        row_key=row_key,
        ran_in_a_test=first.attribution == Attribution.NOT_ON_A_WORKER and first.process_count > 0,
    )


# --- Airflow's current state -----------------------------------------------------------------------------------------


def _with_current_state(connection: Connection, loaded: Sequence[_Loaded]) -> list[Attempt]:
    """Update the tries to Airflow's current state, and mark those that Airflow has deleted.

    Airflow's tables are queried only for tries that may have changed: most tries of a list are closed and of the Dag
    run that Airflow has.
    """
    unsettled = [recorded.attempt for recorded in loaded if recorded.may_have_changed]
    airflow_tries = airflow_history.tries_by_row(connection, map(try_key, unsettled)) if unsettled else {}
    placed = [
        try_key(recorded.attempt)
        for recorded in loaded
        if recorded.any_placed and recorded.attempt.row_key in airflow_tries
    ]
    reasons = placements.explanations(connection, placed) if placed else {}
    names = {airflow_try.key for airflow_try in airflow_tries.values() if not airflow_try.is_lost}
    attempts = []
    for recorded in loaded:
        attempt, current = (
            recorded.attempt,
            None if recorded.attempt.row_key is None else airflow_tries.get(recorded.attempt.row_key),
        )
        if current is not None:
            attempt = attempt if attempt.ended_at is not None else _with_airflow_state(attempt, current)
            decided = reasons.get(try_key(attempt))
            if decided is not None:
                sentence = placements.sentence(decided.detail)
                attempt = replace(attempt, placement=decided.reason, placement_detail=sentence)
        elif recorded.may_have_changed or not recorded.has_run:
            attempt = attempt if attempt.ended_at is not None else _without_open_state(attempt)
            attempt = replace(attempt, deleted=_deleted(recorded, names))
        attempts.append(attempt)
    return attempts


def _deleted(loaded: _Loaded, known: Collection[TryKey]) -> str | None:
    """Return what Airflow has deleted of a try that it no longer has.

    It is ``None`` if only the try's history is gone.

    :param known: the tries that Airflow has of this name
    """
    if not loaded.has_run or not airflow_history.is_of_run(loaded.attempt.started_at, loaded.run_started_at):
        return "run"
    key = try_key(loaded.attempt)
    numbers = {other.try_number for other in known if other.task_instance == key.task_instance}
    if key.try_number in numbers or not numbers or key.try_number > max(numbers):
        return "task_instance" if loaded.run_started_at is not None or not numbers else "run"
    return None


def _without_open_state(attempt: Attempt) -> Attempt:
    """Clear the unfinished state of a try that Airflow deleted: it must not seem to run."""
    return attempt if attempt.state in FINISHED else replace(attempt, state=None)


def _with_airflow_state(attempt: Attempt, airflow_try: AirflowTry) -> Attempt:
    started_at = airflow_try.started_at or attempt.started_at
    ended_at = airflow_try.ended_at if airflow_try.is_finished else None
    return replace(
        attempt,
        state=airflow_try.state,
        started_at=started_at,
        ended_at=ended_at,
        duration=_duration(started_at, ended_at),
    )


def _unrecorded(airflow_try: AirflowTry) -> Attempt:
    result = attribute(airflow_try, instances=(), default_executor=config.executor())
    return Attempt(
        dag_id=airflow_try.key.dag_id,
        run_id=airflow_try.key.run_id,
        task_id=airflow_try.key.task_id,
        map_index=airflow_try.key.map_index,
        try_number=airflow_try.key.try_number,
        state=airflow_try.state,
        started_at=airflow_try.started_at,
        ended_at=airflow_try.ended_at,
        duration=_duration(airflow_try.started_at, airflow_try.ended_at),
        attribution=result.attribution,
        workers=(
            AttemptWorker(
                worker_id=result.worker.worker_id,
                name=result.worker.name,
                kind=result.worker.kind,
                hostname=result.worker.hostname,
                host_only=True,
                process_count=1,
                first_started_at=airflow_try.started_at,
                last_started_at=airflow_try.started_at,
            ),
        )
        if result.worker is not None
        else (),
        is_recorded=False,
        ran_in_a_test=airflow_try.ran_in_a_test,
    )


def _in_units(stored: int | None, unit: int) -> float | None:
    """Return a value that :class:`~.attempts.Conditions` stored in units this small."""
    return None if stored is None else stored / unit


def _duration(started_at: datetime | None, ended_at: datetime | None) -> float | None:
    if started_at is None or ended_at is None:
        return None
    return max(0.0, (ended_at - started_at).total_seconds())
