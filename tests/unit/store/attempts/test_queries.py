"""What readers get: attempts with their workers, paged, filtered and restricted to their Dags."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.domain.attempts import Attempt, Conditions
from airflow_worker_insight.domain.attribution import host_worker
from airflow_worker_insight.domain.filters import AllDags, AttemptFilter
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store.attempts import close, search
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.attempts.search import SearchLimits
from airflow_worker_insight.store.tables import attempt, start_slot, worker
from tests.unit.database import (
    NOON,
    Database,
    a_worker,
    add_run,
    add_try,
    at,
    change_try,
    instance_of,
    on_both,
    record_start,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import DagRunRef
    from airflow_worker_insight.domain.workers import WorkerRecord

A_MINUTE_LATER = at(60)

KEY = TryKey("etl", "run-1", "extract", -1, 1)


def record(
    database: Database,
    key: TryKey = KEY,
    *workers: WorkerRecord,
    started_at: datetime | None = NOON,
    state: str = "success",
    ended_at: datetime | None = A_MINUTE_LATER,
) -> None:
    """Store a try as it is after its run was reconciled; open with ``ended_at=None``."""
    with database.engine.begin() as connection:
        for one in workers or (a_worker(),):
            record_start(connection, key, one, try_started_at=started_at, state=state, now=NOON)
        connection.execute(
            attempt.update()
            .where(
                attempt.c.run_key == key.run_key,
                attempt.c.task_key == instance_of(connection, key),
                attempt.c.try_number == key.try_number,
            )
            .values(started_at=started_at, start_slot=start_slot(started_at), ended_at=ended_at)
        )


def listed(
    database: Database,
    *,
    dag_ids: Collection[str] = ("etl", "elt"),
    limit: int = 50,
    offset: int = 0,
    **filters: Any,
) -> tuple[list[Attempt], int]:
    with database.engine.connect() as connection:
        return attempt_queries.list_attempts(
            connection, AttemptFilter(**filters), dag_ids=dag_ids, limit=limit, offset=offset
        )


def keys(attempts: Iterable[Attempt]) -> list[TryKey]:
    return [TryKey(one.dag_id, one.run_id, one.task_id, one.map_index, one.try_number) for one in attempts]


def panel(database: Database, key: TryKey = KEY) -> list[Attempt]:
    with database.engine.connect() as connection:
        return attempt_queries.task_instance_attempts(
            connection, dag_id=key.dag_id, run_id=key.run_id, task_id=key.task_id, map_index=key.map_index
        )


# --- a page ----------------------------------------------------------------------------------------------------------


@on_both
def test_an_attempt_with_all_that_is_known(database: Database) -> None:
    record(database, KEY, a_worker("one"), a_worker("two", hostname="host-2"), a_worker("one"))

    ((one,), total) = listed(database)

    assert total == 1
    assert keys([one]) == [KEY]
    assert (one.state, one.started_at, one.ended_at, one.duration) == ("success", NOON, at(60), 60.0)
    assert one.attribution == "reported"
    assert [(by.worker_id, by.hostname, by.process_count, by.host_only) for by in one.workers] == [
        ("one", "host-1", 2, False),
        ("two", "host-2", 1, False),
    ]
    assert (one.workers[0].name, one.workers[0].kind) == ("one@host-1", "celery")
    assert (one.workers[0].first_started_at, one.workers[0].last_started_at) == (NOON, NOON)


@on_both
def test_pages_count_tries_and_not_workers(database: Database) -> None:
    """A try that three workers ran must neither shorten a page nor raise the total."""
    tries = [replace(KEY, task_id=f"t{number}") for number in range(5)]
    for number, key in enumerate(tries):
        record(database, key, a_worker("one"), a_worker("two"), a_worker("three"), started_at=at(-number))

    pages = [listed(database, limit=2, offset=offset) for offset in (0, 2, 4, 6)]

    assert [keys(page) for page, _ in pages] == [tries[0:2], tries[2:4], tries[4:5], []]
    assert [total for _, total in pages] == [5, 5, 5, 5]
    assert all(len(one.workers) == 3 for page, _ in pages for one in page)


@on_both
def test_the_latest_start_comes_first_and_none_at_the_end(database: Database) -> None:
    starts = {"old": at(-60), "none": None, "new": at(60), "older": at(-61), "none-2": None}
    for task_id, started_at in starts.items():
        record(database, replace(KEY, task_id=task_id), started_at=started_at)
    order = [one.task_id for one in listed(database)[0]]
    assert order[:3] == ["new", "old", "older"]
    assert sorted(order[3:]) == ["none", "none-2"]


def test_equal_starts_have_one_order_over_all_pages(database: Database) -> None:
    wanted = {replace(KEY, task_id=f"t{number}", try_number=1 + number % 2) for number in range(7)}
    for key in wanted:
        record(database, key)
    pages = [keys(listed(database, limit=3, offset=offset)[0]) for offset in (0, 3, 6)]
    assert sorted(map(repr, wanted)) == sorted(repr(key) for page in pages for key in page)


def test_a_try_that_ended_before_it_started_took_no_time(database: Database) -> None:
    record(database, started_at=at(60), ended_at=at(59))
    assert listed(database)[0][0].duration == 0.0


# --- filters ---------------------------------------------------------------------------------------------------------

WANTED = TryKey("etl", "run-1", "extract", 3, 2)
OTHERS: dict[str, Any] = {
    "dag_id": "elt",
    "run_id": "run-2",
    "task_id": "load",
    "map_index": 4,
    "try_number": 1,
}


@on_both
@pytest.mark.parametrize("name", OTHERS)
def test_a_filter_by_name(database: Database, name: str) -> None:
    record(database, WANTED)
    record(database, replace(WANTED, **{name: OTHERS[name]}))
    attempts, total = listed(database, **{name: getattr(WANTED, name)})
    assert (keys(attempts), total) == ([WANTED], 1)
    nobody: dict[str, Any] = {name: 99 if name in ("map_index", "try_number") else "nobody"}
    assert listed(database, **nobody) == ([], 0)


def test_all_filters_together(database: Database) -> None:
    record(database, WANTED)
    for name, value in OTHERS.items():
        record(database, replace(WANTED, **{name: value}))
    names = {name: getattr(WANTED, name) for name in OTHERS}
    assert keys(listed(database, **names)[0]) == [WANTED]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"started_at_gte": at(10)}, ["b", "c"]),
        ({"started_at_lte": at(10)}, ["a", "b"]),
        ({"started_at_gte": at(10), "started_at_lte": at(10)}, ["b"]),
        ({"started_at_gte": at(31)}, []),
    ],
)
def test_filters_by_time_include_their_ends(database: Database, filters: dict[str, Any], found: list[str]) -> None:
    for task_id, second in (("a", 0), ("b", 10), ("c", 30)):
        record(database, replace(KEY, task_id=task_id), started_at=at(second))
    record(database, replace(KEY, task_id="never"), started_at=None)
    attempts, total = listed(database, **filters)
    assert (sorted(one.task_id for one in attempts), total) == (found, len(found))


@on_both
@pytest.mark.parametrize(
    "filters",
    [{"worker_id": "one"}, {"worker_name": "the one"}, {"hostname": "here"}, {"worker_id": "one", "hostname": "here"}],
)
def test_a_filter_by_worker(database: Database, filters: dict[str, Any]) -> None:
    wanted = a_worker("one", name="the one", hostname="here")
    other = a_worker("two", name="the other", hostname="there")
    record(database, KEY, wanted)
    record(database, replace(KEY, task_id="load"), other)
    attempts, total = listed(database, **filters)
    assert (keys(attempts), total) == ([KEY], 1)


def test_filters_by_worker_must_all_fit_the_same_worker(database: Database) -> None:
    record(database, KEY, a_worker("one", hostname="here"), a_worker("two", hostname="there"))
    assert listed(database, worker_id="one", hostname="there") == ([], 0)


@on_both
def test_a_worker_that_took_a_try_over_finds_it_with_all_its_workers(database: Database) -> None:
    record(database, KEY, a_worker("first"), a_worker("second"))
    attempts, total = listed(database, worker_id="second")
    assert total == 1
    assert [by.worker_id for by in attempts[0].workers] == ["first", "second"]


@on_both
def test_a_try_is_counted_once_however_many_of_its_workers_fit(database: Database) -> None:
    record(database, KEY, a_worker("zero", hostname="host-0"), *(a_worker(f"w{number}") for number in range(3)))
    record(database, replace(KEY, task_id="load"), a_worker("w1"))
    attempts, total = listed(database, hostname="host-1", limit=10)
    assert total == 2
    assert sorted(one.task_id for one in attempts) == ["extract", "load"]


def test_an_unknown_worker_ran_nothing(database: Database) -> None:
    record(database)
    assert listed(database, worker_id="nobody") == ([], 0)
    assert listed(database, worker_id="' OR 1=1 --") == ([], 0)


@on_both
def test_a_filter_by_state_means_the_state_that_is_shown(database: Database) -> None:
    """Open tries are shown with Airflow's state: the filter must go by the same, and so must the total."""
    with database.engine.begin() as connection:
        run = add_run(connection)
        open_keys = {
            state: add_try(connection, run, task_id=f"open-{state}", state=state, ended_at=None)
            for state in ("running", "deferred", "success", None)
        }
    for key in open_keys.values():
        record(database, key, state="running", ended_at=None)
    record(database, replace(KEY, task_id="closed"), state="success")
    record(database, replace(KEY, task_id="forgotten-by-airflow"), state="running", ended_at=None)

    shown = {one.task_id: one.state for one in listed(database)[0]}
    assert shown == {
        "open-running": "running",
        "open-deferred": "deferred",
        "open-success": "success",
        "open-None": None,
        "closed": "success",
        # It does not run for ever.
        "forgotten-by-airflow": None,
    }
    for state in ("running", "deferred", "success", "failed"):
        attempts, total = listed(database, state=state)
        wanted = sorted(task_id for task_id, its in shown.items() if its == state)
        assert (sorted(one.task_id for one in attempts), total) == (wanted, len(wanted)), state


