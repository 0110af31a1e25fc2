"""What a user reads of a finding, and what is kept from them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from airflow_worker_insight.domain.findings import (
    FindingAction,
    FindingEvent,
    FindingOutcome,
    FindingState,
    StoredFinding,
    SubjectKind,
)
from airflow_worker_insight.insight.findings import Share
from airflow_worker_insight.ui.views.findings import MAX_WORKERS, FindingCard, build_card, may_see
from tests.unit.database import NOON, at
from tests.unit.findings import a_finding, a_share, ended
from tests.unit.ui.workers import a_worker_row


def stored(data: dict[str, Any] | None = None) -> StoredFinding:
    data = data or a_finding()
    end = data["ended_at"]
    return StoredFinding(
        finding_id=7,
        state=FindingState(data["state"]),
        subject_kind=SubjectKind.WORKER,
        outcome=FindingOutcome(data["outcome"]),
        found_at=at(600),
        ended_at=None if end is None else datetime.fromtimestamp(end, tz=timezone.utc),
        end_reason=None,
        data=data,
    )


def card(data: dict[str, Any] | None = None, **others: Any) -> FindingCard:
    known: dict[str, Any] = {"dag_ids": {"etl"}, "workers": {}, "may_decide": True}
    return build_card(stored(data), **{**known, **others})


def test_card_says_what_was_found_and_since_when() -> None:
    shown = card()
    assert shown.title == "w3@host-1 fails more than its peers on the same tasks"
    assert shown.text == (
        "9 of 12 failures of `load` ran on w3@host-1, which ran 10 of its 60 tries; of its peers' 50 tries 3 failed."
    )
    assert (shown.since, shown.found_at, shown.is_open) == (NOON, at(600), True)
    assert shown.evidence == "Evidence 4,100 : 1 (800 needed)."


def test_picture_has_observed_and_expected_on_one_scale() -> None:
    picture = card(a_finding(tries=100, failures=15, expected=3.0)).picture
    assert (picture.observed.text, picture.observed.width) == ("15 of 100, 15 %", "75.0%")
    assert (picture.expected.text, picture.expected.width) == ("3.0, 3 %", "15.0%")
    assert picture.scale == "20 %"
    assert picture.description == (
        "15 of 100 tries failed; at the rate of its peers on the same tasks it would be 3.0."
    )


def test_picture_of_no_try_is_empty() -> None:
    picture = card(a_finding(tries=0, failures=0, expected=0.0)).picture
    assert (picture.observed.width, picture.expected.width) == ("0.0%", "0.0%")


def test_tasks_of_other_dags_are_counted_and_never_named() -> None:
    data = a_finding(shares=[a_share("secret", "payroll"), a_share("etl", "load", failures=2)], scope=("secret",))
    shown = card(data, events=[])
    assert "secret" not in repr(shown)
    assert "payroll" not in repr(shown)
    assert [(task.dag_id, task.name, task.own) for task in shown.tasks] == [("etl", "load", "2 of 10")]
    assert shown.hidden_tasks == "1 task that you may not see."
    assert shown.text.endswith("Mainly in 1 task that you may not see.")
    assert card(data, dag_ids={"etl", "secret"}).hidden_tasks == ""


def test_finding_about_a_task_needs_the_right_to_its_dag() -> None:
    about_task = a_finding(
        dimension="task",
        unit="secret/payroll",
        subject="secret.payroll",
        outcome="lost",
        shares=[Share(("w3",), 10, 4, 50, 1, 3.8)],
    )
    assert not may_see(stored(about_task), {"etl"})
    assert may_see(stored(about_task), {"secret"})
    assert may_see(stored(), set())
    (row,) = card(about_task, dag_ids={"secret"}).tasks
    assert (row.name, row.dag_id) == ("w3", "")


def test_workers_of_a_finding_about_a_task_cannot_be_taken_out() -> None:
    about_task = a_finding(dimension="task", unit="etl/load", subject="etl.load", outcome="lost", shares=[])
    shown = card(about_task, workers={"w3": a_worker_row("w3")})
    assert [(link.row.worker_id, link.choices) for link in shown.workers] == [("w3", ())]
    assert (shown.is_about_task, shown.may_dismiss) == (True, True)
    # Who may read the note of a decision may not read every Dag.
    assert "etl" in shown.title
    assert shown.note == "Finding 7"


def test_group_is_named_with_its_kind() -> None:
    shown = card(a_finding(dimension="zone", unit="b", subject="b", left_out="w7"))
    assert shown.title.startswith("Zone b fails more than its peers")
    assert "without w7 it is still so" in shown.text


def test_living_workers_are_linked_and_can_be_taken_out() -> None:
    rows = [
        a_worker_row("w3-old", ref=1, ended_at=NOON),
        a_worker_row("w3", ref=2),
        a_worker_row("w4", ref=3, availability="quarantined"),
        a_worker_row("w5", ref=4, availability="draining"),
    ]
    data = a_finding(worker_ids=["w3-old", "w3", "w4", "w5", "pruned"])
    workers = {row.worker_id: row for row in rows}
    assert [
        (link.row.worker_id, [value for value, _ in link.choices]) for link in card(data, workers=workers).workers
    ] == [
        ("w5", ["quarantined"]),
        ("w4", []),
        ("w3", ["quarantined", "draining"]),
    ]
    assert all(not link.choices for link in card(data, workers=workers, may_decide=False).workers)
    # What is gone is linked if nothing of it lives.
    (gone,) = card(data, workers={"w3-old": rows[0]}).workers
    assert gone.row.worker_id == "w3-old"


def test_pruned_worker_leaves_the_finding_readable() -> None:
    assert card(a_finding(worker_ids=["gone"])).workers == ()


def test_large_group_links_some_of_its_workers() -> None:
    workers = {f"w{number}": a_worker_row(f"w{number}", ref=number) for number in range(MAX_WORKERS + 5)}
    shown = card(a_finding(worker_ids=[*workers]), workers=workers)
    assert len(shown.workers) == MAX_WORKERS
    assert shown.more_workers == "and 5 more"


def test_closed_finding_offers_nothing() -> None:
    shown = card(ended(a_finding()), workers={"w3": a_worker_row("w3")})
    assert (shown.is_open, shown.may_dismiss, shown.workers[0].choices) == (False, False, ())
    assert shown.recovery == "w3@host-1 is well again."


@pytest.mark.parametrize("may_decide", [True, False])
def test_only_who_decides_on_workers_may_dismiss(may_decide: bool) -> None:
    assert card(may_decide=may_decide).may_dismiss is may_decide


def test_history_is_in_words() -> None:
    event = FindingEvent(NOON, FindingAction.QUARANTINED, "admin", "Disk fails")
    (entry,) = card(events=[event]).events
    assert (entry.text, entry.actor, entry.reason) == ("Quarantined", "admin", "Disk fails")


def test_each_action_has_a_word() -> None:
    events = [FindingEvent(NOON, action, None, None) for action in FindingAction]
    assert all(entry.text[0].isupper() for entry in card(events=events).events)
