"""Statistics are kept by hour and by day, and say what a recomputation from all tries would say."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select

from airflow_worker_insight.analysis.rollup import Rollup
from airflow_worker_insight.domain.filters import AttemptFilter
from airflow_worker_insight.domain.statistics import Bucket, Selection, Sums, hour_of, hour_start, split_hours
from airflow_worker_insight.domain.tries import TryOutcome
from airflow_worker_insight.store import retention, statistics
from airflow_worker_insight.store.insight_tables import queue_hour, task_hour, unit, worker_hour
from airflow_worker_insight.store.retention import Removed
from airflow_worker_insight.store.statistics import StatisticsError
from tests.unit.analysis.tries import a_try, a_worker, any_try
from tests.unit.database import NOON, Database, at, on_both

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.statistics import StatisticsPage
    from airflow_worker_insight.domain.tries import AnalyzedTry, TryWorker

DAY = 86400.0
MIDNIGHT = datetime(2026, 3, 2, tzinfo=timezone.utc)
"""The end of the day of :data:`NOON`."""


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """Return a connection whose transaction is rolled back."""
    with database.engine.connect() as opened, opened.begin() as transaction:
        yield opened
        transaction.rollback()


def store(
    connection: Connection, *tries: AnalyzedTry, slots: Iterable[tuple[TryWorker, int, float, float]] = ()
) -> None:
    """Add tries, of each of which one in four is expected to fail, and slots between two seconds after noon."""
    rollup = Rollup()
    for each in tries:
        rollup.add(each, expected_failure=0.25)
    for worker, concurrency, since, until in slots:
        rollup.add_slots(worker, concurrency, at(since), at(until))
    statistics.add(connection, rollup.take())


def ask(
    connection: Connection,
    group_by: str = "worker",
    bucket: Bucket = Bucket.NONE,
    *,
    since: datetime = NOON - timedelta(days=100),
    until: datetime = NOON + timedelta(days=100),
    dag_ids: Iterable[str] | None = None,
    limit: int = 1000,
    offset: int = 0,
    **filters: Any,
) -> StatisticsPage:
    return statistics.query(
        connection,
        Selection(group_by, bucket, since, until, AttemptFilter(**filters)),
        dag_ids=None if dag_ids is None else frozenset(dag_ids),
        limit=limit,
        offset=offset,
    )


def tries_of(page: StatisticsPage) -> dict[str | None, int]:
    return {row.group: row.tries for row in page.rows}


def merge(connection: Connection, now: datetime = MIDNIGHT) -> None:
    """Merge days until nothing is left to do."""
    while statistics.merge_days(connection, now):
        pass


def count(connection: Connection, table: Any, hours: int) -> int:
    found: int = connection.execute(select(func.count()).where(table.c.hours == hours)).scalar_one()
    return found


def contents(connection: Connection) -> list[list[Any]]:
    """Return all rows, with rounded sums."""
    return [
        sorted(
            tuple(round(value, 5) if isinstance(value, float) else value for value in row)
            for row in connection.execute(select(table))
        )
        for table in (worker_hour, queue_hour, task_hour)
    ]


# --- sums ------------------------------------------------------------------------------------------------------------


@on_both
def test_a_row_says_what_the_contract_names(connection: Connection) -> None:
    store(
        connection,
        a_try(-90, 30, queued=-100),
        a_try(0, 40, queued=-2, outcome=TryOutcome.FAILED),
        a_try(0, 10, outcome=TryOutcome.LOST),
        a_try(0, 20, outcome=TryOutcome.OTHER),
        slots=[(a_worker(), 2, 0, 100)],
    )
    page = ask(connection, since=NOON, until=at(60))
    assert (page.since, page.until, page.total) == (NOON, at(3600), 1)
    (row,) = page.rows
    assert (row.group, row.bucket, row.tries, row.failed, row.lost) == ("w1", None, 3, 1, 1)
    assert row.busy_seconds == 100
    assert row.utilization == 0.5
    assert row.mean_duration == round(170 / 3, 3)
    assert row.mean_queue_seconds == 6
    assert [each.bucket for each in ask(connection, bucket=Bucket.HOUR).rows] == [at(-3600), NOON]
    assert [each.bucket for each in ask(connection, bucket=Bucket.DAY).rows] == [NOON - timedelta(hours=12)]


@on_both
def test_only_busy_seconds_of_workers_with_known_slots_make_utilization(connection: Connection) -> None:
    store(
        connection,
        a_try(0, 60),
        a_try(0, 900, worker=a_worker("w2")),
        # An hour before its concurrency was known.
        a_try(-3000, -100),
        slots=[(a_worker(), 1, 0, 120)],
    )
    (row,) = ask(connection, "kind").rows
    assert (row.busy_seconds, row.utilization) == (60 + 900 + 2900, 0.5)
    by_name = {row.group: row.utilization for row in ask(connection).rows}
    assert by_name == {"w1": 0.5, "w2": None}
    for group_by in ("queue", "dag", "task"):
        assert {row.utilization for row in ask(connection, group_by).rows} == {None}


@on_both
def test_groups(connection: Connection) -> None:
    zone_b = a_worker("w2", hostname="host-2", kind="edge", labels={"zone": "b", "a.b/c": "d"}, image="etl:2")
    pod = a_worker("pod-1", kind="kubernetes", hostname="pod-1", node="n1", is_single_try=True)
    store(
        connection,
        *[a_try(0, 10)] * 3,
        *[a_try(0, 10, worker=zone_b, queue="heavy", dag_id="a.b", task_id="c")] * 2,
        a_try(0, 10, worker=pod, queue=None, dag_id="a", task_id="b.c"),
    )
    assert tries_of(ask(connection, "worker")) == {"w1": 3, "w2": 2, None: 1}
    assert tries_of(ask(connection, "host")) == {"host-1": 3, "host-2": 2, "n1": 1}
    assert tries_of(ask(connection, "kind")) == {"celery": 3, "edge": 2, "kubernetes": 1}
    assert tries_of(ask(connection, "queue")) == {"default": 3, "heavy": 2, None: 1}
    assert tries_of(ask(connection, "label:zone")) == {None: 4, "b": 2}
    assert tries_of(ask(connection, "label:a.b/c")) == {None: 4, "d": 2}
    assert tries_of(ask(connection, "label:image")) == {None: 4, "etl:2": 2}
    assert tries_of(ask(connection, "label:node")) == {None: 5, "n1": 1}
    assert tries_of(ask(connection, "dag")) == {"etl": 3, "a.b": 2, "a": 1}
    # The same text, but two tasks.
    assert [(row.group, row.tries) for row in ask(connection, "task").rows] == [
        ("etl.load", 3),
        ("a.b.c", 2),
        ("a.b.c", 1),
    ]
    assert tries_of(ask(connection, "host", worker_name="w1")) == {"host-1": 3}
    assert tries_of(ask(connection, "worker", hostname="host-2", worker_name="w2")) == {"w2": 2}
    assert tries_of(ask(connection, "task", dag_id="etl")) == {"etl.load": 3}
    assert tries_of(ask(connection, "dag", task_id="c")) == {"a.b": 2}


@on_both
def test_tasks_of_dags_that_the_reader_may_not_see_are_neither_listed_nor_counted(connection: Connection) -> None:
    store(connection, a_try(0, 10), *[a_try(0, 10, dag_id="secret")] * 5)
    for group_by in ("dag", "task"):
        page = ask(connection, group_by, dag_ids={"etl", "other"})
        assert ([row.tries for row in page.rows], page.total) == ([1], 1)
        assert ask(connection, group_by, dag_ids=()).total == 0
        assert ask(connection, group_by, dag_ids={"etl"}, dag_id="secret").total == 0


@on_both
def test_a_list_has_pages_and_a_total(connection: Connection) -> None:
    store(connection, *(a_try(0, 10, worker=a_worker(f"w{number}")) for number in range(5)))
    pages = [ask(connection, limit=2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [[row.group for row in page.rows] for page in pages] == [["w0", "w1"], ["w2", "w3"], ["w4"], []]
    assert {page.total for page in pages} == {5}


@on_both
def test_a_second_instance_of_a_name_adds_to_the_same_unit(connection: Connection) -> None:
    store(connection, a_try(0, 10))
    store(connection, a_try(7200, 7210, worker=replace(a_worker(), ref=2, worker_id="again")))
    store(connection, a_try(0, 10))
    (row,) = connection.execute(select(unit)).all()
    assert (row.name, row.last_hour) == ("w1", hour_of(NOON) + 2)
    assert tries_of(ask(connection)) == {"w1": 3}


@on_both
def test_ten_thousand_pods_of_one_node_are_one_row(connection: Connection) -> None:
    pods = (
        a_worker(f"pod-{number}", hostname=f"pod-{number}", node="n1", is_single_try=True) for number in range(10_000)
    )
    store(connection, *(a_try(0, 10, worker=pod) for pod in pods))
    assert [count(connection, table, 1) for table in statistics.TABLES] == [1, 1, 1]
    assert tries_of(ask(connection, "host")) == {"n1": 10_000}


@on_both
@pytest.mark.parametrize("text", ["<b>&amp;'\"\\;--%(x)s {0}", "Ω ☃ 名前", "x" * 250, "a:b", "null", " "])
def test_names_are_kept_as_they_are(connection: Connection, text: str) -> None:
    worker = a_worker(text, hostname=text, labels={"zone": text[:128]})
    store(connection, a_try(0, 10, worker=worker, queue=text, dag_id=text, task_id=text))
    for group_by in ("worker", "host", "queue", "dag"):
        assert tries_of(ask(connection, group_by)) == {text: 1}
    assert tries_of(ask(connection, "label:zone")) == {text[:128]: 1}
    assert tries_of(ask(connection, worker_name=text)) == {text: 1}
    assert tries_of(ask(connection, "task", dag_id=text, task_id=text, dag_ids={text})) == {f"{text}.{text}": 1}


@on_both
@settings(
    max_examples=15,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_sums_are_those_of_a_recomputation_however_they_were_added(database: Database, data: st.DataObject) -> None:
    tries = data.draw(st.lists(any_try(days=20), max_size=25))
    batches = data.draw(st.lists(st.integers(0, len(tries)), max_size=3).map(sorted))
    since, until = (NOON - timedelta(hours=data.draw(st.integers(0, 20 * 24))) for _ in range(2))
    since, until = min(since, until), max(since, until) + timedelta(hours=1)
    with database.engine.connect() as connection, connection.begin() as transaction:
        for begin, end in zip([0, *batches], [*batches, len(tries)], strict=True):
            store(connection, *tries[begin:end])
            # Days are merged in between, so that some tries come late to merged ones.
            merge(connection, NOON - timedelta(days=data.draw(st.integers(0, 20))))
        bucket = data.draw(st.sampled_from([Bucket.DAY, Bucket.NONE]))
        page = ask(connection, "host", bucket, since=since, until=until)
        expected: dict[tuple[str, datetime | None], Sums] = defaultdict(Sums)

        def sums_of(each: AnalyzedTry, hour: int) -> Sums:
            """Return the sums that an hour of a try counts in, or others outside the window."""
            if not page.since <= hour_start(hour) < page.until:
                return Sums()
            day = None if bucket == Bucket.NONE else hour_start(hour).replace(hour=0)
            return expected[each.worker.hostname, day]

        for each in tries:
            assert each.ended_at is not None
            for hour, seconds in split_hours(each.started_at, each.ended_at):
                sums_of(each, hour).busy_seconds += seconds
            if each.outcome != TryOutcome.OTHER:
                sums_of(each, hour_of(each.ended_at)).tries += 1
        assert {(row.group, row.bucket): (row.tries, row.busy_seconds) for row in page.rows} == {
            key: (sums.tries, pytest.approx(sums.busy_seconds, abs=0.01)) for key, sums in expected.items()
        }
        assert page.since <= since
        assert page.until >= until
        transaction.rollback()


@on_both
def test_added_in_two_parts_is_added_at_once(connection: Connection) -> None:
    tries = [a_try(-second, 10 * second, queued=-2 * second) for second in range(60)]
    slots = [(a_worker(), 4, 0, 100)]
    store(connection, *tries, slots=[*slots, *slots])
    at_once = contents(connection)
    for table in statistics.TABLES:
        connection.execute(delete(table))
    store(connection, *tries[:20], slots=slots)
    store(connection, *tries[20:], slots=slots)
    assert contents(connection) == at_once


# --- days ------------------------------------------------------------------------------------------------------------


def spread(connection: Connection, days: int) -> None:
    """Store tries of three hours of each of the days up to the one of noon."""
    store(
        connection,
        *(
            a_try(-day * DAY + hour * 3600, -day * DAY + hour * 3600 + 10 + hour, queued=-day * DAY)
            for day in range(days)
            for hour in (0, 1, 5)
        ),
        slots=[(a_worker(), 2, -day * DAY, -day * DAY + 60) for day in range(days)],
    )


@on_both
def test_days_are_merged_without_a_change_of_any_sum(connection: Connection) -> None:
    spread(connection, 20)
    before = {group_by: ask(connection, group_by, Bucket.DAY).rows for group_by in ("worker", "queue", "task")}
    whole = ask(connection).rows
    merge(connection)
    for table in statistics.TABLES:
        assert count(connection, table, 24) == 20
        assert count(connection, table, 1) == 14 * 3
    for group_by, rows in before.items():
        assert ask(connection, group_by, Bucket.DAY).rows == rows
    assert ask(connection).rows == whole
    assert statistics.merge_days(connection, MIDNIGHT) == 0


@on_both
def test_a_step_of_merging_is_one_day(connection: Connection) -> None:
    spread(connection, 3)
    assert statistics.merge_days(connection, MIDNIGHT) == len(statistics.TABLES)
    assert [count(connection, table, 24) for table in statistics.TABLES] == [1, 1, 1]
    # The day of now is not complete.
    merge(connection, MIDNIGHT - timedelta(seconds=1))
    assert [count(connection, table, 24) for table in statistics.TABLES] == [2, 2, 2]


@on_both
def test_a_window_is_cut_at_hours_where_they_are_kept_and_else_at_days(connection: Connection) -> None:
    spread(connection, 20)
    merge(connection)
    recent = ask(connection, since=at(-2 * DAY + 3600), until=at(-DAY + 3600))
    assert (recent.since, recent.until) == (at(-2 * DAY + 3600), at(-DAY + 3600))
    assert tries_of(recent) == {"w1": 3}
    long_ago = ask(connection, since=at(-18 * DAY + 3600), until=at(-17 * DAY + 3600))
    assert (long_ago.since, long_ago.until) == (MIDNIGHT - timedelta(days=19), MIDNIGHT - timedelta(days=17))
    assert tries_of(long_ago) == {"w1": 6}
    assert tries_of(ask(connection, since=at(-18 * DAY), until=at(3600))) == {"w1": 3 * 18 + 1}
    # Within one day.
    assert tries_of(ask(connection, since=at(-DAY + 3600), until=at(-DAY + 7200))) == {"w1": 1}


@on_both
def test_hours_that_are_not_kept_are_refused_with_what_to_ask_for(connection: Connection) -> None:
    spread(connection, 20)
    merge(connection)
    kept_from = MIDNIGHT - timedelta(days=14)
    assert tries_of(ask(connection, bucket=Bucket.HOUR, since=kept_from, until=kept_from + timedelta(days=1)))
    with pytest.raises(StatisticsError, match=r"kept for 14 days: ask for a from of 2026-02-16T00:00:00Z or later"):
        ask(connection, bucket=Bucket.HOUR, since=kept_from - timedelta(hours=1))


@on_both
def test_what_comes_late_counts_in_its_day(connection: Connection) -> None:
    spread(connection, 20)
    merge(connection)
    # One whose hours are kept, and one whose hours are not.
    store(connection, a_try(-2 * DAY, -2 * DAY + 10), a_try(-17 * DAY, -17 * DAY + 10))
    assert tries_of(ask(connection)) == {"w1": 62}
    days = {row.bucket: row.tries for row in ask(connection, bucket=Bucket.DAY).rows}
    assert [days[MIDNIGHT - timedelta(days=days_ago)] for days_ago in (3, 18, 4)] == [4, 4, 3]
    assert tries_of(ask(connection, since=at(-2 * DAY), until=at(-2 * DAY + 60))) == {"w1": 2}
    assert [count(connection, table, 1) for table in statistics.TABLES] == [14 * 3] * 3


# --- retention -------------------------------------------------------------------------------------------------------


@on_both
def test_statistics_go_with_their_hour_or_day_and_units_with_their_last(database: Database) -> None:
    with database.engine.begin() as connection:
        spread(connection, 20)
        store(connection, a_try(-10 * DAY, -10 * DAY + 10, worker=a_worker("gone")))
        merge(connection)
    limit = at(-5 * DAY + 3600)
    with database.engine.connect() as connection:
        said = retention.preview(connection, limit).removed
    removed = sum(retention.prune(limit), Removed())
    assert removed == said
    assert removed.statistics > 0
    with database.engine.connect() as connection:
        # The day of the limit is kept, and in it the hours from the limit on.
        assert count(connection, worker_hour, 24) == 6
        assert count(connection, worker_hour, 1) == 3 * 5 + 2
        assert connection.execute(select(unit.c.name)).scalars().all() == ["w1"]
        assert tries_of(ask(connection)) == {"w1": 18}
    assert sum(retention.prune(limit), Removed()) == Removed()
    assert sum(retention.prune(MIDNIGHT + timedelta(days=2)), Removed()).statistics > 0
    with database.engine.connect() as connection:
        assert [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (*statistics.TABLES, unit)
        ] == [0] * 4


# --- the heat map ----------------------------------------------------------------------------------------------------


@on_both
def test_the_heat_map_shows_the_workers_with_the_most_failures_beyond_expectation(connection: Connection) -> None:
    failed, lost = TryOutcome.FAILED, TryOutcome.LOST
    pod = a_worker("pod-1", kind="kubernetes", hostname="pod-1", node="n1", is_single_try=True)
    store(
        connection,
        *(a_try(0, 10, worker=a_worker(f"w{number}")) for number in range(5)),
        *[a_try(3600, 3610, worker=a_worker("w3"), outcome=failed, queued=3590)] * 4,
        *[a_try(3600, 3610, worker=pod, outcome=lost)] * 2,
        slots=[(a_worker("w3"), 1, 3600, 3680)],
    )
    found = statistics.heat_map(connection, since=NOON, until=at(7200), limit=2)
    assert [(row.kind, row.name, row.hostname) for row in found.rows] == [
        ("celery", "w3", "host-1"),
        ("kubernetes", None, "n1"),
    ]
    assert found.others == 4
    cells = found.rows[0].cells
    assert list(cells) == [NOON, at(3600)]
    cell = cells[at(3600)]
    assert (cell.tries, cell.failed, cell.lost, cell.expected_failed) == (4, 4, 0, 1.0)
    assert (cell.utilization, cell.mean_queue_seconds) == (0.5, 10)
    assert found.rows[1].cells[at(3600)].lost == 2
    by_name = statistics.heat_map(connection, since=NOON, until=at(7200), limit=3, by_name=True)
    assert sorted(row.name or "" for row in by_name.rows if row.name) == [row.name for row in by_name.rows if row.name]
    assert by_name.others == 3
    assert statistics.heat_map(connection, since=at(DAY), until=at(2 * DAY)).rows == []


@on_both
def test_a_worker_is_one_row_of_the_heat_map_whatever_its_labels(connection: Connection) -> None:
    store(
        connection,
        a_try(0, 10),
        a_try(0, 10, worker=a_worker(labels={"zone": "b"})),
        a_try(0, 10, worker=a_worker(hostname="host-2")),
        a_try(0, 10, worker=a_worker(kind="edge")),
    )
    found = statistics.heat_map(connection, since=NOON, until=at(60))
    assert sorted((row.kind, row.hostname, row.cells[NOON].tries) for row in found.rows) == [
        ("celery", "host-2", 3),
        ("edge", "host-1", 1),
    ]
