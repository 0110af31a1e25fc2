"""What readers get of the fleet: lists, groups, one worker's history, and services."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, update

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attribution import host_worker
from airflow_worker_insight.domain.filters import WORKER_ORDERS, WorkerFilter, parameters
from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.store.attempts import close
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import change, worker, worker_source
from airflow_worker_insight.store.workers import counts as worker_counts
from airflow_worker_insight.store.workers import freshness
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.store.workers import services as workers_services
from airflow_worker_insight.store.workers.availability import set_availability
from airflow_worker_insight.store.workers.upsert import initial_availability, upsert_worker
from tests.unit.database import NOON, Database, a_worker, at, on_both, on_postgresql
from tests.unit.store.fleet import get

pytestmark = pytest.mark.usefixtures("polled_sources")


def register(database: Database, worker_id: str, *, host_only: bool = False, **values: Any) -> None:
    """Store a worker; what a report cannot say is written into its row."""
    said = {name: values.pop(name) for name in ("name", "kind", "hostname", "labels", "engine_name") if name in values}
    with database.engine.begin() as connection:
        upsert_worker(connection, a_worker(worker_id, host_only=host_only, **said), now=NOON)
        if values:
            connection.execute(update(worker).where(worker.c.worker_id == worker_id).values(values))


def listed(
    database: Database, *, order_by: str = "registered_at", limit: int = 50, offset: int = 0, **filters: Any
) -> Any:
    known = WorkerFilter(**filters)
    with database.engine.connect() as connection, pytest.MonkeyPatch.context() as changing:
        rows, total = worker_queries.list_workers(connection, known, order_by=order_by, limit=limit, offset=offset)
        counts = worker_counts.count_states(connection, known)
        groups = worker_counts.group_workers(connection, known, by="kind", limit=9)
        # It is the same where the filter matches more than are read by their row IDs.
        changing.setattr(worker_queries, "MAX_CANDIDATES", 0)
        assert worker_queries.list_workers(connection, known, order_by=order_by, limit=limit, offset=offset) == (
            rows,
            total,
        )
        assert worker_counts.count_states(connection, known) == counts
        assert worker_counts.group_workers(connection, known, by="kind", limit=9) == groups
    return [row.worker_id for row in rows], total


def look(database: Database, name: str, *, ago: timedelta | None, error: str | None = None) -> None:
    """Have an engine looked at so long ago, or never."""
    with database.engine.begin() as connection:
        when = None if ago is None else database_now(connection) - ago
        connection.execute(
            update(worker_source).where(worker_source.c.name == name).values(looked_at=when, error=error)
        )


@on_both
def test_a_filter_that_matches_few_is_asked_of_the_table_once(database: Database) -> None:
    for number in range(5):
        register(database, f"w{number}", availability="draining" if number < 3 else "available")
    register(database, "ended", name="w-old", state="lost", ended_at=at(5), availability="draining")
    register(database, "later", name="w-old")
    with database.engine.connect() as connection:
        few = worker_queries.with_matching_refs(
            connection, WorkerFilter(availability="draining", states=frozenset({"online"}))
        )
        assert worker_queries.with_matching_refs(connection, few) is few
        asked: list[str] = []
        event.listen(database.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
        assert [row.worker_id for row in worker_queries.list_workers(connection, few, limit=2, offset=0)[0]] == [
            "w2",
            "w1",
        ]
        assert worker_counts.count_states(connection, few) == {"online": 3}
        assert worker_counts.group_workers(connection, few, by="kind", limit=9)[1] == 1
    # What was decided and who followed whom was asked before.
    assert not [sql for sql in asked if "availability =" in sql or "EXISTS" in sql]


@on_postgresql
def test_no_statement_of_a_list_is_compiled_to_machine_code(database: Database) -> None:
    """It takes PostgreSQL 2 seconds for each, which it thinks worth while for the instances that may have followed."""
    with database.engine.connect() as connection:
        connection.exec_driver_sql("SET jit_above_cost = 0")
        worker_queries.list_workers(connection, WorkerFilter(availability="draining"), limit=9, offset=0)
        assert connection.exec_driver_sql("SHOW jit").scalar() == "off"


# --- one worker ------------------------------------------------------------------------------------------------------


@on_both
def test_a_worker_by_its_id(database: Database) -> None:
    register(database, "celery-1", engine_name="w1@host-1", queues=["default"], concurrency=16, running=3)
    one = get(database, "celery-1")
    assert (one.name, one.engine_name, one.kind, one.hostname, one.pid, one.host_only) == (
        "celery-1@host-1",
        "w1@host-1",
        "celery",
        "host-1",
        100,
        False,
    )
    assert (one.started_at, one.registered_at, one.last_seen_at, one.ended_at) == (at(-3600), NOON, NOON, None)
    assert (one.labels, one.resources, one.versions) == ({"zone": "a"}, {"cpus": 4}, {"airflow": "3"})
    assert (one.queues, one.concurrency, one.running) == (("default",), 16, 3)
    assert (one.state, one.state_reason, one.availability) == ("online", None, "available")
    with database.engine.connect() as connection:
        assert worker_queries.get_worker(connection, "celery-2") is None


@on_both
def test_a_worker_by_the_id_that_its_processes_report(database: Database) -> None:
    register(database, "reported")
    with database.engine.begin() as connection:
        connection.execute(update(worker).values(worker_id="made-by-the-engine"))
    assert get(database, "reported").worker_id == "made-by-the-engine"
    assert get(database, "made-by-the-engine").worker_id == "made-by-the-engine"


@on_both
def test_some_workers_by_their_ids_are_as_stale_as_any(database: Database) -> None:
    register(database, "celery-1")
    register(database, "celery-2")
    register(database, "celery-3", state="lost")
    with database.engine.connect() as connection:
        found = worker_queries.get_workers(connection, {"celery-1", "celery-3", "celery-4"})
        assert found == {name: worker_queries.get_worker(connection, name) for name in ("celery-1", "celery-3")}
        assert worker_queries.get_workers(connection, ()) == {}


@on_both
def test_other_instances_are_of_the_same_kind_and_name(database: Database) -> None:
    register(database, "first", name="w1")
    register(database, "another-kind", name="w1", kind="local")
    register(database, "another", name="w2")
    register(database, "second", name="w1", engine_name="node")
    register(database, "renamed", name="w1-eu", engine_name="node")
    with database.engine.connect() as connection:

        def instances(worker_id: str, limit: int = 10) -> list[str]:
            one = worker_queries.get_worker(connection, worker_id)
            assert one is not None
            return [instance.worker_id for instance in worker_queries.other_instances(connection, one, limit=limit)]

        assert instances("first") == ["second"]
        assert instances("second") == ["renamed", "first"]
        assert instances("second", 1) == ["renamed"]
        assert instances("another") == []


@on_both
def test_changes_come_latest_first(database: Database) -> None:
    register(database, "one")
    register(database, "two")
    one, two = get(database, "one"), get(database, "two")
    with database.engine.begin() as connection:
        for second, state in enumerate(("online", "unresponsive", "lost")):
            connection.execute(insert(change).values(worker_ref=one.ref, changed_at=at(second), state=state))
        connection.execute(insert(change).values(worker_ref=two.ref, changed_at=NOON, state="offline"))
        found = worker_queries.changes(connection, one, limit=2)
    assert [(entry.state, entry.changed_at) for entry in found] == [("lost", at(2)), ("unresponsive", at(1))]


@on_both
def test_the_decision_behind_an_availability(database: Database) -> None:
    for name in ("decided", "never", "released"):
        register(database, name)
    with database.engine.begin() as connection:
        for second, (name, availability, note) in enumerate(
            [
                ("decided", "draining", "first"),
                ("decided", "quarantined", "second"),
                ("released", "draining", "why"),
                ("released", "available", None),
            ]
        ):
            set_availability(connection, name, availability, note=note, changed_by="ann", now=at(second))
        rows, _ = worker_queries.list_workers(connection, WorkerFilter(), limit=10, offset=0)
        found = worker_queries.decisions(connection, rows)
        assert worker_queries.decisions(connection, []) == {}
    by_id = {row.worker_id: found.get(row.ref) for row in rows}
    assert by_id["never"] is None
    decided, released = by_id["decided"], by_id["released"]
    assert decided is not None
    assert released is not None
    assert (decided.availability, decided.reason, decided.changed_by, decided.changed_at) == (
        "quarantined",
        "second",
        "ann",
        at(1),
    )
    assert (released.availability, released.reason) == ("available", None)


@on_both
def test_a_quarantine_that_outlived_a_restart_says_who_decided_it(database: Database) -> None:
    register(database, "first", name="w1")
    with database.engine.begin() as connection:
        set_availability(connection, "first", "quarantined", note="bad disk", changed_by="ann", now=NOON)
        assert initial_availability(connection, "celery", "w1", None, hostname="host-1") == "quarantined"
    register(database, "second", name="w1")
    second = get(database, "second")
    assert second.availability == "quarantined"
    with database.engine.begin() as connection:
        # What became of the first instance later says nothing of the second.
        set_availability(connection, "first", "available", note="repaired", changed_by="bob", now=at(9))
        decision = worker_queries.decisions(connection, [second])[second.ref]
    assert (decision.reason, decision.changed_by) == ("Inherited from instance first: bad disk", "ann")


@pytest.mark.parametrize(
    ("older", "newer", "host"),
    [
        ({"name": "w1"}, {"name": "w1"}, "host-1"),
        ({"name": "etl", "engine_name": "w1"}, {"name": "w1", "engine_name": "w1"}, "host-1"),
        ({"name": "local@a.org", "kind": "local"}, {"name": "local@a", "kind": "local"}, "a.org"),
    ],
)
@on_both
def test_a_decision_on_a_superseded_instance_is_not_found(
    database: Database, older: dict[str, Any], newer: dict[str, Any], host: str
) -> None:
    register(database, "older", hostname=host, **older, availability="quarantined", state="lost", ended_at=at(5))
    quarantined: dict[str, Any] = {"availability": "quarantined"}
    # The next instance would begin with it.
    assert listed(database, **quarantined) == (["older"], 1)
    register(database, "newer", hostname=host, **newer, state="online")
    assert listed(database, **quarantined) == (["newer"], 1)
    assert listed(database, availability="available") == ([], 0)
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.worker_id == "newer").values(availability="available"))
    assert listed(database, **quarantined) == ([], 0)
    assert listed(database, availability="available") == (["newer"], 1)
    with database.engine.connect() as connection:
        assert worker_counts.count_states(connection, WorkerFilter(**quarantined)) == {}
    # Of two that live under one name each has its own.
    with database.engine.begin() as connection:
        connection.execute(update(worker).values(state="online", ended_at=None))
    assert listed(database, **quarantined) == (["older"], 1)


def test_a_decision_on_one_of_several_local_workers_is_not_over_because_another_one_came(database: Database) -> None:
    local = {"kind": "local", "hostname": "host-1"}
    etl = {"name": "etl", "engine_name": "etl@host-1", **local}
    register(database, "etl-1", **etl, availability="quarantined", state="lost", ended_at=at(5))
    register(database, "reports-2", name="reports", engine_name="reports@host-1", **local, state="online")
    register(database, "plain", name="local@host-1", engine_name="local@host-1", **local, state="online")
    assert listed(database, availability="quarantined") == (["etl-1"], 1)
    first = get(database, "etl-1")
    with database.engine.connect() as connection:
        assert worker_queries.later_instance(connection, first) is None
        assert worker_queries.other_instances(connection, get(database, "plain"), limit=9) == []
    register(database, "etl-2", **etl, state="online")
    assert listed(database, availability="quarantined") == (["etl-2"], 1)
    with database.engine.connect() as connection:
        assert [one.worker_id for one in worker_queries.other_instances(connection, first, limit=9)] == ["etl-2"]


# --- whether a state still counts ------------------------------------------------------------------------------------

KINDS = [("celery", "celery"), ("edge", "edge"), ("local", "jobs"), ("kubernetes", "tries"), ("MyExecutor", "tries")]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_state_is_unknown_when_its_source_is_not_polled_any_more(
    database: Database, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor,LocalExecutor,EdgeExecutor")
    register(database, "one", kind=kind, state="online")
    look(database, name, ago=timedelta(seconds=80))
    assert get(database, "one").state == "online"
    look(database, name, ago=timedelta(seconds=100))
    one = get(database, "one")
    assert one.state is None
    assert one.state_reason is not None
    assert one.state_reason.startswith("Worker states are stale: last checked at 20")
    assert "`airflow-worker-insight refresh`" in one.state_reason
    look(database, name, ago=None)
    assert (get(database, "one").state_reason or "").startswith("Worker states are stale: never checked")


def test_the_interval_says_how_long_a_state_counts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    register(database, "one")
    look(database, "celery", ago=timedelta(minutes=10))
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "300")
    assert get(database, "one").state == "online"


@on_both
def test_an_end_stays_known_without_polls(database: Database) -> None:
    for state in WorkerState.values():
        register(database, state, state=state, state_reason=f"why {state}")
    look(database, "celery", ago=None)
    shown = {state: get(database, state) for state in WorkerState.values()}
    assert [one.state for one in shown.values()] == [None, None, "offline", "lost"]
    assert shown["lost"].state_reason == "why lost"
    # A list is filtered, counted, grouped and ordered by what it shows.
    assert listed(database, states=frozenset({"online", "unresponsive"})) == ([], 0)
    assert listed(database, states=frozenset({"unknown"})) == (["online", "unresponsive"], 2)
    assert listed(database, states=frozenset({"unknown", "lost"}))[1] == 3
    assert listed(database, states=frozenset()) == ([], 0)
    assert listed(database, order_by="-state")[0][:2] == ["lost", "offline"]
    with database.engine.connect() as connection:
        assert worker_counts.count_states(connection, WorkerFilter()) == {"offline": 1, "lost": 1, None: 2}
        (group,), _ = worker_counts.group_workers(connection, WorkerFilter(), by="kind", limit=9)
    assert group.states == {"offline": 1, "lost": 1, None: 2}


def test_sources_say_when_they_were_polled(database: Database) -> None:
    look(database, "celery", ago=timedelta(hours=1), error="The broker did not answer")
    with database.engine.connect() as connection:
        found = {one.name: one for one in freshness.list_sources(connection)}
    assert list(found) == ["celery", "edge", "jobs", "tries"]
    assert (found["celery"].is_current, found["celery"].error) == (False, "The broker did not answer")
    assert (found["edge"].is_current, found["edge"].error) == (True, None)


# --- lists -----------------------------------------------------------------------------------------------------------


@on_both
@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["one", "two", "three"]),
        ({"kind": "local"}, ["three"]),
        ({"name": "w1"}, ["one"]),
        ({"name": "node"}, ["two"]),
        ({"name": "w"}, []),
        ({"hostname": "host-3"}, ["three"]),
        ({"states": frozenset({"online", "lost"})}, ["one", "two"]),
        ({"states": frozenset({"unknown"})}, ["three"]),
        ({"availability": "draining"}, ["two"]),
        ({"queue": "default"}, ["one", "two"]),
        ({"queue": "a, b"}, ["two"]),
        ({"queue": "b"}, []),
        ({"queue": "Default"}, []),
        ({"label": ("zone", "eu")}, ["one"]),
        ({"label": ("zone", "EU")}, []),
        ({"label": ("zone", "e")}, []),
        ({"label": ("rack", "1")}, ["one", "two"]),
        ({"label": ("rack", "_")}, []),
        ({"search": "W1"}, ["one"]),
        ({"search": "HOST-3"}, ["three"]),
        ({"search": "thre"}, ["three"]),
        ({"search": "%"}, []),
        ({"search": "_"}, []),
        ({"queue": "default", "label": ("rack", "1"), "states": frozenset({"online"})}, ["one"]),
    ],
)
def test_filters(database: Database, filters: dict[str, Any], found: list[str]) -> None:
    register(database, "one", name="w1", labels={"zone": "eu", "rack": "1"}, queues=["heavy", "default"])
    register(
        database,
        "two",
        name="w2",
        engine_name="node",
        labels={"rack": "1"},
        queues=["default", "a, b"],
        state="lost",
        availability="draining",
    )
    register(database, "three", name="w3", kind="local", hostname="host-3", state=None, labels={})
    assert listed(database, **filters) == (found, len(found))


VALUES = {"states": frozenset({"lost"}), "label": ("zone", "eu"), "availability": "quarantined"}


@pytest.mark.parametrize("name", parameters(WorkerFilter))
def test_each_declared_filter_filters(database: Database, name: str) -> None:
    register(database, "one")
    assert listed(database, **{name: VALUES.get(name, "no worker has this")}) == ([], 0), (
        f"filter_conditions() in store/workers/queries.py ignores {name}"
    )


ODD = ["O'Neill", 'a"b', "a\\b", "%", "_", "🐘", "ä", "a: b", '", "x": "', "}", "[", "<b>", "x" * 64, " ", "\x7f"]


@on_both
@pytest.mark.parametrize("text", ODD)
def test_labels_and_queues_of_any_characters_are_found_and_only_they(database: Database, text: str) -> None:
    register(database, "odd", labels={text: text, "zone": "eu"}, queues=[text, "default"])
    register(
        database, "plain", labels={"zone": "eu", "k": f"x{text}", f"x{text}": text}, queues=["default", f"x{text}"]
    )
    assert listed(database, label=(text, text)) == (["odd"], 1)
    assert listed(database, queue=text) == (["odd"], 1)
    assert listed(database, label=("zone", "eu"))[1] == 2
    assert listed(database, search=text)[1] == 0


@on_both
def test_a_label_that_contains_another_is_not_taken_for_it(database: Database) -> None:
    register(database, "trap", labels={"note": 'x, "zone": "eu"', 'y, "zone': "eu"}, queues=['x, "default'])
    assert listed(database, label=("zone", "eu")) == ([], 0)
    assert listed(database, queue="default") == ([], 0)


@on_both
@pytest.mark.parametrize("name", WORKER_ORDERS)
def test_orders_are_of_all_pages(database: Database, name: str) -> None:
    states: list[str | None] = ["lost", None, "online", "online", "offline"]
    for number, state in enumerate(states):
        register(
            database,
            f"w{number}",
            name=f"n{number % 3}",
            hostname=f"h{number % 2}",
            state=state,
            running=None if number == 1 else number % 3,
            last_seen_at=at(number % 4),
        )
    with database.engine.connect() as connection:

        def values(order_by: str) -> list[Any]:
            pages = [
                worker_queries.list_workers(connection, WorkerFilter(), order_by=order_by, limit=2, offset=offset)[0]
                for offset in (0, 2, 4)
            ]
            rows = [row for page in pages for row in page]
            assert len({row.worker_id for row in rows}) == 5
            return [row.ref if name == "registered_at" else getattr(row, name) for row in rows]

        rank = {state: place for place, state in enumerate(WorkerState.values())}
        for order_by, is_reverse in ((name, False), (f"-{name}", True)):
            found = values(order_by)
            known = [rank[value] if name == "state" else value for value in found if value is not None]
            assert known == sorted(known, reverse=is_reverse)
            assert None not in found[: len(known)]


def test_no_other_order_is_known(database: Database) -> None:
    with pytest.raises(ValueError, match="cannot be ordered by pid"):
        listed(database, order_by="pid")


@on_both
def test_rows_that_stand_for_a_host_are_not_listed_or_counted(database: Database) -> None:
    register(database, "one")
    with database.engine.begin() as connection:
        close.ensure_hosts(connection, [host_worker("host-1", "celery")], now=NOON)
        assert worker_counts.count_states(connection, WorkerFilter()) == {"online": 1}
        groups, _ = worker_counts.group_workers(connection, WorkerFilter(), by="hostname", limit=9)
    assert listed(database) == (["one"], 1)
    assert [(group.name, sum(group.states.values())) for group in groups] == [("host-1", 1)]
    one = get(database, host_worker("host-1", "celery").worker_id)
    assert one.host_only
    assert one.state is None
    assert "one of the workers of its host" in (one.state_reason or "")


def test_totals_are_counted_up_to_a_limit(database: Database) -> None:
    for number in range(3):
        register(database, f"w{number}")
    with database.engine.connect() as connection:
        rows, total = worker_queries.list_workers(connection, WorkerFilter(), limit=9, offset=0, max_total=2)
        assert ({row.worker_id for row in rows}, total) == ({"w0", "w1", "w2"}, 2)
        assert worker_counts.count_states(connection, WorkerFilter(), max_total=2) == {"online": 2}


@on_both
def test_counts_of_states_leave_out_the_filter_by_state_alone(database: Database) -> None:
    register(database, "one")
    register(database, "two", state="lost")
    register(database, "three", state="lost", hostname="elsewhere")
    filters = WorkerFilter(states=frozenset({"online"}), hostname="host-1")
    with database.engine.connect() as connection:
        assert worker_counts.count_states(connection, filters) == {"online": 1, "lost": 1}


@on_both
@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("kind", {"celery": ({"online": 2, "lost": 1}, 4, 12), "local": ({"online": 1}, 0, 0)}),
        ("hostname", {"host-1": ({"online": 2}, 4, 12), "host-2": ({"lost": 1, "online": 1}, 0, 0)}),
        (
            "queue",
            {"default": ({"online": 2}, 4, 12), "heavy": ({"online": 1, "lost": 1}, 3, 8), "": ({"online": 1}, 0, 0)},
        ),
        ("label:zone", {"a": ({"online": 2}, 4, 12), "b": ({"lost": 1}, 0, 0), "": ({"online": 1}, 0, 0)}),
        ("label:none", {"": ({"online": 3, "lost": 1}, 4, 12)}),
    ],
)
def test_groups(database: Database, by: str, expected: dict[str, Any]) -> None:
    register(database, "one", queues=["default"], concurrency=4, running=1)
    register(database, "two", queues=["default", "heavy"], concurrency=8, running=3)
    register(
        database,
        "three",
        hostname="host-2",
        labels={"zone": "b"},
        queues=["heavy"],
        concurrency=8,
        running=1,
        state="lost",
    )
    register(database, "four", kind="local", hostname="host-2", labels={}, queues=None)
    with database.engine.connect() as connection:
        groups, _ = worker_counts.group_workers(connection, WorkerFilter(), by=by, limit=9)
    assert {group.name: (group.states, group.running, group.concurrency) for group in groups} == expected
    # What is not known comes last.
    assert [group.name for group in groups] == sorted(expected, key=lambda name: (not name, name))


@on_both
def test_pages_of_groups_and_how_many_there_are(database: Database) -> None:
    for number in range(5):
        register(database, f"w{number}", hostname=f"host-{number}")
    register(database, "of-two", hostname="host-0")
    with database.engine.connect() as connection:
        groups, total = worker_counts.group_workers(connection, WorkerFilter(), by="hostname", limit=2, offset=2)
        assert ([group.name for group in groups], total) == (["host-2", "host-3"], 5)
        assert worker_counts.group_workers(connection, WorkerFilter(), by="hostname", limit=2, offset=9) == ([], 5)


@pytest.mark.parametrize("by", ["pid", "label:", "label", ""])
def test_no_other_groups_are_known(database: Database, by: str) -> None:
    with database.engine.connect() as connection, pytest.raises(ValueError, match="cannot be grouped"):
        worker_counts.group_workers(connection, WorkerFilter(), by=by, limit=9)


@on_both
def test_label_keys(database: Database) -> None:
    register(database, "one", labels={"zone": "a", "rack": "1"})
    register(database, "two", labels={"zone": "b", 'odd"': "x"})
    register(database, "three", labels={})
    with database.engine.connect() as connection:
        assert worker_counts.label_keys(connection) == ['odd"', "rack", "zone"]


@on_both
def test_an_empty_fleet(database: Database) -> None:
    assert listed(database) == ([], 0)
    with database.engine.connect() as connection:
        assert worker_counts.count_states(connection, WorkerFilter()) == {}
        assert worker_counts.group_workers(connection, WorkerFilter(), by="queue", limit=9) == ([], 0)
        assert worker_counts.label_keys(connection) == []
        assert workers_services.list_services(connection, kind=None, state=None, limit=10, offset=0) == ([], 0)


# --- services --------------------------------------------------------------------------------------------------------


def a_job(database: Database, job_type: str, *, silent: float, state: str = "running", **values: Any) -> None:
    """Store one of Airflow's jobs that had its latest heartbeat so many seconds ago."""
    with database.engine.begin() as connection:
        seen = database_now(connection) - timedelta(seconds=silent)
        connection.execute(
            insert(metadata_database.job_table()).values(
                job_type=job_type, state=state, start_date=NOON, latest_heartbeat=seen, hostname="h", **values
            )
        )


