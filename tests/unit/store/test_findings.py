"""What the detector finds is stored with its history, and what users decide of it counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select

from airflow_worker_insight.domain.filters import AllDags, FindingFilter
from airflow_worker_insight.domain.findings import (
    FindingAction,
    FindingChanges,
    StoredFinding,
    SubjectKind,
    subject_kind_of,
)
from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.insight.events import Started
from airflow_worker_insight.insight.findings import as_json, from_json
from airflow_worker_insight.store import findings, retention
from airflow_worker_insight.store.insight_tables import finding as finding_table
from airflow_worker_insight.store.workers.availability import set_availability
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, Database, a_worker, at, on_both, on_postgresql
from tests.unit.findings import a_finding, a_share, ended
from tests.unit.insight import streams

if TYPE_CHECKING:
    from collections.abc import Collection

ALL_DAGS = AllDags()
DAY = 86_400
CHANGED = {"tries": 12, "failures": 10}


def sync(database: Database, *found: dict[str, Any], second: float = 700) -> FindingChanges:
    with database.engine.begin() as connection:
        return findings.sync(connection, found, now=at(second))


def dismiss(database: Database, finding_id: int, *, reason: str | None = None, second: float = 1000) -> bool:
    with database.engine.begin() as connection:
        return findings.dismiss(connection, finding_id, actor="ann", reason=reason, now=at(second))


def listed(
    database: Database, filters: FindingFilter | None = None, *, dag_ids: Collection[str] | AllDags = ALL_DAGS
) -> list[StoredFinding]:
    with database.engine.connect() as connection:
        rows, total = findings.list_findings(
            connection, filters or FindingFilter(), limit=50, offset=0, dag_ids=dag_ids
        )
    assert total == len(rows)
    return rows


def history(database: Database, finding_id: int) -> list[tuple[str, str | None, str | None]]:
    with database.engine.connect() as connection:
        entries = findings.events(connection, [finding_id])[finding_id]
    return [(entry.action, entry.actor, entry.reason) for entry in reversed(entries)]


def actions(database: Database, finding_id: int) -> list[str]:
    return [action for action, _, _ in history(database, finding_id)]


@on_both
def test_a_finding_is_stored_whole(database: Database) -> None:
    found = a_finding(scope=("etl", "load"))
    (stored,) = sync(database, found).new
    (again,) = listed(database)
    assert again == stored
    assert from_json(again.data) == from_json(found)
    assert (again.state, again.subject_kind, again.outcome) == ("open", "worker", "failed")
    assert (again.found_at, again.ended_at, again.end_reason) == (at(600), None, None)
    with database.engine.connect() as connection:
        assert findings.get_finding(connection, again.finding_id) == again
        assert findings.get_finding(connection, again.finding_id + 1) is None
    assert actions(database, again.finding_id) == ["found"]


@on_both
def test_nothing_is_written_if_nothing_has_changed(database: Database) -> None:
    found = [a_finding(), ended(a_finding(2, "w4"))]
    sync(database, *found)
    statements: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    again = sync(database, *found)
    event.remove(database.engine, "before_cursor_execute", note)
    assert (again.new, again.changed, again.dismissed) == ([], [], frozenset())
    assert [statement.split()[0] for statement in statements] == ["SELECT", "SELECT"]


@on_both
def test_each_change_of_the_state_is_in_the_history(database: Database) -> None:
    (stored,) = sync(database, a_finding()).new
    for state in ("recovering", "open", "recovering"):
        (changed,) = sync(database, a_finding(state=state)).changed
        assert changed.state == state
    closed = sync(database, ended(a_finding()), second=8000)
    assert closed.actions == {stored.finding_id: "closed"}
    assert actions(database, stored.finding_id) == ["found", "recovering", "open_again", "recovering", "closed"]
    (row,) = listed(database)
    assert (row.state, row.ended_at, row.end_reason) == ("closed", at(7200), "well")
    assert "Well again" in str(history(database, stored.finding_id)[-1][2])


@pytest.mark.parametrize(
    ("others", "second", "is_changed"),
    [
        ({"evidence": 4130.0}, 700, False),
        ({"evidence": 4200.0}, 700, True),
        ({"evidence": 4130.0}, 700 + 3600, True),
        ({}, 700 + 3600, False),
        (CHANGED, 700, True),
        ({"worker_ids": ["w3", "w3-new"]}, 700, True),
    ],
)
def test_numbers_are_stored_again_if_texts_show_it_or_an_hour_has_passed(
    database: Database, others: dict[str, Any], second: float, is_changed: bool
) -> None:
    sync(database, a_finding(evidence=4123.0))
    changes = sync(database, a_finding(**{"evidence": 4123.0, **others}), second=second)
    assert bool(changes.changed) == is_changed
    assert changes.actions == {}


@on_both
def test_a_dismissed_finding_is_closed_at_once_and_the_detector_hears_of_it(database: Database) -> None:
    (stored,) = sync(database, a_finding(7)).new
    assert dismiss(database, stored.finding_id, reason="disk replaced")
    (row,) = listed(database)
    assert (row.state, row.ended_at, row.end_reason) == ("closed", at(1000), "dismissed")
    assert from_json(row.data).end_reason == "dismissed"
    first, second = sync(database, a_finding(7, **CHANGED)), sync(database, a_finding(7, **CHANGED))
    assert first.dismissed == second.dismissed == {7}
    # Who asks to be told of changes is told once.
    assert (first.actions, second.actions) == ({stored.finding_id: "dismissed"}, {})
    assert second.changed == []
    assert sync(database, ended(a_finding(7), "dismissed")).dismissed == frozenset()
    assert history(database, stored.finding_id) == [("found", None, None), ("dismissed", "ann", "disk replaced")]
    assert len(listed(database)) == 1


@on_both
def test_the_detector_hears_of_a_quarantine_while_the_finding_is_open(database: Database) -> None:
    (stored,) = sync(database, a_finding(7)).new
    assert sync(database, a_finding(7)).quarantined == frozenset()
    with database.engine.begin() as connection:
        for action in (FindingAction.QUARANTINED, FindingAction.RELEASED, FindingAction.QUARANTINED):
            findings.add_event(connection, stored.finding_id, action, actor=None, reason=None, now=at(5))
    assert sync(database, a_finding(7)).quarantined == {7}
    # The analysis was computed anew: the detector has another number for it.
    assert sync(database, a_finding(9)).quarantined == {9}
    assert sync(database, ended(a_finding(9))).quarantined == frozenset()


@on_both
def test_a_finding_of_a_clock_that_is_ahead_is_dismissed_too(database: Database) -> None:
    (stored,) = sync(database, a_finding(7)).new
    assert dismiss(database, stored.finding_id, second=0)
    changes = sync(database, a_finding(7))
    assert (changes.new, changes.dismissed) == ([], {7})


def test_nothing_is_dismissed_twice(database: Database) -> None:
    (stored,) = sync(database, a_finding()).new
    assert dismiss(database, stored.finding_id)
    assert not dismiss(database, stored.finding_id, reason="again")
    assert not dismiss(database, stored.finding_id + 1)
    assert actions(database, stored.finding_id) == ["found", "dismissed"]


def test_a_dismissed_subject_is_found_again_by_later_tries_only(database: Database) -> None:
    (stored,) = sync(database, a_finding()).new
    dismiss(database, stored.finding_id, second=1000)
    closed = ended(a_finding(), "dismissed", second=900)
    before = sync(database, closed, a_finding(2, found_at=at(950).timestamp()))
    assert (before.new, before.dismissed) == ([], {2})
    after = sync(database, closed, a_finding(3, found_at=at(1001).timestamp()))
    assert [new.number for new in after.new] == [3]


@on_both
def test_an_analysis_computed_anew_keeps_ids_and_histories(database: Database) -> None:
    sync(database, ended(a_finding(1, "w1")), a_finding(2, "w2"), a_finding(3, "w3", state="recovering"))
    ids = {row.data["unit"]: row.finding_id for row in listed(database)}
    dismiss(database, ids["w2"], second=800)
    again = sync(
        database,
        a_finding(3, "w2", found_at=at(605).timestamp()),
        a_finding(1, "w3", found_at=at(605).timestamp(), state="recovering"),
        ended(a_finding(2, "w1", found_at=at(605).timestamp())),
    )
    assert (again.new, again.dismissed) == ([], {3})
    assert {row.data["unit"]: row.finding_id for row in listed(database)} == ids
    assert actions(database, ids["w3"]) == ["found"]
    # From now on it goes by the new numbers.
    sync(database, a_finding(1, "w3", state="open"))
    assert actions(database, ids["w3"]) == ["found", "open_again"]


def test_what_the_detector_no_longer_holds_is_closed_with_a_reason(database: Database) -> None:
    (stored,) = sync(database, a_finding()).new
    sync(database, second=900)
    (row,) = listed(database)
    assert (row.state, row.ended_at, row.end_reason) == ("closed", at(900), "not_found")
    assert "computed anew" in str(history(database, stored.finding_id)[-1][2])
    # It was only slow to find it.
    sync(database, a_finding(5), second=1000)
    (row,) = listed(database)
    assert (row.finding_id, row.state, row.ended_at) == (stored.finding_id, "open", None)
    assert actions(database, stored.finding_id) == ["found", "closed", "open_again"]


def test_a_subject_found_again_after_its_end_is_another_finding(database: Database) -> None:
    sync(database, a_finding(1))
    changes = sync(database, ended(a_finding(1), second=2000), a_finding(2, found_at=at(3000).timestamp()))
    assert [(row.number, row.state) for row in (*changes.new, *changes.changed)] == [(2, "open"), (1, "closed")]


def test_what_ended_before_it_was_stored_has_its_whole_history(database: Database) -> None:
    (stored,) = sync(database, ended(a_finding(), "gone")).new
    assert (stored.state, stored.end_reason) == ("closed", "gone")
    assert actions(database, stored.finding_id) == ["found", "closed"]


@on_both
def test_lists_show_open_findings_first_and_filter(database: Database) -> None:
    sync(
        database,
        ended(a_finding(1, "w1", found_at=at(900).timestamp())),
        a_finding(2, "w2", state="recovering", found_at=at(800).timestamp(), shares=[a_share("sales")]),
        a_finding(3, "w3", found_at=at(700).timestamp(), outcome="lost"),
        a_finding(4, dimension="task", unit="secret/eat", subject="secret.eat", shares=[], worker_ids=[]),
    )

    def numbers(*, dag_ids: Collection[str] | AllDags = ALL_DAGS, **values: Any) -> list[int]:
        return [row.number for row in listed(database, FindingFilter(**values), dag_ids=dag_ids)]

    assert numbers() == [2, 3, 4, 1]
    assert numbers(state=frozenset({"open", "closed"})) == [3, 4, 1]
    assert numbers(subject_kind="task") == [4]
    assert numbers(outcome="lost") == [3]
    assert numbers(worker_id="w2") == [2]
    assert numbers(worker_id="W2") == numbers(worker_id="w") == []
    assert numbers(dag_id="sales") == [2]
    assert numbers(dag_id="secret") == [4]
    assert numbers(dag_id='"') == []
    assert numbers(dag_ids=["etl", "sales"]) == [2, 3, 1]
    assert numbers(dag_ids=[]) == [2, 3, 1]


@on_postgresql
def test_readers_of_more_dags_than_a_statement_has_parameters_see_findings(database: Database) -> None:
    sync(
        database,
        *(
            a_finding(number, dimension="task", unit=f"{dag_id}/eat", subject=f"{dag_id}.eat", shares=[])
            for number, dag_id in enumerate(("dag-7", "secret"))
        ),
    )
    assert [row.number for row in listed(database, dag_ids=[f"dag-{number}" for number in range(70_000)])] == [0]


@on_both
def test_names_of_workers_with_findings(database: Database) -> None:
    with database.engine.begin() as connection:
        for worker_id in ("w1", "w2", "w3"):
            upsert_worker(connection, a_worker(worker_id), now=NOON)
    zone = a_finding(1, dimension="zone", unit="b", subject="b", worker_ids=["w1", "w2", "pruned"])
    # Its workers are not the cause, and not everyone who sees them may read its Dag.
    task = a_finding(3, dimension="task", unit="etl/eat", subject="etl.eat", worker_ids=["w1", "w3"])
    sync(database, zone, a_finding(2, "w2"), task, ended(a_finding(4, "w3")))
    first, second = (row.finding_id for row in sorted(listed(database), key=lambda row: row.number)[:2])
    with database.engine.connect() as connection:
        assert findings.open_worker_names(connection) == {"w1@host-1": [first], "w2@host-1": [second, first]}
        assert findings.count_open(connection) == {"failed": 3, "lost": 0, "slow": 0}


@on_both
def test_groups_with_findings(database: Database) -> None:
    zone = a_finding(1, dimension="zone", unit="b", subject="b")
    host = a_finding(2, dimension="host", unit="b", subject="b")
    node = a_finding(3, dimension="node", unit="b", subject="b")
    sync(database, zone, host, node, a_finding(4, "b"), ended(a_finding(5, dimension="zone", unit="c", subject="c")))
    ids = {row.number: row.finding_id for row in listed(database)}
    with database.engine.connect() as connection:
        assert findings.open_groups(connection, "label:zone") == {"b": [ids[1]]}
        assert findings.open_groups(connection, "hostname") == {"b": [ids[2]]}
        # A label may have any key.
        assert findings.open_groups(connection, "label:host") == {}
        assert findings.open_groups(connection, "queue") == {}


@on_both
def test_hostile_names_are_stored_as_they_are(database: Database) -> None:
    name = '\'; DROP TABLE x; -- "w" \\ \0 <b>ä\u202e' + "n" * 300
    sync(database, a_finding(dimension="name", unit=name, subject=name, worker_ids=[]))
    (row,) = listed(database)
    assert (row.data["unit"], row.data["subject"]) == (name, name)
    with database.engine.connect() as connection:
        assert list(findings.open_worker_names(connection)) == [name]


@pytest.mark.parametrize("dimension", ["worker", "name", "host", "task", "zone", "node"])
def test_the_store_and_the_detector_agree_on_kinds_of_subjects(dimension: str) -> None:
    assert subject_kind_of(dimension) == from_json(a_finding(dimension=dimension)).subject_kind
    assert isinstance(subject_kind_of(dimension), SubjectKind)


def test_a_finding_that_a_user_dismisses_while_it_is_written_stays_dismissed(database: Database) -> None:
    (stored,) = sync(database, a_finding()).new
    with database.engine.begin() as connection:
        # As in a job that has read its rows before the user's request.
        rows = connection.execute(select(finding_table)).all()
        assert rows[0].state == "open"
        findings.dismiss(connection, stored.finding_id, actor="ann", reason=None, now=at(800))
        changes = findings.sync(connection, [a_finding(**CHANGED)], now=at(801))
    assert changes.dismissed == {1}
    assert listed(database)[0].state == "closed"


@on_both
def test_old_findings_are_deleted_with_their_history_once_the_detector_has_forgotten_them(database: Database) -> None:
    old, open_one, recent = sync(
        database, ended(a_finding(1), second=0), a_finding(2, "w4"), ended(a_finding(3, "w5"), second=3 * DAY)
    ).new

    def left(older_than: float, now: float) -> list[int]:
        with database.engine.begin() as connection:
            findings.delete_closed_before(connection, at(older_than), now=at(now))
        return sorted(row.finding_id for row in listed(database))

    everything = [old.finding_id, open_one.finding_id, recent.finding_id]
    # The detector still returns it, so it would come back.
    assert left(29 * DAY, 30 * DAY) == everything
    assert left(-1, 40 * DAY) == everything
    assert left(39 * DAY, 32 * DAY) == everything[1:]
    with database.engine.connect() as connection:
        assert len(findings.events(connection, everything)[old.finding_id]) == 0
        assert len(findings.events(connection, everything)[recent.finding_id]) == 2
    assert left(39 * DAY, 40 * DAY) == [open_one.finding_id]


@on_both
def test_retention_deletes_findings_too(database: Database) -> None:
    sync(database, ended(a_finding(), second=0))
    list(retention.prune(at(39 * DAY)))
    assert listed(database) == []


@on_both
def test_a_decision_on_a_worker_is_in_the_history_of_what_concerns_it(database: Database) -> None:
    with database.engine.begin() as connection:
        for worker_id in ("w1", "w2"):
            upsert_worker(connection, a_worker(worker_id), now=NOON)
    stored = sync(
        database,
        a_finding(1, "w1", worker_ids=["an-earlier-instance"]),
        a_finding(2, dimension="zone", unit="b", subject="b", worker_ids=["w1", "w2"]),
        a_finding(3, "w2"),
        ended(a_finding(4, "w1", outcome="lost")),
    ).new
    with database.engine.begin() as connection:
        set_availability(connection, "w1", "draining", note="disk", changed_by="ann", now=at(800))
        set_availability(connection, "w1", "available", note=None, changed_by="bob", now=at(900))
    own, zone, other, closed = (history(database, each.finding_id)[1:] for each in stored)
    assert own == [("draining", "ann", "disk"), ("released", "bob", None)]
    assert zone == [("draining", "ann", "w1@host-1: disk"), ("released", "bob", "w1@host-1")]
    assert other == []
    assert [action for action, _, _ in closed] == ["closed"]


def test_lists_are_paged(database: Database) -> None:
    sync(database, *(a_finding(number, f"w{number}") for number in range(1, 6)))
    with database.engine.connect() as connection:
        pages = [
            findings.list_findings(connection, FindingFilter(), limit=2, offset=offset, dag_ids=ALL_DAGS)
            for offset in (0, 2, 4)
        ]
    assert [total for _, total in pages] == [5, 5, 5]
    assert [row.number for rows, _ in pages for row in rows] == [5, 4, 3, 2, 1]


@on_both
def test_what_a_detector_finds_and_a_user_dismisses_is_closed_for_both(database: Database) -> None:
    history_of_w1 = streams.rows(600, rate=lambda name, _: 0.9 if name == "w1" else 0.02)
    detector = Detector()
    steps: list[FindingChanges] = []
    for number, each in enumerate(streams.events(history_of_w1)):
        detector.add(each)
        detector.advance_to(each.started_at if isinstance(each, Started) else each.ended_at)
        if number % 100 == 0:
            for found in detector.open_findings():
                detector.refresh(found)
            steps.append(sync(database, *map(as_json, detector.findings())))
    (stored,) = [new for step in steps for new in step.new]
    assert (stored.data["subject"], stored.state) == ("w1", "open")
    assert all(step.dismissed == frozenset() for step in steps)
    dismissed_at = detector.now / 1000 + 1 - NOON.timestamp()
    assert dismiss(database, stored.finding_id, second=dismissed_at)
    changes = sync(database, *map(as_json, detector.findings()), second=dismissed_at)
    (found,) = [each for each in detector.open_findings() if each.number in changes.dismissed]
    detector.close(found, "dismissed")
    again = sync(database, *map(as_json, detector.findings()), second=dismissed_at)
    assert (again.new, again.changed, again.dismissed) == ([], [], frozenset())
    assert actions(database, stored.finding_id)[-1] == "dismissed"
    # A detector computed anew does not know of the dismissal.
    anew = streams.feed(streams.events(history_of_w1))
    assert {each.number for each in anew.open_findings()} == sync(
        database, *map(as_json, anew.findings()), second=dismissed_at
    ).dismissed
    assert len(listed(database)) == 1
