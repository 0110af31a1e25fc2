"""Find the attempts of a list among millions, in time that does not grow with them.

Each search follows one index: of a Dag run, of the workers, of the Dags, or of the start. Filters without an index scan
a limited number of tries that the index leads to, and counting ends at a limit too (:class:`SearchLimits`); if one of
these limits cuts something off, the total is not exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import TIMESTAMP, Interval, and_, case, func, literal, or_, select, true, type_coerce

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.clock import CLOCK_SKEW
from airflow_worker_insight.domain.keys import run_key
from airflow_worker_insight.domain.limits import MAX_SCANNED, MAX_TOTAL
from airflow_worker_insight.domain.states import FINISHED, Attribution
from airflow_worker_insight.store.airflow_history import instance_keys, run_start
from airflow_worker_insight.store.dialects import disable_jit, in_list, in_rows, unnest
from airflow_worker_insight.store.tables import attempt, key_columns, start_slot, worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.filters import AttemptFilter
    from airflow_worker_insight.domain.keys import RowKey


MAX_INSTANCES = 1000
"""Worker instances, the latest, that one name or host stands for."""


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What one search reads at most."""

    total: int = MAX_TOTAL
    """Tries that are counted."""
    scanned: int = MAX_SCANNED
    """Tries that are scanned for a filter without an index."""
    instances: int = MAX_INSTANCES
    """Worker instances, the latest, that one name or host stands for."""
    branches: int = 50
    """Readable Dags that are searched one by one.

    If there are more, some of them ran lately, and the order of starts finds those.
    """


LIMITS = SearchLimits()
"""The usual limits."""

KEY = key_columns(attempt)
"""Columns that identify a try in the attempt table: see :data:`.keys.RowKey`."""