@on_both
def test_state_and_worker_and_dag_together(database: Database) -> None:
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection), state="running", ended_at=None)
    record(database, key, a_worker("one"), a_worker("two"), state="running", ended_at=None)
    found = listed(database, state="running", hostname="host-1", dag_id="etl", run_id="run-1")
    assert (keys(found[0]), found[1]) == ([key], 1)


def test_an_earlier_try_that_was_never_closed_has_the_state_of_the_history(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        add_try(connection, run, try_number=2, state="running", ended_at=None)
        first = add_try(connection, run, try_number=1, state="failed", ended_at=at(33), history=True)
    record(database, first, state="running", ended_at=None)
    ((one,), total) = listed(database, state="failed")
    assert (one.state, one.ended_at, total) == ("failed", at(33), 1)


@pytest.mark.parametrize(
    "text", ["O'Neill", 'a"b', "a/b?c=d&e", "<script>alert(1)</script>", "🐘", "%", "_", "x" * 250, "a b", "\\"]
)
@on_both
def test_names_of_any_characters_are_found_and_only_they(database: Database, text: str) -> None:
    key = TryKey(text, text, text, -1, 1)
    record(database, key, a_worker("odd", name=text))
    record(database, KEY)
    for name in ("dag_id", "run_id", "task_id", "worker_name"):
        filters: dict[str, Any] = {name: text}
        attempts, total = listed(database, dag_ids=["etl", text], **filters)
        assert (keys(attempts), total) == ([key], 1)
    assert keys(panel(database, key)) == [key]


# --- what a reader may see -------------------------------------------------------------------------------------------


@on_both
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"dag_id": "secret"},
        {"dag_id": "secret", "run_id": "run-1"},
        {"run_id": "run-1"},
        {"task_id": "hidden"},
        {"worker_id": "celery-1"},
        {"hostname": "host-1"},
        {"state": "success"},
    ],
)
def test_nothing_of_another_dag_is_listed_or_counted(database: Database, filters: dict[str, Any]) -> None:
    record(database, replace(KEY, dag_id="secret", task_id="hidden"))
    record(database, KEY)
    attempts, total = listed(database, dag_ids=["etl"], **filters)
    assert {one.dag_id for one in attempts} <= {"etl"}
    assert total == len(attempts)
    assert listed(database, dag_ids=[], **filters) == ([], 0)


