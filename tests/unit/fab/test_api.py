"""The REST API that Flask serves on Airflow 2.11: what each user gets. Nothing is read from a database."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from flask import session

from airflow_worker_insight.api import errors, queries, responses, service
from airflow_worker_insight.api.database import SchemaNotReadyError
from airflow_worker_insight.store.migrate import Schema
from tests.unit.database import at
from tests.unit.ui.attempts import a_try, on

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from flask.testing import FlaskClient
    from pytest_mock import MockerFixture
    from werkzeug.test import TestResponse

    from tests.unit.fab.conftest import Permissions

    Serve = Callable[..., FlaskClient]

ATTEMPTS = "/workerinsight/api/v1/attempts"


def detail(answer: TestResponse) -> Any:
    return json.loads(answer.text)["detail"]


def test_airflow_3_serves_no_rest_api_with_flask(serve: Serve, permissions: Permissions) -> None:
    permissions.dag_ids = {"etl"}
    assert serve(3).get(ATTEMPTS).status_code == 404


def test_attempts_are_those_of_the_readable_dags(serve: Serve, permissions: Permissions, mocker: MockerFixture) -> None:
    asked: list[tuple[queries.AttemptQuery, Collection[str]]] = []

    def list_attempts(query: queries.AttemptQuery, *, dag_ids: Collection[str], **_: Any) -> dict[str, Any]:
        asked.append((query, dag_ids))
        return {"attempts": [a_try(1, 0, 10, on("w1", 0))], "total_entries": 1, "total_is_exact": True}

    mocker.patch.object(service, "list_attempts", list_attempts)
    permissions.dag_ids = {"etl", "sales"}
    answer = serve(2).get(f"{ATTEMPTS}?limit=1")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    body = json.loads(answer.text)
    assert body["total_entries"] == 1
    assert body["attempts"][0]["started_at"] == "2026-03-01T12:00:00Z"
    assert body["attempts"][0]["workers"][0]["worker_id"] == "w1"
    serve(2).get(f"{ATTEMPTS}?dag_id=etl")
    assert [(query.limit, dag_ids) for query, dag_ids in asked] == [(1, {"etl", "sales"}), (50, {"etl"})]


def test_placements_are_those_of_the_readable_dags(
    serve: Serve, permissions: Permissions, mocker: MockerFixture
) -> None:
    asked: list[tuple[str | None, Collection[str], bool]] = []

    def list_placements(
        query: queries.PlacementQuery, *, dag_ids: Collection[str], may_see_workers: bool
    ) -> dict[str, Any]:
        asked.append((query.state, dag_ids, may_see_workers))
        return {"placements": [], "total_entries": 0, "total_is_exact": True}

    mocker.patch.object(service, "list_placements", list_placements)
    api, path = serve(2), "/workerinsight/api/v1/placements"
    assert api.get(path).status_code == 403
    permissions.dag_ids = {"etl", "sales"}
    assert json.loads(api.get(path).text) == {"placements": [], "total_entries": 0, "total_is_exact": True}
    permissions.jobs = True
    api.get(f"{path}?dag_id=etl&state=waiting")
    assert asked == [(None, {"etl", "sales"}, False), ("waiting", {"etl"}, True)]
    assert api.get(f"{path}?dag_id=secret").status_code == 403
    assert api.get(f"{path}?state=queued").status_code == 422


def test_statistics_of_workers_and_of_tasks_need_different_rights(
    serve: Serve, permissions: Permissions, mocker: MockerFixture
) -> None:
    asked: list[tuple[str, Collection[str]]] = []

    def list_statistics(query: queries.StatisticsQuery, *, dag_ids: Collection[str]) -> dict[str, Any]:
        asked.append((query.group_by, dag_ids))
        return {"statistics": [], "total_entries": 0, "total_is_exact": True, "from": at(0), "to": at(60)}

    mocker.patch.object(service, "list_statistics", list_statistics)
    api, path = serve(2), "/workerinsight/api/v1/statistics"
    assert [api.get(f"{path}?group_by={group}").status_code for group in ("worker", "task")] == [403, 403]
    permissions.dag_ids = {"etl", "sales"}
    assert [api.get(f"{path}?group_by={group}").status_code for group in ("worker", "task")] == [403, 200]
    permissions.jobs = True
    body = json.loads(api.get(f"{path}?group_by=label:zone").text)
    assert (body["statistics"], body["from"], body["to"]) == ([], "2026-03-01T12:00:00Z", "2026-03-01T12:01:00Z")
    api.get(f"{path}?group_by=worker&dag_id=etl")
    assert asked == [("task", {"etl", "sales"}), ("label:zone", set()), ("worker", {"etl"})]
    wrong = api.get(f"{path}?group_by=colour&from=yesterday")
    assert wrong.status_code == 422
    assert {problem["loc"][1] for problem in detail(wrong)} == {"group_by", "from"}


def test_errors_are_json(serve: Serve, permissions: Permissions) -> None:
    api = serve(2)
    assert api.get(ATTEMPTS).status_code == 403
    assert detail(api.get(f"{ATTEMPTS}?dag_id=etl")) == "Forbidden"
    wrong = api.get(f"{ATTEMPTS}?limit=0&nope=1&state=sleeping")
    assert wrong.status_code == 422
    assert {problem["loc"][1] for problem in detail(wrong)} == {"limit", "nope", "state"}
    assert all(problem["loc"][0] == "query" for problem in detail(wrong))
    # What Airflow's authentication lets pass as the public role is still nobody, unless that role has permissions.
    for permissions.is_authenticated, permissions.is_logged_in in ((False, True), (True, False)):
        for path in (ATTEMPTS, f"{ATTEMPTS}?limit=0", "/workerinsight/api/v1/health"):
            answer = api.get(path)
            assert (answer.status_code, detail(answer)) == (401, "Not authenticated")
    permissions.dag_ids = {"etl"}
    assert api.get(f"{ATTEMPTS}?limit=0").status_code == 422


def test_missing_tables_are_answered_with_503(serve: Serve, permissions: Permissions, mocker: MockerFixture) -> None:
    def not_ready(*_: Any, **__: Any) -> dict[str, Any]:
        raise SchemaNotReadyError(Schema.OLD)

    permissions.dag_ids = {"etl"}
    mocker.patch.object(service, "list_attempts", not_ready)
    answer = serve(2).get(ATTEMPTS)
    assert answer.status_code == 503
    assert "out of date" in detail(answer)


def test_login_of_a_program_leaves_no_session_behind(serve: Serve, permissions: Permissions) -> None:
    def log_in() -> None:
        session["_user_id"] = "1"

    permissions.dag_ids = {"etl"}
    api = serve(2, log_in=log_in)
    assert "Set-Cookie" not in api.get("/workerinsight/api/v1/attempts?limit=0").headers
    with api.session_transaction() as kept:
        kept["_user_id"] = "7"
    api.get("/workerinsight/api/v1/attempts?limit=0")
    with api.session_transaction() as kept:
        assert "_user_id" in kept


API = "/workerinsight/api/v1"
A_WORKER: dict[str, Any] = {
    **dict.fromkeys(responses.WorkerResponse.model_fields),
    "worker_id": "w1",
    "name": "w1",
    "kind": "celery",
    "hostname": "host-1",
    "availability": "draining",
    "registered_at": at(0),
    "last_seen_at": at(0),
    "labels": {},
    "resources": {},
    "versions": {},
}


@pytest.fixture
def recorded(mocker: MockerFixture) -> list[tuple[Any, ...]]:
    """Have one worker, w1; return the calls of the REST functions."""
    asked: list[tuple[Any, ...]] = []

    def known(worker_id: str) -> None:
        if worker_id != "w1":
            raise errors.WorkerNotFoundError

    def get_worker(worker_id: str) -> dict[str, Any]:
        known(worker_id)
        return {**A_WORKER, "changes": []}

    def list_workers(query: queries.WorkerQuery) -> dict[str, Any]:
        asked.append((query.label, query.order_by))
        return {"workers": [A_WORKER], "total_entries": 1, "total_is_exact": True}

    def list_worker_attempts(worker_id: str, query: Any, *, dag_ids: Collection[str]) -> dict[str, Any]:
        known(worker_id)
        asked.append((worker_id, query.state, dag_ids))
        return {"attempts": [], "total_entries": 0, "total_is_exact": True}

    def list_services(query: queries.ServiceQuery) -> dict[str, Any]:
        asked.append((query.kind,))
        return {"services": [], "total_entries": 0, "total_is_exact": True}

    def change_availability(worker_id: str, availability: str, *, note: str | None, changed_by: str) -> dict[str, Any]:
        known(worker_id)
        if note == "host":
            raise errors.InvalidRequestError("a whole host")
        asked.append((worker_id, availability, note, changed_by))
        return get_worker(worker_id)

    for function in (get_worker, list_workers, list_worker_attempts, list_services, change_availability):
        mocker.patch.object(service, function.__name__, function)
    return asked


def test_workers_and_services_are_listed(
    serve: Serve, permissions: Permissions, recorded: list[tuple[Any, ...]]
) -> None:
    permissions.jobs, permissions.dag_ids = True, {"etl"}
    api = serve(2)
    listed = api.get(f"{API}/workers?label=zone%3Da&order_by=-name")
    assert listed.status_code == 200
    assert json.loads(listed.text)["workers"][0]["registered_at"] == "2026-03-01T12:00:00Z"
    assert json.loads(api.get(f"{API}/workers/w1").text)["changes"] == []
    assert api.get(f"{API}/workers/w1/attempts?state=failed").status_code == 200
    assert api.get(f"{API}/services?kind=scheduler").status_code == 200
    assert recorded == [(("zone", "a"), "-name"), ("w1", "failed", {"etl"}), ("scheduler",)]
    for path in ("workers/w2", "workers/w2/attempts"):
        assert api.get(f"{API}/{path}").status_code == 404
    for path in ("workers/w%201", "workers/w%201/attempts", "workers?colour=red", "services?kind=cook"):
        assert api.get(f"{API}/{path}").status_code == 422
    assert "at most 64 characters" in detail(api.get(f"{API}/workers/{'w' * 65}"))


def test_workers_and_services_need_permission_for_jobs(
    serve: Serve, permissions: Permissions, recorded: list[tuple[Any, ...]]
) -> None:
    permissions.dag_ids = {"etl"}
    api = serve(2)
    for path in ("workers", "workers/w1", "workers/w1/attempts", "services"):
        answer = api.get(f"{API}/{path}")
        assert (answer.status_code, detail(answer)) == (403, "Forbidden")
    permissions.jobs, permissions.dag_ids = True, set()
    assert api.get(f"{API}/workers/w1/attempts").status_code == 403
    assert api.get(f"{API}/workers/w1/attempts?dag_id=etl").status_code == 403
    permissions.is_authenticated = False
    for path in ("workers", "workers/w1", "workers/w%201", "workers/w1/attempts", "services"):
        assert api.get(f"{API}/{path}").status_code == 401
    assert not recorded


BASIC = {"Authorization": "Basic YWRtaW46YWRtaW4="}


@pytest.mark.parametrize(
    ("headers", "cookie", "status"),
    [
        (BASIC, None, 200),
        ({"Authorization": "Bearer token"}, None, 200),
        ({}, None, 403),
        # Browsers send the credentials of basic authentication by themselves once they know them.
        ({**BASIC, "Sec-Fetch-Site": "cross-site"}, None, 403),
        ({**BASIC, "Origin": "https://evil.example"}, None, 403),
        ({}, "session", 403),
        (BASIC, "session", 403),
        ({"Authorization": "Bearer token"}, "remember_token", 403),
        ({"Sec-Fetch-Site": "cross-site"}, "session", 403),
        ({"Sec-Fetch-Site": "same-origin"}, "session", 200),
        ({"Origin": "http://localhost"}, "session", 200),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "text/plain"}, "session", 403),
    ],
)
def test_change_is_refused_if_another_site_may_have_sent_it(
    serve: Serve,
    permissions: Permissions,
    recorded: list[tuple[Any, ...]],
    headers: dict[str, str],
    cookie: str | None,
    status: int,
) -> None:
    permissions.jobs = permissions.pools = True
    api = serve(2)
    if cookie is not None:
        api.set_cookie(cookie, "given")
    body = json.dumps({"availability": "draining", "note": "disk"})
    answer = api.patch(f"{API}/workers/w1", data=body, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code == status
    assert recorded == ([("w1", "draining", "disk", "alice")] if status == 200 else [])


def test_invalid_change_is_refused_with_the_reason(
    serve: Serve, permissions: Permissions, recorded: list[tuple[Any, ...]]
) -> None:
    permissions.jobs = True
    api = serve(2)

    def patch(body: str, worker_id: str = "w1", kind: str = "application/json") -> TestResponse:
        headers = {**BASIC, "Content-Type": kind}
        return api.patch(f"{API}/workers/{worker_id}", data=body, headers=headers)

    decision = json.dumps({"availability": "draining"})
    assert patch(decision).status_code == 403
    assert patch("{").status_code == 403
    permissions.pools = True
    assert patch(decision, "w2").status_code == 404
    assert "must be JSON" in detail(patch(decision, kind="text/plain"))
    assert "longer than" in detail(patch(decision + " " * 20_000))
    assert detail(patch(json.dumps({"availability": "draining", "note": "host"}))) == "a whole host"
    (problem,) = detail(patch(json.dumps({"availability": "gone"})))
    assert problem["loc"] == ["body", "availability"]
    assert patch("{").status_code == 422
    assert not recorded


def test_rest_api_needs_no_form_token(serve: Serve, permissions: Permissions, recorded: list[tuple[Any, ...]]) -> None:
    api = serve(2, csrf=True)
    permissions.jobs = permissions.pools = True
    headers = {**BASIC, "Content-Type": "application/json"}
    body = json.dumps({"availability": "draining"})
    assert api.patch(f"{API}/workers/w1", data=body, headers=headers).status_code == 200
    assert api.post("/workerinsight/workers/w1/availability", headers=headers).status_code == 400
    assert len(recorded) == 1
