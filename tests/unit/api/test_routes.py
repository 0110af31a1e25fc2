"""The REST API on Airflow 3: what programs are told, who may read and decide, and what bad requests are told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from sqlalchemy import func, insert, select, update

from airflow_worker_insight import __version__
from airflow_worker_insight.api.errors import WorkerNotFoundError
from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import Conditions
from airflow_worker_insight.domain.attribution import host_worker
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.attempts import close
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.tables import change, worker, worker_source
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, a_worker, add_run, add_try, at, record_start
from tests.unit.readers import READABLE, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient
    from httpx import Response

    from tests.unit.database import Database

    ClientOf = Callable[..., TestClient]

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
DRAIN = {"availability": "draining", "note": "disk fails"}


@pytest.fixture
def fleet(tries: Database) -> Database:
    """Have engines that were looked at just now, and tell more of the two workers."""
    with tries.engine.begin() as connection:
        now = database_now(connection)
        looks = [{"name": name, "due_at": now, "looked_at": now} for name in ("celery", "edge", "jobs", "tries")]
        connection.execute(insert(worker_source), looks)
        connection.execute(
            update(worker)
            .where(worker.c.worker_id == "w2")
            .values(queues=["default", "heavy"], concurrency=4, running=2, labels={"zone": "b", "rack": "1"})
        )
        lost = {"state": "lost", "ended_at": at(60), "state_reason": "silent for 180 seconds", "queues": ["default"]}
        connection.execute(update(worker).where(worker.c.worker_id == "w1").values(lost))
        w1 = select(worker.c.id).where(worker.c.worker_id == "w1").scalar_subquery()
        connection.execute(insert(change).values(worker_ref=w1, changed_at=at(60), state="lost", reason="silent"))
    return tries


def ids(answer: Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["worker_id"] for one in answer.json()["workers"]]


# --- attempts -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tries")
def test_lists_and_totals_leave_out_what_the_reader_may_not_see(client_of: ClientOf) -> None:
    everything = client_of().get("api/v1/attempts").json()
    assert [(one["dag_id"], one["try_number"]) for one in everything["attempts"]] == [
        (SECRET, 1),
        (READABLE, 2),
        (READABLE, 1),
    ]
    assert (everything["total_entries"], everything["total_is_exact"]) == (3, True)
    for query in ("", "?worker_id=w1", "?hostname=host-1", "?limit=1", "?offset=1", "?task_id=load", "?state=running"):
        found = client_of("few").get(f"api/v1/attempts{query}").json()
        assert SECRET not in str(found)
        assert found["total_entries"] == (1 if "worker_id" in query or "state" in query else 2)


def test_an_attempt_is_what_the_contract_says(client_of: ClientOf, dags: Database) -> None:
    with dags.engine.begin() as connection:
        key = add_try(connection, add_run(connection), "load", state="running", started_at=at(10), ended_at=None)
        conditions = Conditions(load=0.35, memory_free=0.7, running_beside=3)
        record_start(
            connection,
            key,
            a_worker("w1"),
            try_started_at=at(10),
            state="running",
            now=at(10),
            conditions=conditions,
        )
        placements.write(
            connection,
            [Placement(key, PlacementReason.RETRY_ELSEWHERE, "w1@host-1: retry on another worker")],
            now=at(9),
        )
    (attempt,) = client_of().get("api/v1/attempts?dag_id=etl&try_number=1").json()["attempts"]
    assert attempt == {
        "dag_id": "etl",
        "run_id": "run-1",
        "task_id": "load",
        "map_index": -1,
        "try_number": 1,
        "state": "running",
        "started_at": "2026-03-01T12:00:10Z",
        "ended_at": None,
        "duration": None,
        "attribution": "reported",
        "workers": [
            {
                "worker_id": "w1",
                "name": "w1@host-1",
                "kind": "celery",
                "hostname": "host-1",
                "process_count": 1,
                "first_started_at": "2026-03-01T12:00:10Z",
                "last_started_at": "2026-03-01T12:00:10Z",
                "load": 0.35,
                "memory_free": 0.7,
                "running_beside": 3,
            }
        ],
        "deleted": None,
        "placement": "elsewhere",
        "placement_detail": "w1@host-1: retry on another worker",
    }


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("dag_id=etl", [2, 1]),
        ("dag_id=etl&run_id=run-1&task_id=load&map_index=-1", [2, 1]),
        ("dag_id=etl&limit=1", [2]),
        ("dag_id=etl&limit=1&offset=1", [1]),
        ("dag_id=etl&offset=2", []),
        ("dag_id=etl&offset=10000", []),
        ("worker_name=w2@host-1", [2]),
        ("dag_id=etl&state=running", [2]),
        ("dag_id=etl&state=failed", [1]),
        ("dag_id=etl&state=success", []),
        ("started_at_gte=2026-03-01T12:00:15Z&started_at_lte=2026-03-01T12:00:25", [2]),
        ("started_at_gte=2026-03-01T13:00:15%2B01:00&started_at_lte=2026-03-01T12:00:25Z", [2]),
        ("dag_id=unheard-of", []),
        (f"task_id={quote(chr(0x1F98A) * 250)}", []),
    ],
)
@pytest.mark.usefixtures("tries")
def test_filters_of_attempts(client_of: ClientOf, query: str, numbers: list[int]) -> None:
    answer = client_of().get(f"api/v1/attempts?{query}")
    assert answer.status_code == 200, answer.text
    assert [one["try_number"] for one in answer.json()["attempts"]] == numbers


# --- workers --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fleet")
def test_a_worker_is_what_the_contract_says(client_of: ClientOf) -> None:
    answer = client_of().get("api/v1/workers/w2").json()
    assert answer == {
        "worker_id": "w2",
        "name": "w2@host-1",
        "kind": "celery",
        "hostname": "host-1",
        "pid": 100,
        "state": "online",
        "state_reason": None,
        "availability": "available",
        "availability_note": None,
        "availability_changed_by": None,
        "availability_changed_at": None,
        "enforcement": None,
        "queues": ["default", "heavy"],
        "concurrency": 4,
        "running": 2,
        "started_at": "2026-03-01T11:00:00Z",
        "registered_at": "2026-03-01T12:00:20Z",
        "last_seen_at": "2026-03-01T12:00:20Z",
        "ended_at": None,
        "labels": {"zone": "b", "rack": "1"},
        "resources": {"cpus": 4},
        "versions": {"airflow": "3"},
        "changes": [],
    }
    (listed,) = client_of().get("api/v1/workers?name=w2@host-1").json()["workers"]
    assert {**listed, "changes": []} == answer


@pytest.mark.usefixtures("fleet")
def test_a_lost_worker_says_why_and_since_when(client_of: ClientOf) -> None:
    answer = client_of().get("api/v1/workers/w1").json()
    assert (answer["state"], answer["state_reason"], answer["ended_at"]) == (
        "lost",
        "silent for 180 seconds",
        "2026-03-01T12:01:00Z",
    )
    assert answer["changes"] == [
        {
            "changed_at": "2026-03-01T12:01:00Z",
            "state": "lost",
            "availability": None,
            "reason": "silent",
            "changed_by": None,
        }
    ]


@pytest.mark.usefixtures("tries")
def test_a_state_that_nobody_has_checked_is_unknown(client_of: ClientOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    answer = client_of().get("api/v1/workers/w1").json()
    assert answer["state"] is None
    assert "airflow-worker-insight refresh" in answer["state_reason"]
    assert ids(client_of().get("api/v1/workers?state=online")) == []
    assert ids(client_of().get("api/v1/workers?state=unknown&order_by=name")) == ["w1", "w2"]
    assert ids(client_of().get("api/v1/workers?state=online&state=unknown&order_by=name")) == ["w1", "w2"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["w1", "w2"]),
        ("state=online", ["w2"]),
        ("state=lost", ["w1"]),
        ("state=offline", []),
        ("kind=celery", ["w1", "w2"]),
        ("kind=local", []),
        ("name=w1@host-1", ["w1"]),
        ("name=w1", []),
        ("hostname=host-1", ["w1", "w2"]),
        ("label=zone=b", ["w2"]),
        ("label=zone%3Da", ["w1"]),
        ("label=zone=B", []),
        ("label=rack=1", ["w2"]),
        ("label=zone=", []),
        (f"label={quote('<b>=%_')}", []),
        ("queue=default", ["w1", "w2"]),
        ("queue=heavy", ["w2"]),
        ("queue=heav", []),
        ("queue=%25", []),
        ("availability=available", ["w1", "w2"]),
        ("availability=draining", []),
        ("order_by=-name", ["w2", "w1"]),
        ("order_by=state", ["w2", "w1"]),
        ("order_by=running", ["w2", "w1"]),
        ("order_by=-registered_at", ["w1", "w2"]),
        ("limit=1&offset=1", ["w2"]),
        ("queue=default&state=online&label=rack=1", ["w2"]),
    ],
)
@pytest.mark.usefixtures("fleet")
def test_filters_and_orders_of_workers(client_of: ClientOf, query: str, found: list[str]) -> None:
    answer = client_of().get(f"api/v1/workers?{query}")
    assert sorted(ids(answer)) == found if "order_by" not in query and "limit" not in query else ids(answer) == found
    if "limit" not in query:
        assert answer.json()["total_entries"] == len(found)
    assert answer.json()["total_is_exact"]


@pytest.mark.usefixtures("fleet")
def test_the_attempts_of_a_worker(client_of: ClientOf) -> None:
    everything = client_of().get("api/v1/workers/w1/attempts").json()
    assert [(one["dag_id"], one["try_number"]) for one in everything["attempts"]] == [(SECRET, 1), (READABLE, 1)]
    assert (everything["total_entries"], everything["total_is_exact"]) == (2, True)
    failed = client_of().get("api/v1/workers/w1/attempts?state=failed&limit=1").json()
    assert [one["try_number"] for one in failed["attempts"]] == [1]
    few = client_of("few jobs").get("api/v1/workers/w1/attempts")
    assert few.json()["total_entries"] == 1
    assert SECRET not in few.text
    assert client_of("few jobs").get(f"api/v1/workers/w1/attempts?dag_id={SECRET}").status_code == 403


@pytest.mark.usefixtures("fleet")
def test_what_workers_are_is_for_those_who_may_see_jobs(client_of: ClientOf) -> None:
    for path in ("workers", "workers/w1", "workers/unheard-of", "workers/w1/attempts", "services"):
        answer = client_of("few").get(f"api/v1/{path}")
        assert (answer.status_code, answer.json()) == (403, {"detail": "Forbidden"})
    # Who may read no task instance learns nothing of them from a worker either.
    assert client_of("jobs only").get("api/v1/workers/w1").status_code == 200
    assert client_of("jobs only").get("api/v1/workers/w1/attempts").status_code == 403


def test_a_worker_that_nobody_recorded(client_of: ClientOf) -> None:
    for path in ("workers/unheard-of", "workers/unheard-of/attempts"):
        answer = client_of().get(f"api/v1/{path}")
        assert (answer.status_code, answer.json()["detail"]) == (404, str(WorkerNotFoundError()))
    assert client_of().patch("api/v1/workers/unheard-of", json=DRAIN).status_code == 404


# --- decisions ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fleet")
def test_a_decision_is_kept_with_who_made_it_when_and_why(client_of: ClientOf) -> None:
    client = client_of()
    answer = client.patch("api/v1/workers/w2", json=DRAIN)
    assert answer.status_code == 200
    drained = answer.json()
    assert (drained["availability"], drained["availability_note"]) == ("draining", "disk fails")
    assert drained["availability_changed_by"] == "admin"
    assert client.get("api/v1/workers/w2").json() == drained
    assert ids(client.get("api/v1/workers?availability=draining")) == ["w2"]

    client.patch("api/v1/workers/w2", json={"availability": "available"})
    after = client.get("api/v1/workers/w2").json()
    assert (after["availability"], after["availability_note"]) == ("available", None)
    assert [(one["availability"], one["reason"]) for one in after["changes"]] == [
        ("available", None),
        ("draining", "disk fails"),
    ]


def patched(client: TestClient, headers: dict[str, str], body: bytes = json.dumps(DRAIN).encode()) -> int:
    return client.patch("api/v1/workers/w2", content=body, headers=headers).status_code


def decisions(database: Database) -> int:
    with database.engine.connect() as connection:
        number: int = connection.execute(select(func.count()).where(change.c.availability.is_not(None))).scalar_one()
        return number


JSON = {"Content-Type": "application/json"}


@pytest.mark.skipif(not airflow_auth.browser_sends_token(), reason="3.0 takes no cookie")
@pytest.mark.parametrize(
    "headers",
    [
        JSON,
        {**JSON, "Sec-Fetch-Site": "cross-site"},
        {**JSON, "Sec-Fetch-Site": "same-site"},
        {**JSON, "Sec-Fetch-Site": "none"},
        {**JSON, "Origin": "https://evil.example"},
        {**JSON, "Origin": "null"},
        {**JSON, "Sec-Fetch-Site": "cross-site", "Origin": "http://airflow"},
        {**SAME_ORIGIN, "Content-Type": "text/plain"},
        {**SAME_ORIGIN, "Content-Type": "application/x-www-form-urlencoded"},
        SAME_ORIGIN,
        {**JSON, "Authorization": "Basic YWRtaW46YWRtaW4="},
    ],
)
def test_a_page_elsewhere_decides_nothing(client_of: ClientOf, fleet: Database, headers: dict[str, str]) -> None:
    assert patched(client_of(cookie=True), headers) == 403
    assert decisions(fleet) == 0


@pytest.mark.skipif(not airflow_auth.browser_sends_token(), reason="3.0 takes no cookie")
@pytest.mark.parametrize("headers", [{**JSON, **SAME_ORIGIN}, {**JSON, "Origin": "http://airflow"}])
def test_a_page_of_this_server_decides(client_of: ClientOf, fleet: Database, headers: dict[str, str]) -> None:
    assert patched(client_of(cookie=True), headers) == 200
    assert decisions(fleet) == 1


@pytest.mark.skipif(not airflow_auth.browser_sends_token(), reason="3.0 takes no cookie")
def test_a_token_beside_the_cookie_does_not_excuse_it(client_of: ClientOf, fleet: Database) -> None:
    browser = client_of(cookie=True)
    assert patched(browser, {**JSON, "Authorization": "Bearer anything", "Sec-Fetch-Site": "cross-site"}) in (401, 403)
    assert decisions(fleet) == 0


@pytest.mark.usefixtures("fleet")
def test_a_bearer_token_is_no_browsers(client_of: ClientOf) -> None:
    assert patched(client_of(), JSON) == 200
    # A program that was given the token may run on any page.
    assert patched(client_of(), {**JSON, "Origin": "https://dashboard.example"}) == 200


@pytest.mark.parametrize("username", ["few", "few jobs", "jobs only", "nobody"])
def test_who_may_not_edit_pools_decides_nothing(client_of: ClientOf, fleet: Database, username: str) -> None:
    assert patched(client_of(username), JSON) == 403
    # Nor is told what would be wrong with the decision.
    assert patched(client_of(username), JSON, b"{") == 403
    assert decisions(fleet) == 0


def test_anonymous_decides_nothing(client_of: ClientOf, fleet: Database) -> None:
    assert patched(client_of(None), JSON) == 401
    assert patched(client_of(None), JSON, b"{") == 401
    assert decisions(fleet) == 0


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'"draining"', "object"),
        (b"{}", "Field required"),
        (b'{"availability": "gone"}', "'available', 'draining' or 'quarantined'"),
        (b'{"availability": null}', "'available', 'draining' or 'quarantined'"),
        (b'{"availability": "draining", "note": 7}', "valid string"),
        (b'{"availability": "draining", "note": "%s"}' % (b"n" * 501), "at most 500"),
        (b'{"availability": "draining", "note": "\\u0000"}', "NUL"),
        (b'{"availability": "draining", "note": "\\ud800"}', "Invalid JSON"),
        (b'{"availability": "draining", "state": "lost"}', "Extra inputs"),
        (b'{"availability": "draining", "note": "%s"}' % (b" " * 20_000), "longer than 16384 bytes"),
        (b"[" * 10_000, "Invalid JSON"),
    ],
)
def test_what_is_wrong_with_a_decision_is_said(
    client_of: ClientOf, fleet: Database, body: bytes, complaint: str
) -> None:
    answer = client_of().patch("api/v1/workers/w2", content=body, headers=JSON)
    assert answer.status_code == 422
    assert complaint in str(answer.json()["detail"])
    assert decisions(fleet) == 0


def test_a_decision_is_json_and_says_so(client_of: ClientOf, fleet: Database) -> None:
    answer = client_of().patch("api/v1/workers/w2", content=json.dumps(DRAIN), headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "The body must be JSON: send it with the content type application/json.",
    )
    assert decisions(fleet) == 0


def test_nothing_is_decided_of_all_workers_of_a_host(client_of: ClientOf, fleet: Database) -> None:
    record = host_worker("host-9", "celery")
    with fleet.engine.begin() as connection:
        close.ensure_hosts(connection, [record], now=NOON)
    answer = client_of().patch(f"api/v1/workers/{record.worker_id}", json=DRAIN)
    assert (answer.status_code, "all workers of a host" in answer.json()["detail"]) == (422, True)
    shown = client_of().get(f"api/v1/workers/{record.worker_id}").json()
    assert (shown["state"], shown["availability"]) == (None, "available")
    assert "one of the workers of its host" in shown["state_reason"]
    assert record.worker_id not in ids(client_of().get("api/v1/workers"))


@pytest.mark.usefixtures("fleet")
def test_markup_in_a_note_is_text(client_of: ClientOf) -> None:
    note = "<script>alert(1)</script> ' \" % 🐘"
    client_of().patch("api/v1/workers/w2", json={"availability": "quarantined", "note": note})
    assert client_of().get("api/v1/workers/w2").json()["availability_note"] == note


# --- services and health --------------------------------------------------------------------------------------------


def test_services_are_airflows_own_and_the_workers(client_of: ClientOf, fleet: Database) -> None:
    job = metadata_database.job_table()
    with fleet.engine.begin() as connection:
        now = database_now(connection)
        jobs = [
            {"job_type": "SchedulerJob", "hostname": "s-1", "state": "running", "latest_heartbeat": now},
            {"job_type": "TriggererJob", "hostname": "t-1", "state": "running", "latest_heartbeat": NOON},
        ]
        connection.execute(insert(job), [{"start_date": NOON, **one} for one in jobs])
    services = client_of().get("api/v1/services").json()
    assert [(one["kind"], one["hostname"], one["state"]) for one in services["services"]] == [
        ("scheduler", "s-1", "online"),
        ("triggerer", "t-1", "lost"),
        ("worker", "host-1", "lost"),
        ("worker", "host-1", "online"),
    ]
    assert services["total_entries"] == 4
    scheduler = services["services"][0]
    assert (scheduler["started_at"], scheduler["ended_at"]) == ("2026-03-01T12:00:00Z", None)
    online = client_of().get("api/v1/services?state=online&kind=worker").json()
    assert [one["service_id"] for one in online["services"]] == ["w2"]
    page = client_of().get("api/v1/services?limit=2&offset=1").json()
    assert [one["kind"] for one in page["services"]] == ["triggerer", "worker"]


def test_health(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(
            update(worker_source)
            .where(worker_source.c.name == "celery")
            .values(looked_at=NOON, error="The broker did not answer")
        )
    health = client_of().get("api/v1/health").json()
    assert {name: health[name] for name in health if name not in ("counters", "engines")} == {
        "status": "healthy",
        "version": __version__,
        "tables": "ready",
        "explanation": "The tables are up to date.",
    }
    assert health["engines"][0] == {
        "name": "celery",
        "looked_at": "2026-03-01T12:00:00Z",
        "is_current": False,
        "error": "The broker did not answer",
    }
    assert [one["is_current"] for one in health["engines"]] == [False, True, True, True]


@pytest.mark.usefixtures("fleet")
def test_what_is_wrong_with_an_engine_is_for_those_who_may_see_workers(client_of: ClientOf) -> None:
    assert client_of("few").get("api/v1/health").json()["engines"] is None


# --- placements ------------------------------------------------------------------------------------------------------


@pytest.fixture
def placed(dags: Database) -> Database:
    """Have a try that waits and one that is placed in the readable Dag, and one that waits in the secret one."""
    with dags.engine.begin() as connection:
        ref = upsert_worker(connection, a_worker("w1"), now=NOON)
        for dag_id in (READABLE, SECRET):
            run = add_run(connection, dag_id, state="running", ended_at=None)
            waits = add_try(connection, run, "waits", state="queued", ended_at=None, queue="heavy")
            some = [
                Placement(
                    waits,
                    PlacementReason.NOT_AVAILABLE,
                    "waits: nobody; left out: w1@host-1 (draining)",
                    placed_at=at(1),
                )
            ]
            if dag_id == READABLE:
                runs = add_try(connection, run, "runs", state="running", ended_at=None, queue="default")
                some.append(
                    Placement(
                        runs,
                        PlacementReason.RETRY_ELSEWHERE,
                        "w1@host-1: retry on another worker",
                        ref,
                        placed_at=at(2),
                    )
                )
            placements.write(connection, some, now=NOON)
    return dags


@pytest.mark.usefixtures("placed")
def test_a_placement_is_what_the_contract_says(client_of: ClientOf) -> None:
    answer = client_of().get(f"api/v1/placements?dag_id={READABLE}")
    assert answer.json() == {
        "placements": [
            {
                "dag_id": "etl",
                "run_id": "run-1",
                "task_id": "waits",
                "map_index": -1,
                "try_number": 1,
                "state": "waiting",
                "worker": None,
                "reason": "waits_not_available",
                "detail": "nobody; left out: w1@host-1 (draining)",
                "since": "2026-03-01T12:00:01Z",
                "queue": "heavy",
                "try_state": "queued",
            },
            {
                "dag_id": "etl",
                "run_id": "run-1",
                "task_id": "runs",
                "map_index": -1,
                "try_number": 1,
                "state": "placed",
                "worker": {"worker_id": "w1", "name": "w1@host-1"},
                "reason": "elsewhere",
                "detail": "w1@host-1: retry on another worker",
                "since": "2026-03-01T12:00:02Z",
                "queue": "default",
                "try_state": "running",
            },
        ],
        "total_entries": 2,
        "total_is_exact": True,
    }


@pytest.mark.usefixtures("placed")
@pytest.mark.parametrize(
    ("query", "number"),
    [
        ("", 3),
        ("state=waiting", 2),
        ("state=placed", 1),
        ("reason=elsewhere", 1),
        ("worker_id=w1", 1),
        ("worker_id=w9", 0),
        ("try_state=queued", 2),
        ("task_id=waits&run_id=run-1", 2),
        ("limit=1&offset=1", 3),
    ],
)
def test_placements_are_filtered_and_those_of_other_dags_neither_listed_nor_counted(
    client_of: ClientOf, query: str, number: int
) -> None:
    assert client_of().get(f"api/v1/placements?{query}").json()["total_entries"] == number
    few = client_of("few").get(f"api/v1/placements?{query}")
    assert SECRET not in few.text
    assert few.json()["total_entries"] == number - (number > 1)
    # The sentence names workers that the try has nothing to do with.
    assert {one["detail"] for one in few.json()["placements"]} <= {None}


@pytest.mark.usefixtures("placed")
def test_placements_ask_for_the_right_that_attempts_ask_for(client_of: ClientOf) -> None:
    assert client_of(None).get("api/v1/placements").status_code == 401
    assert client_of("nobody").get("api/v1/placements").status_code == 403
    assert client_of("jobs only").get("api/v1/placements").status_code == 403
    assert client_of("few").get(f"api/v1/placements?dag_id={SECRET}").status_code == 403


# --- what bad requests are told -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "where", "complaint"),
    [
        ("attempts?colour=red", ["query", "colour"], "Extra inputs are not permitted"),
        ("attempts?limit=0", ["query", "limit"], "greater than or equal to 1"),
        ("attempts?limit=1001", ["query", "limit"], "less than or equal to 1000"),
        ("attempts?limit=many", ["query", "limit"], "valid integer"),
        ("attempts?offset=-1", ["query", "offset"], "greater than or equal to 0"),
        ("attempts?offset=10001", ["query", "offset"], "skips at most 10000 entries: look further back with"),
        (f"attempts?offset={10**30}", ["query", "offset"], "at most 10000"),
        (f"attempts?map_index={2**31}", ["query", "map_index"], "less than or equal to"),
        ("attempts?try_number=first", ["query", "try_number"], "valid integer"),
        ("attempts?worker_id=w%201", ["query", "worker_id"], "match pattern"),
        ("attempts?worker_id=w1%0A", ["query", "worker_id"], "match pattern"),
        (f"attempts?dag_id={'d' * 251}", ["query", "dag_id"], "at most 250"),
        ("attempts?dag_id=", ["query", "dag_id"], "at least 1"),
        ("attempts?dag_id=a%00", ["query", "dag_id"], "NUL"),
        ("attempts?state=perfect", ["query", "state"], "'running'"),
        ("attempts?started_at_gte=yesterday", ["query", "started_at_gte"], "ISO 8601"),
        ("attempts?started_at_gte=1700000000", ["query", "started_at_gte"], "ISO 8601"),
        ("attempts?started_at_gte=0001-01-01T00:00:00%2B14:00", ["query", "started_at_gte"], "years 1 to 9999"),
        (
            "attempts?started_at_gte=2026-01-02T00:00:00Z&started_at_lte=2026-01-01T00:00:00Z",
            ["query"],
            "must not be later than started_at_lte",
        ),
        ("placements?colour=red", ["query", "colour"], "Extra inputs are not permitted"),
        ("placements?state=queued", ["query", "state"], "'waiting' or 'placed'"),
        ("placements?reason=mood", ["query", "reason"], "'least_loaded'"),
        ("placements?worker_id=w%201", ["query", "worker_id"], "match pattern"),
        ("workers?colour=red", ["query", "colour"], "Extra inputs are not permitted"),
        ("workers?state=perfect", ["query", "state", 0], "'online'"),
        ("workers?availability=sick", ["query", "availability"], "'draining'"),
        ("workers?label=zone", ["query", "label"], "key=value"),
        ("workers?label==a", ["query", "label"], "key=value"),
        ("workers?label=a=%00", ["query", "label"], "NUL"),
        ("workers?queue=", ["query", "queue"], "at least 1"),
        ("workers?order_by=pid", ["query", "order_by"], "-name"),
        (f"workers?offset={2**40}", ["query", "offset"], "at most 10000"),
        ("workers/w%201", ["path", "worker_id"], "match pattern"),
        (f"workers/{'w' * 65}", ["path", "worker_id"], "match pattern"),
        ("workers/w1/attempts?worker_id=w2", ["query", "worker_id"], "Extra inputs are not permitted"),
        ("workers/w1/attempts?worker_name=w2", ["query", "worker_name"], "Extra inputs are not permitted"),
        (
            "workers/w1/attempts?started_at_gte=2026-01-02T00:00:00Z&started_at_lte=2026-01-01T00:00:00Z",
            ["query"],
            "must not be later than started_at_lte",
        ),
        ("services?kind=cook", ["query", "kind"], "'scheduler'"),
        ("services?hostname=h", ["query", "hostname"], "Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_with_a_query_is_said(client_of: ClientOf, query: str, where: list[str], complaint: str) -> None:
    answer = client_of().get(f"api/v1/{query}")
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == where
    assert complaint in problem["msg"]


@pytest.mark.usefixtures("fleet")
def test_no_parameter_takes_a_nul_to_the_database(client_of: ClientOf) -> None:
    client = client_of()
    document = client.get("openapi.json").json()
    asked = 0
    for path, methods in document["paths"].items():
        for parameter in methods["get"].get("parameters", ()):
            here = path.replace("{worker_id}", "w1%00" if parameter["in"] == "path" else "w1").removeprefix("/")
            answer = client.get(here if parameter["in"] == "path" else f"{here}?{parameter['name']}=a=%00")
            assert answer.status_code == 422, (path, parameter["name"])
            asked += 1
    assert asked > 20


def test_a_life_that_is_over_is_not_decided_of_but_named_with_the_one_that_is_meant(
    client_of: ClientOf, fleet: Database
) -> None:
    client = client_of()
    with fleet.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.worker_id == "w2").values(state="lost", ended_at=NOON))
    answer = client.patch("api/v1/workers/w2", json=DRAIN)
    assert (answer.status_code, "draining ends with it" in answer.json()["detail"]) == (422, True)
    # But the next life begins with a quarantine.
    assert client.patch("api/v1/workers/w2", json={"availability": "quarantined"}).status_code == 200
    with fleet.engine.begin() as connection:
        upsert_worker(connection, a_worker("w3", name="w2@host-1", pid=101), now=NOON)
    assert client.get("api/v1/workers/w3").json()["availability"] == "quarantined"
    for decision in (DRAIN, {"availability": "quarantined", "note": "more"}):
        answer = client.patch("api/v1/workers/w2", json=decision)
        assert (answer.status_code, answer.json()["detail"]) == (
            422,
            "w2 has ended: change w3 instead, the current instance of its name.",
        )
    assert ids(client.get("api/v1/workers?availability=quarantined")) == ["w3"]
    assert client.patch("api/v1/workers/w2", json={"availability": "available"}).status_code == 200