_NAMES = ("run_id", "task_id", "map_index", "try_number")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: the keys of its tries, and the total number."""

    keys: list[RowKey]
    total: int
    total_is_exact: bool
    is_cut: bool = False
    """Whether older tries exist that were not scanned."""


def find(
    connection: Connection,
    filters: AttemptFilter,
    *,
    dag_ids: frozenset[str] | None,
    limit: int,
    offset: int,
    limits: SearchLimits = LIMITS,
) -> Page:
    """Return the tries on a page of a list, the latest start first.

    :param dag_ids: the Dags that the reader may see, or ``None`` for all
    """
    search = _search(connection, filters, dag_ids, limits)
    if search is None:
        return Page([], 0, total_is_exact=True)
    disable_jit(connection)
    rows = connection.execute(search.page(limit, offset)).all()
    keys = [(row.run_key, row.task_key, row.try_number) for row in rows]
    if len(keys) < limit and (keys or not offset):
        total = offset + len(keys)
    elif keys and search.is_scanned:
        total = rows[0].total
    else:
        total = connection.execute(search.count()).scalar_one()
    total = min(total, limits.total)
    is_cut = search.is_cut or (
        search.is_scanned and connection.execute(search.beyond_the_scanned()).first() is not None
    )
    return Page(keys, total, total_is_exact=total < limits.total and not is_cut, is_cut=is_cut)


def can_be_ids(connection: Connection, *names: str | None) -> bool:
    """Return whether the database can hold these as Airflow's IDs.

    On MySQL Airflow stores IDs in three-byte UTF-8, which MySQL refuses to compare with longer characters.
    """
    if connection.dialect.name != "mysql" or "utf8mb4" in (getattr(attempt.c.dag_id.type, "collation", None) or ""):
        return True
    return all(character <= "\uffff" for name in names if name is not None for character in name)


def is_one_of(connection: Connection, keys: Sequence[RowKey]) -> Any:
    """Match rows of the attempt table that belong to one of these tries."""
    return in_rows(connection, KEY, keys)


def latest_first(connection: Connection, rows: Any = attempt) -> list[Any]:
    """Return the order of lists: the latest start first, tries without a start last.

    :param rows: the attempt table, or a subquery with its columns
    """
    return [
        _descending(connection, rows.c.start_slot),
        _descending(connection, rows.c.started_at),
        rows.c.run_key,
        rows.c.task_key,
        rows.c.try_number,
    ]


def _descending(connection: Connection, column: Any) -> Any:
    # Only PostgreSQL puts NULLs first in a descending order.
    return column.desc().nullslast() if connection.dialect.name == "postgresql" else column.desc()


def started_between(since: datetime | None, until: datetime | None) -> list[Any]:
    """Match tries that started in an interval, its ends included; ``None`` leaves an end open."""
    exactly = [
        *([attempt.c.started_at >= since] if since is not None else []),
        *([attempt.c.started_at <= until] if until is not None else []),
    ]
    return [*_slots_between(since, until), *exactly]


def _slots_between(since: datetime | None, until: datetime | None) -> list[Any]:
    """Match nearly the same tries by the column that the indexes hold."""
    return [
        *([attempt.c.start_slot >= start_slot(since)] if since is not None else []),
        *([attempt.c.start_slot <= start_slot(until)] if until is not None else []),
    ]


def counts(rows: Any = attempt) -> Any:
    """Leave out inferred rows of a try that a worker reported later; see :mod:`~.queries`."""
    reported = attempt.alias("reported")
    report = select(reported.c.ordinal).where(
        *_same_try(reported, rows), reported.c.attribution == Attribution.REPORTED
    )
    return or_(rows.c.attribution == Attribution.REPORTED, ~report.exists())


def _same_try(other: Any, rows: Any) -> list[Any]:
    return [other.c[column.name] == rows.c[column.name] for column in KEY]


# --- one search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Search:
    """The conditions of a search, and the index that it follows."""

    connection: Connection
    filters: AttemptFilter
    limits: SearchLimits
    refs: list[int] | None
    """IDs of the workers' rows that must have run a try, or ``None`` for any."""
    along: tuple[Any, ...] = ()
    """Conditions on the attempt table that an index serves, and that lead to the tries."""
    readable: tuple[Any, ...] = ()
    """Condition on the Dags that the reader may see, unless the index already covers it."""
    branches: tuple[Any, list[Any]] | None = None
    """A column and its values, which are searched one by one, each in the order of starts."""
    is_scanned: bool = False
    """Whether filters without an index require a scan of what ``along`` leads to."""
    is_cut: bool = False
    """Whether more worker instances, or more tries in this state, exist than are searched."""

    def page(self, limit: int, offset: int) -> Any:
        """Select the ordered keys of a page; if tries are scanned, also the number of matches."""
        # The scan is the expensive part, so the page and the total share one.
        matches = self._select_matches(
            max(self.limits.total, limit + offset) if self.is_scanned else limit + offset, is_ordered=True
        )
        order = latest_first(self.connection, matches)
        total = [func.count().over().label("total")] if self.is_scanned else []
        keys = [matches.c[column.name] for column in KEY]
        return select(*keys, *total).order_by(*order).limit(limit).offset(offset)

    def count(self) -> Any:
        """Select the number of matching tries, up to the limit."""
        matches = self._select_matches(self.limits.total, is_ordered=False)
        limited = select(matches.c.try_number).limit(self.limits.total).subquery()
        return select(func.count()).select_from(limited)

    def beyond_the_scanned(self) -> Any:
        """Select a row if tries of readable Dags exist beyond those that were scanned."""
        window = _slots_between(self.filters.started_at_gte, self.filters.started_at_lte)
        branch_values, branch_condition, scan_limit = self._branch_table()
        rest = (
            select(attempt.c.start_slot)
            .where(*branch_condition, *self.along, *self.readable, *window)
            .order_by(_descending(self.connection, attempt.c.start_slot))
            .offset(scan_limit)
            .limit(1)
        )
        return self._for_each_branch(branch_values, rest)

    def _select_matches(self, limit: int, *, is_ordered: bool) -> Any:
        branch_values, branch_condition, scan_limit = self._branch_table()
        window = started_between(self.filters.started_at_gte, self.filters.started_at_lte)
        conditions = [*branch_condition, *self.along, *self.readable, *window]
        rows: Any = attempt
        if self.is_scanned:
            latest = _descending(self.connection, attempt.c.start_slot)
            scan = select(attempt).where(*conditions).order_by(latest).limit(scan_limit)
            rows = scan.subquery() if branch_values is None else scan.correlate(branch_values).lateral()
            conditions = []
        matches = select(*(rows.c[name] for name in (*(column.name for column in KEY), "start_slot", "started_at")))
        matches = matches.where(*conditions, *self._conditions(rows)).limit(limit)
        if is_ordered:
            matches = matches.order_by(*latest_first(self.connection, rows))
        return self._for_each_branch(branch_values, matches).subquery()

    def _branch_table(self) -> tuple[Any, list[Any], int]:
        """Return the branches as a table, the condition of one, and the tries to scan in each."""
        if self.branches is None:
            return None, [], self.limits.scanned
        column, values = self.branches
        branch_values = unnest(column, values)
        return branch_values, [column == branch_values.c.value], self.limits.scanned // len(values)

    @staticmethod
    def _for_each_branch(branch_values: Any, statement: Any) -> Any:
        if branch_values is None:
            return statement
        branch = statement.lateral()
        return select(branch).select_from(branch_values.join(branch, true()))

    def _conditions(self, rows: Any) -> list[Any]:
        """Return the conditions on the rows that the index leads to."""
        wanted = {name: getattr(self.filters, name) for name in _NAMES}
        conditions = [rows.c[name] == value for name, value in wanted.items() if value is not None]
        if self.filters.state in FINISHED:
            conditions.append(_is_currently(self.connection, self.filters.state, rows))
        if self.refs is None:
            conditions.append(rows.c.ordinal == 0)
        else:
            conditions += [_is_first_of(self.connection, self.refs, rows), counts(rows)]
        return conditions


