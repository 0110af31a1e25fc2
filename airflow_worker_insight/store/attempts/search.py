"""Find the attempts that a list shows, among millions, in a time that does not grow with them.

Each search follows one index: of a Dag run, of the workers, of the Dags, or of the start. Filters that no index serves
look through the latest :data:`MAX_SCANNED` tries that the index leads to, and counting ends at :data:`MAX_TOTAL`; where
that cut something off, the total is not exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import TIMESTAMP, Interval, and_, case, func, literal, or_, select, true, type_coerce

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.clock import CLOCK_SKEW
from airflow_worker_insight.domain.keys import run_key
from airflow_worker_insight.domain.limits import MAX_SCANNED, MAX_TOTAL
from airflow_worker_insight.domain.states import FINISHED, REPORTED
from airflow_worker_insight.store.airflow_history import instance_keys, run_began
from airflow_worker_insight.store.dialects import disable_jit, in_list, in_rows, unnest
from airflow_worker_insight.store.tables import attempt, start_slot, worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.filters import AttemptFilter
    from airflow_worker_insight.domain.keys import RowKey


MAX_LIVES = 1000
"""Lives of workers, the latest ones, that one name or host stands for."""

MAX_BRANCHES = 50
"""Readable Dags that are searched one by one. With more of them some have run lately, and the order of starts finds
those."""

KEY = (attempt.c.run_key, attempt.c.task_key, attempt.c.try_number)
"""What identifies a try in the attempt table: see :data:`.keys.RowKey`."""

_NAMES = ("run_id", "task_id", "map_index", "try_number")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: which tries, and how many there are in all."""

    keys: list[RowKey]
    total: int
    total_is_exact: bool
    is_cut: bool = False
    """Whether there are older tries that were not looked through."""


def find(
    connection: Connection, filters: AttemptFilter, *, dag_ids: frozenset[str] | None, limit: int, offset: int
) -> Page:
    """Return which tries a page of a list shows, the latest start first.

    :param dag_ids: the Dags the reader may see, or ``None`` for all
    """
    search = _search(connection, filters, dag_ids)
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
    total = min(total, MAX_TOTAL)
    is_cut = search.is_cut or (
        search.is_scanned and connection.execute(search.beyond_the_scanned()).first() is not None
    )
    return Page(keys, total, total_is_exact=total < MAX_TOTAL and not is_cut, is_cut=is_cut)


def can_be_ids(connection: Connection, *names: str | None) -> bool:
    """Return whether the database can hold these as Airflow's IDs.

    On MySQL Airflow keeps IDs in UTF-8 of three bytes, which MySQL refuses to compare with longer characters.
    """
    if connection.dialect.name != "mysql" or "utf8mb4" in (getattr(attempt.c.dag_id.type, "collation", None) or ""):
        return True
    return all(character <= "\uffff" for name in names if name is not None for character in name)


def is_one_of(connection: Connection, keys: Sequence[RowKey]) -> Any:
    """Say that a row of the attempt table belongs to one of these tries."""
    return in_rows(connection, KEY, keys)


def latest_first(connection: Connection, rows: Any = attempt) -> list[Any]:
    """Return the order of lists: the latest start first, tries without a start last.

    :param rows: the attempt table, or a subquery with its columns
    """
    return [
        _backwards(connection, rows.c.start_slot),
        _backwards(connection, rows.c.started_at),
        rows.c.run_key,
        rows.c.task_key,
        rows.c.try_number,
    ]


def _backwards(connection: Connection, column: Any) -> Any:
    # Only PostgreSQL puts NULLs first in a descending order.
    return column.desc().nullslast() if connection.dialect.name == "postgresql" else column.desc()


def started_between(since: datetime | None, until: datetime | None) -> list[Any]:
    """Say that a try started within a time, its ends included; ``None`` is open."""
    exactly = [
        *([attempt.c.started_at >= since] if since is not None else []),
        *([attempt.c.started_at <= until] if until is not None else []),
    ]
    return [*_slots_between(since, until), *exactly]


