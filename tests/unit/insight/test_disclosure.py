"""What is shown of a finding names only Dags that its reader may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.domain.filters import AllDags
from airflow_worker_insight.domain.findings import (
    EndReason,
    FindingOutcome,
    FindingState,
    StoredFinding,
    subject_kind_of,
)
from airflow_worker_insight.insight.disclosure import finding_fields, named_dag_ids
from tests.unit.database import at
from tests.unit.findings import a_finding, a_share

if TYPE_CHECKING:
    from collections.abc import Collection

TASK = {"dimension": "task", "unit": "etl/eat", "subject": "etl.eat", "outcome": "lost", "worker_ids": []}


def stored(**others: Any) -> StoredFinding:
    data = a_finding(**others)
    return StoredFinding(
        7,
        FindingState(data["state"]),
        subject_kind_of(data["dimension"]),
        FindingOutcome(data["outcome"]),
        at(600),
        None,
        None,
        data,
    )


def shown(finding: StoredFinding, dag_ids: Collection[str] | AllDags) -> dict[str, Any]:
    fields = finding_fields(finding, dag_ids=dag_ids, now=at(700))
    assert fields is not None
    return fields


def test_who_sees_all_dags_sees_all() -> None:
    finding = stored(scope=("etl", "load"), shares=[a_share(), a_share("sales", failures=0)])
    fields = shown(finding, AllDags())
    assert fields == shown(finding, {"etl", "sales"})
    assert fields["title"] == "w3@host-1 fails more than its peers on the same tasks"
    assert fields["text"].startswith("9 of 12 failures of `load` ran on w3@host-1")
    assert "Only in task `load` of Dag `etl`." in fields["text"]
    assert "Since Sun 12:00." in fields["text"]
    assert fields["scope"] == {"dag_id": "etl", "task_id": "load"}
    assert [task["dag_id"] for task in fields["tasks"]] == ["etl", "sales"]
    assert (fields["hidden_tasks"], fields["label"], fields["ended_reason"]) == (0, None, None)


@pytest.mark.parametrize(
    ("dag_ids", "sentence"),
    [
        ({"etl"}, "It also counts 2 tasks that you may not see."),
        ({"etl", "hr"}, "It also counts 1 task that you may not see."),
        ({"sales", "hr"}, "Mainly in 1 task that you may not see."),
        (set(), "Mainly in 3 tasks that you may not see."),
    ],
)
def test_tasks_of_other_dags_are_counted_only(dag_ids: set[str], sentence: str) -> None:
    shares = [a_share(), a_share("sales", "pay", failures=0), a_share("hr", "hire", failures=0)]
    fields = shown(stored(scope=("etl",), shares=shares), dag_ids)
    assert fields["text"].endswith(sentence)
    assert fields["hidden_tasks"] == 3 - len(fields["tasks"])
    for dag_id, task_id in (("etl", "load"), ("sales", "pay"), ("hr", "hire")):
        if dag_id not in dag_ids:
            assert f"`{dag_id}`" not in fields["text"]
            assert f"'{dag_id}'" not in str(fields)
            assert task_id not in str(fields)
    # The reader is not told that it is so everywhere.
    assert (fields["scope"] == {"dag_id": None, "task_id": None}) == ("etl" not in dag_ids)


def test_a_task_of_another_dag_is_not_shown() -> None:
    finding = stored(**TASK, shares=[])
    assert finding_fields(finding, dag_ids={"sales"}, now=at(700)) is None
    fields = shown(finding, {"etl"})
    assert fields["tasks"] == [
        {"dag_id": "etl", "task_id": "eat", "tries": 10, "failures": 9, "peer_tries": 50, "peer_failures": 3}
    ]
    assert (fields["subject_kind"], fields["subject"], fields["scope"]) == ("task", "etl.eat", None)


def test_a_label_says_which() -> None:
    fields = shown(stored(dimension="zone", unit="b", subject="b"), {"etl"})
    assert (fields["subject_kind"], fields["label"], fields["subject"]) == ("label", "zone", "b")


def test_the_end_is_shown() -> None:
    data = {**a_finding(), "state": "closed", "ended_at": at(900).timestamp(), "end_reason": "well"}
    closed = StoredFinding(
        7,
        FindingState.CLOSED,
        subject_kind_of("worker"),
        FindingOutcome.FAILED,
        at(600),
        at(900),
        EndReason.WELL,
        data,
    )
    fields = shown(closed, {"etl"})
    assert (fields["state"], fields["ended_at"], fields["ended_reason"]) == ("closed", at(900), "well")
    assert fields["recovery"] == "w3@host-1 is well again."


def test_dags_that_findings_name() -> None:
    named = named_dag_ids([stored(scope=("sales",), shares=[a_share("hr")]), stored(**TASK, shares=[])])
    assert named == {"sales", "hr", "etl"}
