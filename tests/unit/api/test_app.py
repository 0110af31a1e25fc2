"""The app on Airflow 3 with Airflow's own login: who gets in, what they see, and what is around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from sqlalchemy import update

from airflow_worker_insight import compat
from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.domain.attempts import Conditions
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.tables import worker
from tests.unit.database import a_worker, add_run, add_try, at, record_start
from tests.unit.readers import READABLE, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient
    from pytest_mock import MockerFixture

    from tests.unit.database import Database

    ClientOf = Callable[..., TestClient]

PANEL = "panel?dag_id=etl&run_id=run-1&task_id=load"
PAGES = [
    PANEL,
    "panel/fragment?dag_id=etl&run_id=run-1&task_id=load",
    "workers",
    "workers/w1",
    "insight",
    "attempts",
    "waiting",
    "docs",
]
PROGRAMS = [
    "api/v1/attempts",
    "api/v1/placements",
    "api/v1/workers",
    "api/v1/workers/w1",
    "api/v1/workers/w1/attempts",
    "api/v1/findings",
    "api/v1/statistics",
    "api/v1/services",
    "api/v1/health",
    "openapi.json",
]


# --- who gets in ----------------------------------------------------------------------------------------------------


def test_no_route_forgets_to_ask_who_is_reading(client_of: ClientOf) -> None:
    from airflow_worker_insight.app import create_app

    anonymous = client_of(None)
    asked = 0
    for route in create_app().routes:
        if route.name == "static":
            continue
        for method in route.methods - {"HEAD"}:
            answer = anonymous.request(method, route.path.lstrip("/").format(worker_id="w1", finding_id=1))
            assert answer.status_code in (303, 307, 401), (method, route.path)
            asked += 1
    assert asked >= len(PAGES) + len(PROGRAMS)


@pytest.mark.parametrize("path", PROGRAMS)
def test_programs_without_a_login_are_told_so(client_of: ClientOf, path: str) -> None:
    answer = client_of(None).get(path)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})
    assert client_of(None).get(path, headers={"Authorization": "Bearer forged"}).status_code in (401, 403)


def test_what_is_wrong_with_a_request_is_not_told_to_those_without_a_login(client_of: ClientOf) -> None:
    assert client_of(None).get("api/v1/attempts?limit=none").status_code == 401
    assert client_of(None).get("panel").status_code == 307


@pytest.mark.parametrize("root", ["", "/airflow"])
def test_people_without_a_login_are_sent_to_it_and_come_back(client_of: ClientOf, root: str) -> None:
    page = f"{PANEL}&map_index=3&note={quote('ä & ö')}"
    answer = client_of(None, root=root).get(page)
    assert answer.status_code == 307
    login = urlsplit(answer.headers["location"])
    assert login.path == f"{root}/api/v2/auth/login"
    assert parse_qs(login.query)["next"] == [f"{root}/worker-insight/{page}"]


def test_a_forged_cookie_is_sent_to_the_login_too(client_of: ClientOf) -> None:
    anonymous = client_of(None)
    anonymous.cookies.set("_token", "forged")
    assert anonymous.get(PANEL).status_code == 307


def test_the_fragment_does_not_follow_to_the_login(client_of: ClientOf) -> None:
    assert client_of(None).get("panel/fragment?dag_id=etl&run_id=r&task_id=t").status_code == 401


def test_airflow_3_0_gets_a_page_that_brings_the_login(client_of: ClientOf, mocker: MockerFixture) -> None:
    mocker.patch.object(compat, "airflow_version", return_value=(3, 0))
    answer = client_of(None).get(PANEL)
    assert answer.status_code == 401
    assert 'id="wi-sign-in"' in answer.text
    assert "etl" not in answer.text.replace(quote(quote("dag_id=etl", safe=""), safe=""), "")
    # Its login does not encode what it hands on.
    assert f"next={quote(quote('/worker-insight/' + PANEL, safe=''), safe='')}" in answer.text


@pytest.mark.parametrize("path", [*PAGES, *PROGRAMS])
@pytest.mark.parametrize("cookie", [False, True])
@pytest.mark.usefixtures("tries")
def test_a_token_and_a_browsers_cookie_let_in(client_of: ClientOf, path: str, cookie: bool) -> None:
    answer = client_of(cookie=cookie).get(path)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"


def test_static_files_are_for_all_and_nothing_beside_them(client_of: ClientOf) -> None:
    anonymous = client_of(None)
    for name in ("theme.js", "worker-insight.js", "worker-insight.css"):
        answer = anonymous.get(f"static/{name}")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "public, max-age=3600")
    for path in ("static/", "static/%2e%2e/app.py", "static/..%2fapp.py"):
        assert anonymous.get(path).status_code == 404


# --- what they see --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tries")
def test_a_dag_that_the_reader_may_not_see_is_refused(client_of: ClientOf) -> None:
    few = client_of("few")
    answer = few.get(f"api/v1/attempts?dag_id={SECRET}")
    assert (answer.status_code, answer.json()) == (403, {"detail": "Forbidden"})
    for path in ("panel", "panel/fragment"):
        refused = few.get(f"{path}?dag_id={SECRET}&run_id=run-1&task_id=load")
        assert refused.status_code == 403
        assert "Access denied" in refused.text
        assert "w1" not in refused.text
    assert few.get(PANEL).status_code == 200


@pytest.mark.usefixtures("tries")
def test_a_dag_is_not_smuggled_past_the_check(client_of: ClientOf) -> None:
    few = client_of("few")
    for query in (f"dag_id={READABLE}&dag_id={SECRET}", f"dag_id={SECRET}&dag_id={READABLE}"):
        assert few.get(f"panel?{query}&run_id=run-1&task_id=load").status_code == 422
        answer = few.get(f"api/v1/attempts?{query}")
        assert SECRET not in str(answer.json().get("attempts", ""))
    assert few.get("panel?dag_id=~&run_id=run-1&task_id=load").text.count(SECRET) == 0
    assert few.get("api/v1/attempts?dag_id=~").json()["total_entries"] == 0


@pytest.mark.usefixtures("tries")
def test_one_who_may_see_nothing_sees_nothing(client_of: ClientOf) -> None:
    nobody = client_of("nobody")
    assert nobody.get("api/v1/attempts").status_code == 403
    assert nobody.get(PANEL).status_code == 403
    assert nobody.get("workers/w1").status_code == 403
    assert nobody.get("api/v1/health").status_code == 200


@pytest.mark.usefixtures("tries")
def test_a_check_of_airflows_that_became_a_coroutine_still_refuses(client_of: ClientOf, mocker: MockerFixture) -> None:
    """Airflow has made coroutines of some of its checks: one that nobody waits for refuses nobody."""
    from airflow.api_fastapi.core_api import security

    def later(make: Callable[..., Callable[..., None]]) -> Callable[..., Any]:
        def make_later(*args: Any, **others: Any) -> Callable[..., Any]:
            check = make(*args, **others)

            async def ask(*asked: Any) -> None:
                check(*asked)

            return ask

        return make_later

    for name in ("requires_access_dag", "requires_access_view"):
        mocker.patch.object(security, name, later(getattr(security, name)))
    nobody, few = client_of("nobody"), client_of("few")
    assert nobody.get("api/v1/workers").status_code == 403
    assert nobody.get("api/v1/attempts").status_code == 403
    assert few.get(f"api/v1/attempts?dag_id={SECRET}").status_code == 403
    assert few.get(f"api/v1/attempts?dag_id={READABLE}").json()["total_entries"] == 2
    assert client_of().get("api/v1/workers").json()["total_entries"] == 2


@pytest.mark.usefixtures("tries")
def test_workers_are_for_those_who_may_see_jobs(client_of: ClientOf) -> None:
    assert client_of("few").get("workers/w1").status_code == 403
    assert "workers/w1" not in client_of("few").get(PANEL).text
    page = client_of().get("workers/w1")
    assert page.status_code == 200
    assert "2 tries" in page.text
    assert "/worker-insight/workers/w1" in client_of().get(PANEL).text


def test_what_ran_beside_a_try_is_told_to_those_who_may_see_workers(client_of: ClientOf, dags: Database) -> None:
    with dags.engine.begin() as connection:
        key = add_try(connection, add_run(connection, READABLE), "load")
        conditions = Conditions(load=0.5, memory_free=0.25, running_beside=41)
        record_start(
            connection, key, a_worker("w1"), try_started_at=at(0), state="running", now=at(0), conditions=conditions
        )

    def told(who: str) -> tuple[list[object], bool, bool]:
        client = client_of(who)
        (one,) = client.get("api/v1/attempts").json()["attempts"]
        (worker,) = one["workers"]
        pages = [client.get(path).text for path in (PANEL, "attempts?window=any")]
        assert all("25% of memory free" in page for page in pages)
        return [worker["load"], worker["running_beside"]], *("41 other tries running" in page for page in pages)

    assert told("few jobs") == ([0.5, 41], True, True)
    assert told("few") == ([0.5, None], False, False)


@pytest.mark.usefixtures("tries")
def test_what_became_of_a_worker_is_told_to_those_who_may_see_workers(client_of: ClientOf, dags: Database) -> None:
    with dags.engine.begin() as connection:
        connection.execute(update(worker).values(state="lost", ended_at=at(9)))
    told, untold = (client_of(who).get(PANEL).text for who in ("few jobs", "few"))
    assert "Airflow still counts it as running, but w2@host-1 has been lost since" in told
    assert "wi-instance-lost" in told
    assert "lost" not in untold


@pytest.mark.usefixtures("tries")
def test_the_panel_shows_the_tries(client_of: ClientOf) -> None:
    html = client_of(root="/airflow").get(f"{PANEL}&map_index={{MAP_INDEX}}").text
    assert "2 tries on 2 workers; the last one is running on w2@host-1." in html
    assert 'src="/airflow/worker-insight/static/theme.js' in html


def test_a_plus_in_a_run_id_that_airflow_3_1_leaves_as_it_is(client_of: ClientOf, dags: Database) -> None:
    run_id = "scheduled__2026-01-31T08:00:00+00:00"
    with dags.engine.begin() as connection:
        key = TryKey(READABLE, run_id, "load", -1, 1)
        record_start(connection, key, a_worker("w1"), try_started_at=at(0), state="running", now=at(0))
    for given in (run_id, quote(run_id, safe="")):
        assert "w1@host-1" in client_of().get(f"panel?dag_id=etl&run_id={given}&task_id=load").text


# --- what bad requests are told -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("panel", 422, "URL has no dag_id"),
        ("panel?dag_id=d&run_id=r&task_id=t&map_index=x", 422, "map_index in the URL is not a whole number"),
        (f"panel?dag_id={'d' * 251}&run_id=r&task_id=t", 422, "longer than 250"),
        ("panel?dag_id=%00&run_id=r&task_id=t", 422, "NUL"),
        ("panel?dag_id=%ff&run_id=r&task_id=t", 422, "UTF-8"),
        ("panel?dag_id=d&run_id=r&task_id=t", 200, "Task instance not found"),
        (f"panel?dag_id=d&run_id={quote(chr(34) + '/<b>')}&task_id={'🦊' * 250}", 200, "Task instance not found"),
        ("workers/unheard-of", 404, "No worker with this ID"),
        ("workers/%3Cb%3E%00", 404, "No worker with this ID"),
        (f"workers/{'w' * 5000}", 404, "No worker with this ID"),
        ("workers/w1?offset=-1", 422, "offset"),
        ("nowhere", 404, "Not Found"),
    ],
)
def test_a_page_that_cannot_be_shown_says_why(client_of: ClientOf, path: str, status: int, text: str) -> None:
    answer = client_of().get(path)
    assert answer.status_code == status
    assert text in answer.text
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["api/v1/nothing", "static/nothing.js"])
def test_programs_are_told_in_json(client_of: ClientOf, path: str) -> None:
    answer = client_of().get(path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


@pytest.mark.usefixtures("tries")
def test_tables_that_are_missing_are_named(client_of: ClientOf) -> None:
    client = client_of()
    assert client.get(PANEL).status_code == 200
    migrate.downgrade("base")
    try:
        for path in (PANEL, "workers/w1", "api/v1/attempts", "api/v1/workers", "api/v1/services"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "airflow db migrate" in answer.text
        health = client.get("api/v1/health")
        assert (health.status_code, health.json()["status"], health.json()["tables"]) == (200, "unhealthy", "missing")
        assert health.json()["engines"] == []
    finally:
        web_database.schema_gate.forget()


# --- around it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, *PROGRAMS, "static/theme.js", "nowhere", "panel"])
@pytest.mark.parametrize("username", ["admin", None])
@pytest.mark.usefixtures("tries")
def test_every_answer_carries_the_security_headers(client_of: ClientOf, path: str, username: str | None) -> None:
    headers = client_of(username).get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy


def test_the_api_describes_itself_without_another_host(client_of: ClientOf) -> None:
    client = client_of(root="/airflow")
    document: dict[str, Any] = client.get("openapi.json").json()
    assert set(document["paths"]) == {
        "/api/v1/attempts",
        "/api/v1/placements",
        "/api/v1/workers",
        "/api/v1/workers/{worker_id}",
        "/api/v1/workers/{worker_id}/attempts",
        "/api/v1/findings",
        "/api/v1/findings/{finding_id}",
        "/api/v1/statistics",
        "/api/v1/services",
        "/api/v1/health",
    }
    assert document["servers"] == [{"url": "/airflow/worker-insight"}]
    named = {one["name"] for one in document["paths"]["/api/v1/attempts"]["get"]["parameters"]}
    assert {"dag_id", "started_at_gte", "limit", "offset"} <= named
    named |= {"order_by", "availability", "note"}
    page = client.get("docs").text
    for name in named:
        assert f">{name}</code>" in page
    assert "/airflow/worker-insight/api/v1/attempts" in page
    assert "integer, 1 to 1000, 50 by default" in page
    assert "http" not in page.replace("https://airflow.apache.org", "")