def _search(
    connection: Connection, filters: AttemptFilter, dag_ids: frozenset[str] | None, limits: SearchLimits
) -> _Search | None:
    """Choose the index to follow; return ``None`` if nothing can match."""
    refs = _worker_refs(connection, filters, limits)
    dag_ids = _searched_dags(connection, filters, dag_ids)
    if refs == [] or dag_ids == frozenset():
        return None
    is_cut = refs is not None and len(refs) == limits.instances
    of_refs = () if refs is None else (in_list(connection, attempt.c.worker_ref, refs),)
    of_dag = readable = ()
    if dag_ids is not None and len(dag_ids) == 1:
        of_dag = of_dags(connection, dag_ids)
    else:
        readable = of_dags(connection, dag_ids)
    if filters.state is not None and filters.state not in FINISHED:
        keys = _keys_in_state(connection, filters, dag_ids, limits)
        along = (is_one_of(connection, keys), *of_refs)
        is_cut = is_cut or len(keys) == limits.total
        return _Search(connection, filters, limits, refs, along, (*of_dag, *readable), is_cut=is_cut) if keys else None
    if filters.run_id is not None and dag_ids is not None:
        run_keys = [run_key(dag_id, filters.run_id) for dag_id in sorted(dag_ids)]
        along = (in_list(connection, attempt.c.run_key, run_keys), *of_refs)
        return _Search(connection, filters, limits, refs, along, (*of_dag, *readable), is_cut=is_cut)
    is_scanned = any(getattr(filters, name) is not None for name in (*_NAMES, "state"))
    branches: tuple[Any, list[Any]] | None = None
    if connection.dialect.name == "postgresql":
        if refs is not None and len(refs) > 1:
            branches, of_refs = (attempt.c.worker_ref, refs), ()
        elif refs is None and dag_ids is not None and 1 < len(dag_ids) <= limits.branches:
            branches, readable = (attempt.c.dag_id, sorted(dag_ids)), ()
    return _Search(connection, filters, limits, refs, (*of_refs, *of_dag), readable, branches, is_scanned, is_cut)


def _searched_dags(
    connection: Connection, filters: AttemptFilter, dag_ids: frozenset[str] | None
) -> frozenset[str] | None:
    """Return the Dags to search, ``None`` for all."""
    if not can_be_ids(connection, filters.dag_id, filters.run_id, filters.task_id):
        return frozenset()
    if dag_ids is not None:
        dag_ids = frozenset(dag_id for dag_id in dag_ids if can_be_ids(connection, dag_id))
    if filters.dag_id is None:
        return dag_ids
    return frozenset({filters.dag_id}) if dag_ids is None else dag_ids & {filters.dag_id}


def of_dags(connection: Connection, dag_ids: frozenset[str] | None) -> tuple[Any, ...]:
    """Match tries of these Dags; ``None`` matches all."""
    if dag_ids is None:
        return ()
    # Not the bare column: with many Dags a database would gather all their tries before it applies other conditions.
    column = attempt.c.dag_id if len(dag_ids) == 1 else func.coalesce(attempt.c.dag_id, "")
    return (in_list(connection, column, sorted(dag_ids)),)