def _slots_between(since: datetime | None, until: datetime | None) -> list[Any]:
    """Say nearly the same in what the indexes hold."""
    return [
        *([attempt.c.start_slot >= start_slot(since)] if since is not None else []),
        *([attempt.c.start_slot <= start_slot(until)] if until is not None else []),
    ]


def counts(rows: Any = attempt) -> Any:
    """Leave out what was inferred of a try before its worker reported after all; see :mod:`~.queries`."""
    other = attempt.alias("reported")
    report = select(other.c.ordinal).where(*_same_try(other, rows), other.c.attribution == REPORTED)
    return or_(rows.c.attribution == REPORTED, ~report.exists())


def _same_try(other: Any, rows: Any) -> list[Any]:
    return [other.c[column.name] == rows.c[column.name] for column in KEY]


# --- one search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Search:
    """What to look for, and along which index."""

    connection: Connection
    filters: AttemptFilter
    refs: list[int] | None
    """Rows of the workers that must have run a try, or ``None`` for any."""
    along: tuple[Any, ...] = ()
    """What leads to the tries: conditions on the attempt table that an index serves."""
    readable: tuple[Any, ...] = ()
    """The Dags that the reader may see, where they do not lead to the tries."""
    branches: tuple[Any, list[Any]] | None = None
    """A column and its values, to be searched one by one: each in the order of the starts."""
    is_scanned: bool = False
    """Whether there are filters for which what ``along`` leads to must be looked through."""
    is_cut: bool = False
    """Whether there are more lives of workers, or more tries in this state, than are searched."""

    def page(self, limit: int, offset: int) -> Any:
        """Select the keys of a page in order; where tries are looked through, with how many were found."""
        # Looking through is what costs: it is done once for the page and the total.
        found = self._found(max(MAX_TOTAL, limit + offset) if self.is_scanned else limit + offset, is_ordered=True)
        order = latest_first(self.connection, found)
        total = [func.count().over().label("total")] if self.is_scanned else []
        keys = [found.c[column.name] for column in KEY]
        return select(*keys, *total).order_by(*order).limit(limit).offset(offset)

    def count(self) -> Any:
        """Select how many tries are found, up to :data:`MAX_TOTAL`."""
        found = self._found(MAX_TOTAL, is_ordered=False)
        within = select(found.c.try_number).limit(MAX_TOTAL).subquery()
        return select(func.count()).select_from(within)

    def beyond_the_scanned(self) -> Any:
        """Select a row if there are tries that were not looked through, of Dags that the reader may see."""
        window = _slots_between(self.filters.started_at_gte, self.filters.started_at_lte)
        given, of_branch, scanned = self._given()
        rest = (
            select(attempt.c.start_slot)
            .where(*of_branch, *self.along, *self.readable, *window)
            .order_by(_backwards(self.connection, attempt.c.start_slot))
            .offset(scanned)
            .limit(1)
        )
        return self._of_each(given, rest)

    def _found(self, limit: int, *, is_ordered: bool) -> Any:
        given, of_branch, scanned = self._given()
        window = started_between(self.filters.started_at_gte, self.filters.started_at_lte)
        conditions = [*of_branch, *self.along, *self.readable, *window]
        rows: Any = attempt
        if self.is_scanned:
            latest = _backwards(self.connection, attempt.c.start_slot)
            looked_through = select(attempt).where(*conditions).order_by(latest).limit(scanned)
            rows = looked_through.subquery() if given is None else looked_through.correlate(given).lateral()
            conditions = []
        found = select(*(rows.c[name] for name in (*(column.name for column in KEY), "start_slot", "started_at")))
        found = found.where(*conditions, *self._conditions(rows)).limit(limit)
        if is_ordered:
            found = found.order_by(*latest_first(self.connection, rows))
        return self._of_each(given, found).subquery()

    def _given(self) -> tuple[Any, list[Any], int]:
        """Return the branches as a table, the condition of one, and how many of its tries are looked through."""
        if self.branches is None:
            return None, [], MAX_SCANNED
        column, values = self.branches
        given = unnest(column, values)
        return given, [column == given.c.value], MAX_SCANNED // len(values)

    @staticmethod
    def _of_each(given: Any, statement: Any) -> Any:
        if given is None:
            return statement
        branch = statement.lateral()
        return select(branch).select_from(given.join(branch, true()))

    def _conditions(self, rows: Any) -> list[Any]:
        """Say what fits, of rows that the index leads to."""
        wanted = {name: getattr(self.filters, name) for name in _NAMES}
        conditions = [rows.c[name] == value for name, value in wanted.items() if value is not None]
        if self.filters.state in FINISHED:
            conditions.append(_is_now(self.connection, self.filters.state, rows))
        if self.refs is None:
            conditions.append(rows.c.ordinal == 0)
        else:
            conditions += [_is_first_of(self.connection, self.refs, rows), counts(rows)]
        return conditions