def test_a_reader_of_very_many_dags(database: Database) -> None:
    record(database)
    assert listed(database, dag_ids=[*(f"dag-{number}" for number in range(5000)), "etl"])[1] == 1


# --- the panel -------------------------------------------------------------------------------------------------------


@on_both
def test_the_panel_shows_all_tries_the_latest_first(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        third = add_try(connection, run, try_number=3, state="running", hostname="host-3", ended_at=None)
        second = add_try(connection, run, try_number=2, state="failed", hostname="host-2", history=True)
        first = add_try(connection, run, try_number=1, state="failed", history=True)
    record(database, first, state="failed", ended_at=at(20))
    record(database, third, a_worker("three"), state="running", ended_at=None)

    shown = panel(database, third)

    assert keys(shown) == [third, second, first]
    assert [one.attribution for one in shown] == ["reported", "inferred", "reported"]
    assert [by.hostname for by in shown[1].workers] == ["host-2"]
    assert shown[1].workers[0].host_only


def test_the_panel_of_another_task_instance_shows_nothing(database: Database) -> None:
    record(database)
    for other in ({"dag_id": "elt"}, {"run_id": "run-2"}, {"task_id": "load"}, {"map_index": 0}):
        assert panel(database, replace(KEY, **other)) == []


def test_tries_stay_when_airflow_forgets_the_run(database: Database) -> None:
    record(database)
    (one,) = panel(database)
    assert (one.state, one.duration, one.workers[0].worker_id) == ("success", 60.0, "celery-1")


def test_an_open_try_has_airflows_state_and_times(database: Database) -> None:
    with database.engine.begin() as connection:
        run: DagRunRef = add_run(connection)
        key = add_try(connection, run, state="running", started_at=at(1), ended_at=None)
    record(database, key, started_at=at(1), state="running", ended_at=None)
    (running,) = panel(database, key)
    assert (running.state, running.ended_at, running.duration) == ("running", None, None)

    with database.engine.begin() as connection:
        change_try(connection, key, state="failed", end_date=at(11))
    for one in (panel(database, key)[0], listed(database)[0][0]):
        assert (one.state, one.ended_at, one.duration, one.attribution) == ("failed", at(11), 10.0, "reported")


def test_a_deferred_try_has_not_ended_whatever_its_row_says(database: Database) -> None:
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection), state="deferred", ended_at=at(15))
    record(database, key, state="running", ended_at=None)
    (one,) = panel(database, key)
    assert (one.state, one.ended_at, one.duration) == ("deferred", None, None)