def services(database: Database, **filters: Any) -> tuple[list[tuple[str, str | None]], int]:
    asked: dict[str, Any] = {"kind": None, "state": None, "limit": 50, "offset": 0, **filters}
    with database.engine.connect() as connection:
        found, total = workers_services.list_services(connection, **asked)
    return [(one.kind, one.state) for one in found], total


@on_both
def test_services_go_by_airflows_own_thresholds(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.jobs.job import health_check_threshold

    # Airflow remembers them from 3.2 on.
    getattr(health_check_threshold, "cache_clear", lambda: None)()
    monkeypatch.setenv("AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD", "60")
    monkeypatch.setenv("AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD", "30")
    a_job(database, "SchedulerJob", silent=45)
    a_job(database, "TriggererJob", silent=46)
    a_job(database, "SchedulerJob", silent=3600)
    a_job(database, "SchedulerJob", silent=7200, state="success", end_date=NOON)
    a_job(database, "SchedulerJob", silent=7201, state="failed")
    a_job(database, "DagProcessorJob", silent=0)
    a_job(database, "LocalTaskJob", silent=0)
    register(database, "one")
    assert services(database) == (
        [
            ("dag_processor", "online"),
            ("scheduler", "online"),
            ("triggerer", "unresponsive"),
            ("scheduler", "lost"),
            ("scheduler", "offline"),
            ("scheduler", "lost"),
            ("worker", "online"),
        ],
        7,
    )
    getattr(health_check_threshold, "cache_clear", lambda: None)()


@on_both
def test_services_by_kind_and_state_and_page(database: Database) -> None:
    for job_type in ("SchedulerJob", "TriggererJob"):
        a_job(database, job_type, silent=0)
    register(database, "one")
    register(database, "two", state="lost")
    assert services(database, kind="scheduler") == ([("scheduler", "online")], 1)
    assert services(database, kind="worker") == ([("worker", "lost"), ("worker", "online")], 2)
    assert services(database, state="lost") == ([("worker", "lost")], 1)
    assert services(database, kind="scheduler", state="lost") == ([], 0)
    pages = [services(database, limit=3, offset=offset) for offset in (0, 3, 6)]
    assert [len(page) for page, _ in pages] == [3, 1, 0]
    assert {total for _, total in pages} == {4}
    assert [kind for page, _ in pages for kind, _ in page][2:] == ["worker", "worker"]
