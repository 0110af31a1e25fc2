"""Findings on Airflow 3: who may see which, and who may dismiss them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.store import findings
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers.availability import set_availability
from tests.unit.database import at
from tests.unit.findings import a_finding, a_share, ended
from tests.unit.readers import READABLE, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient

    from tests.unit.database import Database

    ClientOf = Callable[..., TestClient]

CLOSE = {"state": "closed", "note": "its disk was\nreplaced"}
HOSTILE = "<script>alert(1)</script>\"'; DROP TABLE \u202e"


def sync(database: Database, *found: dict[str, Any]) -> dict[int, int]:
    """Store findings; return their IDs by number."""
    with database.engine.begin() as connection:
        changes = findings.sync(connection, found, now=database_now(connection))
    return {stored.number: stored.finding_id for stored in changes.new}


@pytest.fixture
def ids(tries: Database) -> dict[int, int]:
    """Have a finding in two Dags, one about a task of a secret Dag, and one that has ended, of a worker long gone."""
    return sync(
        tries,
        a_finding(
            1,
            "w1",
            scope=(SECRET,),
            found_at=at(700).timestamp(),
            shares=[a_share(SECRET, "salary", failures=9), a_share(READABLE, failures=0)],
        ),
        a_finding(2, dimension="task", unit=f"{SECRET}/eat", subject=f"{SECRET}.eat", shares=[], worker_ids=[]),
        ended(a_finding(3, "pruned", outcome="lost")),
    )


def listed(client: TestClient, query: str = "") -> list[dict[str, Any]]:
    answer = client.get(f"api/v1/findings{query}")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["total_entries"], body["total_is_exact"]) == (len(body["findings"]), True)
    found: list[dict[str, Any]] = body["findings"]
    return found


def test_who_sees_all_dags_sees_all_findings(client_of: ClientOf, ids: dict[int, int]) -> None:
    first, second, third = listed(client_of())
    assert [one["finding_id"] for one in (first, second, third)] == [ids[1], ids[2], ids[3]]
    assert first["scope"] == {"dag_id": SECRET, "task_id": None}
    assert [(task["dag_id"], task["task_id"]) for task in first["tasks"]] == [(SECRET, "salary"), (READABLE, "load")]
    assert (first["since"], first["found_at"]) == ("2026-03-01T12:00:00Z", "2026-03-01T12:11:40Z")
    assert second["subject"] == f"{SECRET}.eat"
    assert (third["state"], third["ended_reason"], third["worker_ids"]) == ("closed", "well", ["pruned"])


def test_other_dags_are_counted_and_never_named(client_of: ClientOf, ids: dict[int, int]) -> None:
    few = client_of("few jobs")
    first, third = listed(few)
    assert [one["finding_id"] for one in (first, third)] == [ids[1], ids[3]]
    detail = few.get(f"api/v1/findings/{ids[1]}").json()
    for found in (first, detail):
        assert SECRET not in str(found)
        assert "salary" not in str(found)
        assert found["text"].endswith("Mainly in 1 task that you may not see.")
        assert (found["scope"], found["hidden_tasks"]) == ({"dag_id": None, "task_id": None}, 1)
    for finding_id in (ids[2], 10**6):
        assert few.get(f"api/v1/findings/{finding_id}").status_code == 404
        assert few.patch(f"api/v1/findings/{finding_id}", json=CLOSE).status_code in (403, 404)
    assert few.get(f"api/v1/findings?dag_id={SECRET}").status_code == 403


def test_who_sees_workers_but_no_dag_sees_numbers_only(client_of: ClientOf, ids: dict[int, int]) -> None:
    first, third = listed(client_of("jobs only"))
    assert [one["finding_id"] for one in (first, third)] == [ids[1], ids[3]]
    assert (first["hidden_tasks"], first["tasks"], first["failures"]) == (2, [], 9)
    assert READABLE not in first["text"]


@pytest.mark.parametrize(("username", "status"), [("few", 403), ("nobody", 403), (None, 401)])
def test_findings_need_the_right_to_see_workers(
    client_of: ClientOf, ids: dict[int, int], username: str | None, status: int
) -> None:
    client = client_of(username)
    for path in ("findings", f"findings/{ids[1]}", "findings/1000000"):
        assert client.get(f"api/v1/{path}").status_code == status
    assert client.patch(f"api/v1/findings/{ids[1]}", json=CLOSE).status_code == status


def test_filters(client_of: ClientOf, ids: dict[int, int]) -> None:
    def numbers(query: str) -> list[int]:
        by_id = {finding_id: number for number, finding_id in ids.items()}
        return [by_id[one["finding_id"]] for one in listed(client_of(), query)]

    assert numbers("?state=open") == [1, 2]
    assert numbers("?state=closed") == [3]
    assert numbers("?state=closed&state=open") == [1, 2, 3]
    assert numbers("?subject_kind=task") == [2]
    assert numbers("?outcome=lost") == [3]
    assert numbers("?worker_id=w1") == [1]
    assert numbers(f"?dag_id={SECRET}") == [1, 2]
    assert numbers("?dag_id=gone") == []
    for query in ("?state=gone", "?outcome=good", "?worker_id=w%201", "?colour=red", "?limit=0"):
        assert client_of().get(f"api/v1/findings{query}").status_code == 422
    for finding_id in ("0", "-1", "x", "99999999999"):
        assert client_of().get(f"api/v1/findings/{finding_id}").status_code == 422


def test_a_deleted_dag_is_named_to_who_may_see_it(client_of: ClientOf, tries: Database) -> None:
    found = a_finding(1, shares=[a_share("deleted", "gone_task")])
    task = a_finding(2, dimension="task", unit="deleted/eat", subject="deleted.eat", shares=[], worker_ids=[])
    ids = sync(tries, found, task)
    (first,) = listed(client_of())
    assert first["tasks"][0]["dag_id"] == "deleted"
    assert client_of().get(f"api/v1/findings/{ids[2]}").json()["subject"] == "deleted.eat"
    (first,) = listed(client_of("jobs only"))
    assert "gone_task" not in str(first)
    assert client_of("jobs only").get(f"api/v1/findings/{ids[2]}").status_code == 404


def test_a_finding_is_dismissed_once(client_of: ClientOf, ids: dict[int, int], tries: Database) -> None:
    admin = client_of()
    answer = admin.patch(f"api/v1/findings/{ids[1]}", json=CLOSE)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["state"], body["ended_reason"]) == ("closed", "dismissed")
    assert [(entry["action"], entry["actor"], entry["reason"]) for entry in body["history"]] == [
        ("dismissed", "admin", "its disk was replaced"),
        ("found", None, None),
    ]
    assert admin.get(f"api/v1/findings/{ids[1]}").json() == body
    again = admin.patch(f"api/v1/findings/{ids[1]}", json={"state": "closed"})
    assert again.status_code == 422
    assert "A user dismissed it" in again.json()["detail"]
    ended_well = admin.patch(f"api/v1/findings/{ids[3]}", json={"state": "closed"})
    assert ended_well.status_code == 422
    assert "2026-03-01 14:00 UTC: Well again" in ended_well.json()["detail"]
    with tries.engine.connect() as connection:
        assert len(findings.events(connection, [ids[1]])[ids[1]]) == 2


@pytest.mark.parametrize("username", ["few jobs", "jobs only"])
def test_who_may_not_edit_pools_dismisses_nothing(client_of: ClientOf, ids: dict[int, int], username: str) -> None:
    assert client_of(username).patch(f"api/v1/findings/{ids[1]}", json=CLOSE).status_code == 403
    assert client_of().get(f"api/v1/findings/{ids[1]}").json()["state"] == "open"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"state": "closed"}', {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}, 200),
        (b'{"state": "closed"}', {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, 403),
        (b'{"state": "closed"}', {"Content-Type": "text/plain", "Sec-Fetch-Site": "same-origin"}, 403),
    ],
)
def test_a_page_elsewhere_dismisses_nothing(
    client_of: ClientOf, ids: dict[int, int], body: bytes, headers: dict[str, str], status: int
) -> None:
    browser = client_of(cookie=True)
    if browser.get("api/v1/findings").status_code == 401:
        pytest.skip("3.0 takes no cookie")
    assert browser.patch(f"api/v1/findings/{ids[1]}", content=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b'{"state": "open"}', b'{"state": "closed", "x": 1}', b'{"state": "closed", "note": 7}']
)
def test_an_invalid_dismissal_is_refused(client_of: ClientOf, ids: dict[int, int], body: bytes) -> None:
    answer = client_of().patch(f"api/v1/findings/{ids[1]}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_hostile_names_and_notes_arrive_as_they_are(client_of: ClientOf, tries: Database) -> None:
    ids = sync(tries, a_finding(1, dimension="name", unit=HOSTILE, subject=HOSTILE))
    admin = client_of()
    answer = admin.patch(f"api/v1/findings/{ids[1]}", json={"state": "closed", "note": HOSTILE})
    assert answer.status_code == 200
    body = answer.json()
    assert body["subject"] == HOSTILE
    # A note is one printable line.
    assert body["history"][0]["reason"] == HOSTILE.replace("\u202e", " ").strip()


def test_a_decision_on_the_worker_is_in_the_history(client_of: ClientOf, ids: dict[int, int], tries: Database) -> None:
    with tries.engine.begin() as connection:
        set_availability(connection, "w1", "quarantined", note="disk", changed_by="ann", now=database_now(connection))
    (entry, _) = client_of().get(f"api/v1/findings/{ids[1]}").json()["history"]
    assert (entry["action"], entry["actor"], entry["reason"]) == ("quarantined", "ann", "disk")
    assert len(client_of().get(f"api/v1/findings/{ids[3]}").json()["history"]) == 2