def test_a_try_that_is_not_recorded_gets_the_same_worker_as_reconciling_gives(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the link to the worker's page would lead nowhere once the run has ended."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection), state="failed")
    (one,) = panel(database, key)
    assert one.workers[0].worker_id == host_worker("host-1", "celery").worker_id


def test_a_try_that_no_worker_ran_has_no_worker(database: Database) -> None:
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection), state="skipped", hostname=None, started_at=None, ended_at=None)
    (one,) = panel(database, key)
    assert (one.attribution, one.workers, one.duration) == ("not_on_a_worker", (), None)


def test_what_a_worker_reported_late_replaces_what_was_inferred(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run, state="failed")
        _infer(connection, key)
    record(database, key, a_worker("itself"), state="failed")
    for one in (panel(database, key)[0], listed(database)[0][0]):
        assert one.attribution == "reported"
        assert [by.worker_id for by in one.workers] == ["itself"]
    assert listed(database)[1] == 1


def _infer(connection: Connection, key: TryKey) -> None:
    from airflow_worker_insight.store import airflow_history

    (one,) = airflow_history.tries_of_task_instances(connection, [key]).values()
    hosts = close.ensure_hosts(connection, [host_worker("host-1", "celery")], now=NOON)
    close.add_tries(connection, [(one, "inferred", next(iter(hosts.values())))])


# --- what keeps lists quick ------------------------------------------------------------------------------------------


def page_of(
    database: Database,
    *,
    limit: int = 50,
    dag_ids: Collection[str] = ("etl", "elt"),
    limits: SearchLimits = search.LIMITS,
    **filters: Any,
) -> Any:
    with database.engine.connect() as connection:
        found = attempt_queries.find_attempts(
            connection, AttemptFilter(**filters), dag_ids=dag_ids, limit=limit, offset=0, limits=limits
        )
    return [one.task_id for one in found.attempts], found.total, found.total_is_exact


def a_row_of_tries(database: Database, number: int, **others: Any) -> None:
    """Store that many tries that started ten minutes after one another; the first one failed."""
    for count in range(number):
        key = replace(KEY, task_id=f"t{count}", **others)
        record(database, key, started_at=at(600 * count), state="success" if count else "failed", ended_at=at(9999))


@on_both
def test_totals_are_counted_up_to_a_limit(database: Database) -> None:
    limits = SearchLimits(total=3)
    a_row_of_tries(database, 4)
    assert page_of(database, limit=2, limits=limits) == (["t3", "t2"], 3, False)
    assert page_of(database, limits=limits) == (["t3", "t2", "t1", "t0"], 3, False)
    assert page_of(database, task_id="t1", limits=limits) == (["t1"], 1, True)


@on_both
@pytest.mark.parametrize(
    "along",
    [{}, {"dag_id": "etl"}, {"worker_id": "celery-1"}, {"hostname": "host-1"}, {"started_at_lte": at(9999)}],
)
def test_a_filter_without_an_index_scans_so_many_and_says_so(database: Database, along: dict[str, Any]) -> None:
    a_row_of_tries(database, 4)
    limits = SearchLimits(branches=1)
    wanted: dict[str, tuple[dict[str, Any], list[str]]] = {
        "state": ({"state": "failed"}, ["t0"]),
        "no such state": ({"state": "removed"}, []),
        "task_id": ({"task_id": "t0"}, ["t0"]),
        "map_index": ({"map_index": 7}, []),
        "try_number": ({"try_number": 9}, []),
    }
    for name, (filters, found) in wanted.items():
        assert page_of(database, limits=limits, **along, **filters) == (found, len(found), True), name
    limits = SearchLimits(branches=1, scanned=3)
    for name, (filters, found) in wanted.items():
        assert page_of(database, limits=limits, **along, **filters) == ([], 0, False), name
        # Further back is where a window says.
        earlier = {**along, "started_at_lte": at(1200)}
        assert page_of(database, limits=limits, **earlier, **filters) == (found, len(found), True), name