def _search(connection: Connection, filters: AttemptFilter, dag_ids: frozenset[str] | None) -> _Search | None:
    """Choose the index to follow; ``None`` where nothing can be found."""
    refs = _worker_refs(connection, filters)
    dag_ids = _searched_dags(connection, filters, dag_ids)
    if refs == [] or dag_ids == frozenset():
        return None
    is_cut = refs is not None and len(refs) == MAX_LIVES
    of_refs = () if refs is None else (in_list(connection, attempt.c.worker_ref, refs),)
    of_dag = readable = ()
    if dag_ids is not None and len(dag_ids) == 1:
        of_dag = of_dags(connection, dag_ids)
    else:
        readable = of_dags(connection, dag_ids)
    if filters.state is not None and filters.state not in FINISHED:
        keys = _keys_in_state(connection, filters, dag_ids)
        along = (is_one_of(connection, keys), *of_refs)
        is_cut = is_cut or len(keys) == MAX_TOTAL
        return _Search(connection, filters, refs, along, (*of_dag, *readable), is_cut=is_cut) if keys else None
    if filters.run_id is not None and dag_ids is not None:
        run_keys = [run_key(dag_id, filters.run_id) for dag_id in sorted(dag_ids)]
        along = (in_list(connection, attempt.c.run_key, run_keys), *of_refs)
        return _Search(connection, filters, refs, along, (*of_dag, *readable), is_cut=is_cut)
    is_scanned = any(getattr(filters, name) is not None for name in (*_NAMES, "state"))
    branches: tuple[Any, list[Any]] | None = None
    if connection.dialect.name == "postgresql":
        if refs is not None and len(refs) > 1:
            branches, of_refs = (attempt.c.worker_ref, refs), ()
        elif refs is None and dag_ids is not None and 1 < len(dag_ids) <= MAX_BRANCHES:
            branches, readable = (attempt.c.dag_id, sorted(dag_ids)), ()
    return _Search(connection, filters, refs, (*of_refs, *of_dag), readable, branches, is_scanned, is_cut)


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
    """Say that a try is of one of these Dags; of any for ``None``."""
    if dag_ids is None:
        return ()
    # Not the bare column: of many Dags no database should gather all tries before it looks at the other conditions.
    column = attempt.c.dag_id if len(dag_ids) == 1 else func.coalesce(attempt.c.dag_id, "")
    return (in_list(connection, column, sorted(dag_ids)),)


