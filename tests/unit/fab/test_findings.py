"""Findings on Airflow 2.11: the same rights as on Airflow 3, on a database."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.api import database as api_database
from airflow_worker_insight.store import findings
from airflow_worker_insight.store.clock import database_now
from tests.unit.findings import a_finding, a_share, ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.testing import FlaskClient

    from tests.unit.database import Database
    from tests.unit.fab.conftest import Permissions

    Serve = Callable[..., FlaskClient]

API = "/workerinsight/api/v1/findings"
HEADERS = {"Authorization": "Basic YWRtaW46YWRtaW4=", "Content-Type": "application/json"}
CLOSE = json.dumps({"state": "closed", "note": "replaced"})


@pytest.fixture
def ids(database: Database) -> list[int]:
    """Have a finding in two Dags, one about a task of a secret Dag, and one that has ended."""
    api_database.schema_gate.forget()
    found = [
        a_finding(1, shares=[a_share("secret", "salary"), a_share(failures=0)]),
        a_finding(2, dimension="task", unit="secret/eat", subject="secret.eat", shares=[], worker_ids=[]),
        ended(a_finding(3, "w9")),
    ]
    with database.engine.begin() as connection:
        return [new.finding_id for new in findings.sync(connection, found, now=database_now(connection)).new]


def listed(api: FlaskClient, query: str = "") -> list[dict[str, Any]]:
    answer = api.get(f"{API}{query}")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = json.loads(answer.text)["findings"]
    return found


def test_a_reader_of_one_dag_reads_of_no_other(serve: Serve, permissions: Permissions, ids: list[int]) -> None:
    permissions.jobs, permissions.dag_ids = True, {"etl"}
    api = serve(2)
    first, third = listed(api)
    assert [first["finding_id"], third["finding_id"]] == [ids[0], ids[2]]
    assert "secret" not in str(first)
    assert "salary" not in str(first)
    assert first["text"].endswith("It also counts 1 task that you may not see.")
    assert api.get(f"{API}/{ids[1]}").status_code == 404
    assert api.get(f"{API}?dag_id=secret").status_code == 403
    permissions.dag_ids = {"etl", "secret"}
    assert len(listed(api)) == 3
    assert json.loads(api.get(f"{API}/{ids[1]}").text)["subject"] == "secret.eat"
    assert [one["finding_id"] for one in listed(api, "?state=closed&state=open&subject_kind=worker")] == [
        ids[0],
        ids[2],
    ]


def test_findings_need_permission_for_jobs(serve: Serve, permissions: Permissions, ids: list[int]) -> None:
    permissions.dag_ids = {"etl", "secret"}
    api = serve(2)
    for path in ("", f"/{ids[0]}", "/1000000"):
        assert api.get(f"{API}{path}").status_code == 403
    assert api.patch(f"{API}/{ids[0]}", data=CLOSE, headers=HEADERS).status_code == 403
    permissions.is_authenticated = False
    assert api.get(API).status_code == 401


def test_a_finding_is_dismissed_once_by_who_may(serve: Serve, permissions: Permissions, ids: list[int]) -> None:
    permissions.jobs, permissions.dag_ids = True, {"etl"}
    api = serve(2)
    assert api.patch(f"{API}/{ids[0]}", data=CLOSE, headers=HEADERS).status_code == 403
    permissions.pools = True
    assert api.patch(f"{API}/{ids[1]}", data=CLOSE, headers=HEADERS).status_code == 404
    answer = api.patch(f"{API}/{ids[0]}", data=CLOSE, headers=HEADERS)
    assert answer.status_code == 200
    body = json.loads(answer.text)
    assert (body["state"], body["ended_reason"]) == ("closed", "dismissed")
    assert (body["history"][0]["actor"], body["history"][0]["reason"]) == ("alice", "replaced")
    assert api.patch(f"{API}/{ids[0]}", data=CLOSE, headers=HEADERS).status_code == 422


@pytest.mark.parametrize(
    ("path", "body", "others", "status"),
    [
        ("", CLOSE, {"Sec-Fetch-Site": "cross-site"}, 403),
        ("", CLOSE, {"Content-Type": "text/plain"}, 422),
        ("", '{"state": "open"}', {}, 422),
        ("", "{", {}, 422),
        ("x", CLOSE, {}, 422),
        ("00000", CLOSE, {}, 422),
    ],
)
def test_a_bad_dismissal_is_refused(
    serve: Serve,
    permissions: Permissions,
    ids: list[int],
    *,
    path: str,
    body: str,
    others: dict[str, str],
    status: int,
) -> None:
    permissions.jobs = permissions.pools = True
    answer = serve(2).patch(f"{API}/{path or ids[0]}", data=body, headers={**HEADERS, **others})
    assert answer.status_code == status