@on_both
def test_a_dag_run_is_found_wherever_it_is(database: Database) -> None:
    limits = SearchLimits(scanned=1)
    record(database, replace(KEY, run_id="old"), started_at=at(-9999))
    record(database, replace(KEY, dag_id="elt", run_id="old", task_id="too"), started_at=at(-9999))
    record(database, replace(KEY, dag_id="secret", run_id="old"))
    a_row_of_tries(database, 4)
    tasks, total, is_exact = page_of(database, limits=limits, run_id="old")
    assert (sorted(tasks), total, is_exact) == (["extract", "too"], 2, True)
    assert page_of(database, limits=limits, run_id="old", dag_id="etl", state="success") == (["extract"], 1, True)
    assert page_of(database, limits=limits, run_id="old", task_id="too") == (["too"], 1, True)


@on_both
@pytest.mark.parametrize("filters", [{"worker_name": "w"}, {"hostname": "host-1"}, {}])
def test_instances_and_dags_are_merged_in_the_order_of_starts(database: Database, filters: dict[str, Any]) -> None:
    dag_ids = [f"dag-{number}" for number in range(3)]
    for number in range(9):
        key = replace(KEY, dag_id=dag_ids[number % 3], task_id=f"t{number}")
        record(database, key, a_worker(f"instance-{number % 4}", name="w"), started_at=at(number))
    tasks, total, is_exact = page_of(database, limit=4, dag_ids=dag_ids, **filters)
    assert (tasks, total, is_exact) == (["t8", "t7", "t6", "t5"], 9, True)
    with database.engine.connect() as connection:
        rest, _ = attempt_queries.list_attempts(
            connection, AttemptFilter(**filters), dag_ids=dag_ids, limit=10, offset=4
        )
    assert [one.task_id for one in rest] == ["t4", "t3", "t2", "t1", "t0"]


def test_a_name_stands_for_its_latest_instances(database: Database) -> None:
    for number in range(3):
        record(
            database,
            replace(KEY, task_id=f"t{number}"),
            a_worker(f"instance-{number}", name="w"),
            started_at=at(number),
        )
    assert page_of(database, limits=SearchLimits(instances=2), worker_name="w")[0] == ["t2", "t1"]


@on_both
def test_a_worker_is_found_by_its_sources_name_and_by_its_reported_id(database: Database) -> None:
    record(database, KEY, a_worker("reported", name="named", engine_name="node"))
    with database.engine.begin() as connection:
        connection.execute(worker.update().values(worker_id="by-the-engine"))
    for filters in ({"worker_id": "reported"}, {"worker_id": "by-the-engine"}, {"worker_name": "node"}):
        assert page_of(database, **filters) == (["extract"], 1, True), filters


@on_both
def test_what_a_machine_was_like_is_read_as_it_was_written(database: Database) -> None:
    with database.engine.begin() as connection:
        record_start(
            connection,
            KEY,
            a_worker(),
            try_started_at=NOON,
            state="running",
            now=NOON,
            conditions=Conditions(load=1.25, memory_free=0.333, running_beside=7),
        )
    by = listed(database)[0][0].workers[0]
    assert (by.load, by.memory_free, by.running_beside) == (1.25, 0.333, 7)
    record(database, replace(KEY, task_id="unknown"))
    by = listed(database, task_id="unknown")[0][0].workers[0]
    assert (by.load, by.memory_free, by.running_beside) == (None, None, None)


@on_both
def test_a_reader_of_the_database_itself_finds_every_dag(database: Database) -> None:
    record(database, replace(KEY, dag_id="secret", run_id="old"))
    record(database, KEY)
    with database.engine.connect() as connection:
        for filters, number in (({}, 2), ({"run_id": "old"}, 1), ({"dag_id": "secret"}, 1), ({"state": "success"}, 2)):
            found = attempt_queries.find_attempts(
                connection, AttemptFilter(**filters), dag_ids=AllDags(), limit=10, offset=0
            )
            assert (len(found.attempts), found.total) == (number, number)