def _worker_refs(connection: Connection, filters: AttemptFilter) -> list[int] | None:
    """Return the row IDs of the workers that the filter names, the latest, or ``None`` when it names none."""
    column = worker.c
    conditions = []
    if filters.worker_id is not None:
        conditions.append(or_(column.worker_id == filters.worker_id, column.reported_id == filters.worker_id))
    if filters.worker_name is not None:
        conditions.append(or_(column.name == filters.worker_name, column.engine_name == filters.worker_name))
    if filters.hostname is not None:
        conditions.append(column.hostname == filters.hostname)
    if not conditions:
        return None
    latest = select(column.id).where(*conditions).order_by(column.id.desc()).limit(MAX_LIVES)
    return list(connection.execute(latest).scalars())


def _is_first_of(connection: Connection, refs: list[int], rows: Any) -> Any:
    """Keep one row per try where several of the wanted workers ran the same try."""
    if len(refs) == 1:
        return true()
    other = attempt.alias("other")
    earlier = select(other.c.ordinal).where(
        *_same_try(other, rows), in_list(connection, other.c.worker_ref, refs), other.c.ordinal < rows.c.ordinal
    )
    return or_(rows.c.ordinal == 0, ~earlier.exists())


# --- the state that Airflow has --------------------------------------------------------------------------------------


def _is_now(connection: Connection, state: str, rows: Any) -> Any:
    """Say that a try ended in a state: by our word where it is closed, else by Airflow's."""
    return or_(
        and_(rows.c.ended_at.is_not(None), rows.c.state == state),
        # Scalar subqueries, which no database is tempted to answer by reading all of Airflow's table.
        and_(
            rows.c.ended_at.is_(None),
            _is_of_its_run(connection, rows),
            func.coalesce(
                _airflows_word(metadata_database.task_instance_history_table(), rows),
                _airflows_word(metadata_database.task_instance_table(), rows),
                case((rows.c.state == state, state), else_=""),
            )
            == state,
        ),
    )


def _is_of_its_run(connection: Connection, rows: Any) -> Any:
    """Say that the Dag run of these names may be the one that a try was of: see :func:`.airflow_history.is_of_run`.

    The start of a try is by its worker's clock. Where the database can, clocks may be apart for a while.
    """
    run = metadata_database.dag_run_table()
    same = (run.c.dag_id == rows.c.dag_id, run.c.run_id == rows.c.run_id)
    began = select(run_began(run)).where(*same).scalar_subquery()
    started_at = rows.c.started_at
    if connection.dialect.name == "postgresql":
        started_at = type_coerce(started_at, TIMESTAMP(timezone=True)) + literal(CLOCK_SKEW, Interval())
    return or_(began.is_(None), began <= started_at)


def _airflows_word(table: Any, rows: Any) -> Any:
    """Select the state of a try in one of Airflow's tables: empty for none, NULL where the table has no such try."""
    names = ("dag_id", "task_id", "run_id", "map_index", "try_number")
    return (
        select(func.coalesce(table.c.state, ""))
        .where(*(table.c[name] == rows.c[name] for name in names))
        .scalar_subquery()
    )


def _keys_in_state(connection: Connection, filters: AttemptFilter, dag_ids: frozenset[str] | None) -> list[RowKey]:
    """Return which tries are in a state that is not their last: Airflow has them by state, and they are few."""
    instance = metadata_database.task_instance_table()
    source, identity = metadata_database.try_identity(instance)
    given = {"dag_id": filters.dag_id, **{name: getattr(filters, name) for name in _NAMES}}
    rows = connection.execute(
        select(*(instance.c[name] for name in ("dag_id", *_NAMES)), *identity)
        .select_from(source)
        .where(
            instance.c.state == filters.state,
            *(instance.c[name] == value for name, value in given.items() if value is not None),
            *([] if dag_ids is None else [in_list(connection, func.coalesce(instance.c.dag_id, ""), sorted(dag_ids))]),
        )
        .order_by(instance.c.start_date.desc())
        .limit(MAX_TOTAL)
    )
    return [(run_key(row.dag_id, row.run_id), key, row.try_number) for row in rows for key in instance_keys(row)]