def _worker_refs(connection: Connection, filters: AttemptFilter, limits: SearchLimits) -> list[int] | None:
    """Return the latest row IDs of the filter's workers, or ``None`` if it names none."""
    columns = worker.c
    conditions = []
    if filters.worker_id is not None:
        conditions.append(or_(columns.worker_id == filters.worker_id, columns.reported_id == filters.worker_id))
    if filters.worker_name is not None:
        conditions.append(or_(columns.name == filters.worker_name, columns.engine_name == filters.worker_name))
    if filters.hostname is not None:
        conditions.append(columns.hostname == filters.hostname)
    if not conditions:
        return None
    latest = select(columns.id).where(*conditions).order_by(columns.id.desc()).limit(limits.instances)
    return list(connection.execute(latest).scalars())


def _is_first_of(connection: Connection, refs: list[int], rows: Any) -> Any:
    """Keep one row per try if several of the requested workers ran it."""
    if len(refs) == 1:
        return true()
    other = attempt.alias("other")
    earlier = select(other.c.ordinal).where(
        *_same_try(other, rows), in_list(connection, other.c.worker_ref, refs), other.c.ordinal < rows.c.ordinal
    )
    return or_(rows.c.ordinal == 0, ~earlier.exists())


# --- Airflow's state -------------------------------------------------------------------------------------------------


def _is_currently(connection: Connection, state: str, rows: Any) -> Any:
    """Match tries that ended in a state: by our record if it is closed, else by Airflow's."""
    return or_(
        and_(rows.c.ended_at.is_not(None), rows.c.state == state),
        # Scalar subqueries, so that no database reads all of Airflow's table.
        and_(
            rows.c.ended_at.is_(None),
            _is_of_its_run(connection, rows),
            func.coalesce(
                _airflow_state(metadata_database.task_instance_history_table(), rows),
                _airflow_state(metadata_database.task_instance_table(), rows),
                case((rows.c.state == state, state), else_=""),
            )
            == state,
        ),
    )


def _is_of_its_run(connection: Connection, rows: Any) -> Any:
    """Match tries that may belong to the Dag run that now has their names.

    See :func:`.airflow_history.is_of_run`. A try's start is by its worker's clock. Where the database supports it,
    clocks may differ by a tolerance.
    """
    run = metadata_database.dag_run_table()
    same_run = (run.c.dag_id == rows.c.dag_id, run.c.run_id == rows.c.run_id)
    began = select(run_start(run)).where(*same_run).scalar_subquery()
    started_at = rows.c.started_at
    if connection.dialect.name == "postgresql":
        started_at = type_coerce(started_at, TIMESTAMP(timezone=True)) + literal(CLOCK_SKEW, Interval())
    return or_(began.is_(None), began <= started_at)


def _airflow_state(table: Any, rows: Any) -> Any:
    """Select the state of a try in one of Airflow's tables.

    It is empty if the try has no state, and NULL if the table has no such try.
    """
    names = ("dag_id", "task_id", "run_id", "map_index", "try_number")
    return (
        select(func.coalesce(table.c.state, ""))
        .where(*(table.c[name] == rows.c[name] for name in names))
        .scalar_subquery()
    )


def _keys_in_state(
    connection: Connection, filters: AttemptFilter, dag_ids: frozenset[str] | None, limits: SearchLimits
) -> list[RowKey]:
    """Return the tries in an unfinished state.

    Airflow has an index by state, and such tries are few.
    """
    instance = metadata_database.task_instance_table()
    source, identity = metadata_database.try_identity(instance)
    wanted = {"dag_id": filters.dag_id, **{name: getattr(filters, name) for name in _NAMES}}
    rows = connection.execute(
        select(*(instance.c[name] for name in ("dag_id", *_NAMES)), *identity)
        .select_from(source)
        .where(
            instance.c.state == filters.state,
            *(instance.c[name] == value for name, value in wanted.items() if value is not None),
            *([] if dag_ids is None else [in_list(connection, func.coalesce(instance.c.dag_id, ""), sorted(dag_ids))]),
        )
        .order_by(instance.c.start_date.desc())
        .limit(limits.total)
    )
    return [(run_key(row.dag_id, row.run_id), key, row.try_number) for row in rows for key in instance_keys(row)]
