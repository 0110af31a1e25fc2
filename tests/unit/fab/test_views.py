"""The Flask views: who gets which answer. No Airflow web server runs, and nothing is read from a database."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, request, session
from flask_login import AnonymousUserMixin
from flask_wtf.csrf import CSRFProtect
from jinja2 import DictLoader

from airflow_worker_insight import compat
from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.api import queries, responses, service
from airflow_worker_insight.api.database import SchemaNotReadyError
from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.compat import fab as airflow_fab
from airflow_worker_insight.domain.attempts import AttemptPage
from airflow_worker_insight.fab import registration
from airflow_worker_insight.store import session as bounds
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.session import CircuitBreaker
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt, placement, worker
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import (
    PanelParams,
    WaitingParams,
    WorkerParams,
    WorkersParams,
)
from airflow_worker_insight.ui.views.attempts import build_attempts_page
from airflow_worker_insight.ui.views.panel import Panel, build_panel
from airflow_worker_insight.ui.views.waiting import Executor, WaitingPage, build_waiting_page
from airflow_worker_insight.ui.views.worker import build_worker_page
from airflow_worker_insight.ui.views.workers import build_workers_page
from tests.unit.database import Database, at, locked
from tests.unit.ui.attempts import a_try, on
from tests.unit.ui.workers import NOW, a_life, a_listing, a_worker_row

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

PANEL = "/workerinsight/panel?dag_id=etl&run_id=2026-03-01T12:00:00+00:00&task_id=load&map_index=-1"

AIRFLOW_PAGE = """
<title>{% block page_title %}{{ title }} - Airflow{% endblock %}</title>
{% block head_css %}<link href="airflow.css">{% endblock %}
<nav>Airflow</nav>
{% block content %}{% endblock %}
{% block tail_js %}<script src="main.js"></script>{% endblock %}
"""


@dataclass
class Rights:
    """What Airflow says of the one who asks, and what it was asked."""

    dag_ids: set[str] = field(default_factory=set)
    jobs: bool = False
    pools: bool = False
    logged_in: bool = True
    known_to_api: bool = True
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def rights(monkeypatch: pytest.MonkeyPatch) -> Rights:
    given = Rights()

    def may_see_task_instances(_: Any, dag_id: str | None) -> bool:
        given.asked.append(dag_id)
        return bool(given.dag_ids) if dag_id is None else dag_id in given.dag_ids

    monkeypatch.setattr(airflow_fab, "flask_user", object)
    monkeypatch.setattr(airflow_fab, "flask_api_user", lambda: object() if given.known_to_api else None)
    monkeypatch.setattr(airflow_fab, "flask_is_logged_in", lambda _: given.logged_in)
    monkeypatch.setattr(airflow_fab, "flask_may_see_task_instances", may_see_task_instances)
    monkeypatch.setattr(airflow_fab, "flask_may_see_jobs", lambda _: given.jobs)
    monkeypatch.setattr(airflow_fab, "flask_may_edit_pools", lambda _: given.pools)
    monkeypatch.setattr(airflow_fab, "flask_csrf_token", lambda: "of-airflow")
    monkeypatch.setattr(airflow_auth, "user_name", lambda _: "alice")
    monkeypatch.setattr(airflow_fab, "flask_readable_dag_ids", lambda _: given.dag_ids)
    monkeypatch.setattr(airflow_fab, "flask_login_url", lambda root, next_url: f"{root}/login?next={next_url}")
    return given


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[PanelParams]:
    """Fill every panel with one try, and note whose panels were asked for."""
    addresses: list[PanelParams] = []

    def panel(params: PanelParams, **_: Any) -> Panel:
        addresses.append(params)
        return build_panel(params, [a_try(1, 0, 10, on("w1"))], now=at(1000))

    monkeypatch.setattr(page_service, "panel", panel)
    return addresses


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FlaskClient]:
    """Return a function that serves the views as an Airflow of this major version does.

    With ``csrf`` it asks whoever changes something for a form's token, as Airflow 2 does.
    """

    def serve(airflow: int, *, csrf: bool = False) -> FlaskClient:
        monkeypatch.setattr(compat, "is_airflow_3", lambda: airflow == 3)
        app: Any = Flask("airflow")
        app.secret_key = "secret"
        if csrf:
            CSRFProtect(app)
        app.jinja_loader = DictLoader({"airflow/main.html": AIRFLOW_PAGE})
        appbuilder = SimpleNamespace(base_template="airflow/main.html", app=app)
        for one in registration.appbuilder_views():
            app.register_blueprint(one["view"].create_blueprint(appbuilder))
        app.register_blueprint(registration.blueprint())
        mounted_below = "/deep/pluginsv2" if airflow == 3 else "/deep"
        under = app.wsgi_app
        app.wsgi_app = lambda environ, start: under({**environ, "SCRIPT_NAME": mounted_below}, start)
        served: FlaskClient = app.test_client()
        return served

    return serve


both = pytest.mark.parametrize("airflow", [2, 3])

# --- pages ----------------------------------------------------------------------------------------------------------


def test_the_panel_stands_inside_the_page_of_airflow_2(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams]
) -> None:
    rights.dag_ids = {"etl"}
    answer = client(2).get(PANEL)
    assert answer.status_code == 200
    assert "<title>load · Worker - Airflow</title>" in answer.text
    assert "<nav>Airflow</nav>" in answer.text
    assert answer.text.count("<html") == 0
    assert 'id="wi-panel"' in answer.text
    assert 'href="/deep/workerinsight/static/worker-insight.css' in answer.text
    assert "/deep/dags/etl/grid?dag_run_id=2026-03-01T12%3A00%3A00%2B00%3A00&amp;task_id=load" in answer.text
    # Its own scripts are in its markup.
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert shown == [PanelParams("etl", "2026-03-01T12:00:00+00:00", "load")]


def test_the_panel_is_a_page_of_its_own_on_airflow_3(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams]
) -> None:
    rights.dag_ids = {"etl"}
    answer = client(3).get(PANEL)
    assert answer.status_code == 200
    assert "<title>load · Worker</title>" in answer.text
    assert 'href="/deep/pluginsv2/workerinsight/static/worker-insight.css' in answer.text
    assert 'href="/deep/dags/etl/runs/2026-03-01T12%3A00%3A00%2B00%3A00/tasks/load"' in answer.text
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert len(shown) == 1


@both
def test_nothing_personal_is_kept_by_caches(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams], airflow: int
) -> None:
    rights.dag_ids = {"etl"}
    pages = client(airflow)
    for answer in (pages.get(PANEL), pages.get(PANEL.replace("panel", "panel/fragment"))):
        assert answer.headers["cache-control"] == "no-store"
    static = pages.get("/workerinsight/static/worker-insight.css")
    assert (static.status_code, static.headers["cache-control"]) == (200, "private, max-age=3600")
    assert len(shown) == 2


@both
def test_the_fragment_is_the_panel_alone(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams], airflow: int
) -> None:
    rights.dag_ids = {"etl"}
    answer = client(airflow).get(PANEL.replace("panel", "panel/fragment"))
    assert answer.status_code == 200
    assert answer.text.strip().startswith('<div class="wi" id="wi-panel"')
    assert shown


@both
def test_a_reader_without_the_right_is_refused_before_anything_is_read(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams], airflow: int
) -> None:
    rights.dag_ids = {"other"}
    for path in (PANEL, PANEL.replace("panel", "panel/fragment")):
        answer = client(airflow).get(path)
        assert answer.status_code == 403
        assert "Access denied" in answer.text
        assert "etl" not in answer.text
    assert rights.asked == ["etl", "etl"]
    assert not shown


@both
def test_what_is_checked_is_what_is_shown(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams], airflow: int
) -> None:
    rights.dag_ids = {"a b"}
    # A plus is a plus here, and a space in a query string that Flask reads.
    assert client(airflow).get("/workerinsight/panel?dag_id=a+b&run_id=r&task_id=t").status_code == 403
    assert client(airflow).get("/workerinsight/panel?dag_id=other&dag_id=a%20b&run_id=r&task_id=t").status_code == 422
    assert not shown


@both
def test_one_who_is_not_logged_in_is_sent_to_the_login_and_back(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams], airflow: int
) -> None:
    rights.logged_in = False
    answer = client(airflow).get(PANEL)
    below = "/deep" if airflow == 2 else "/deep/pluginsv2"
    assert (answer.status_code, answer.location) == (302, f"/deep/login?next={below}{PANEL}")
    # The fragment is asked for by a script, which a redirect to another page would only confuse.
    fragment = client(airflow).get(PANEL.replace("panel", "panel/fragment"))
    assert (fragment.status_code, fragment.text) == (401, "")
    assert client(airflow).get("/workerinsight/workers/w1").status_code == 302
    assert not shown


@both
def test_an_address_that_names_nothing_is_answered_with_a_page(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams], airflow: int
) -> None:
    answer = client(airflow).get("/workerinsight/panel?dag_id={DAG_ID}&run_id=r&task_id=t")
    assert answer.status_code == 422
    assert "The URL has no dag_id." in answer.text
    assert not rights.asked
    assert not shown


@both
def test_missing_tables_are_answered_with_what_to_do(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch, airflow: int
) -> None:
    def not_ready(*_: Any, **__: Any) -> Panel:
        raise SchemaNotReadyError(Schema.MISSING)

    rights.dag_ids = {"etl"}
    monkeypatch.setattr(page_service, "panel", not_ready)
    answer = client(airflow).get(PANEL)
    assert answer.status_code == 503
    assert "airflow-worker-insight db migrate" in answer.text


@both
def test_markup_in_ids_is_text(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelParams], airflow: int
) -> None:
    rights.dag_ids = {"<script>alert(1)</script>"}
    path = "/workerinsight/panel?dag_id=%3Cscript%3Ealert(1)%3C/script%3E&run_id=%F0%9F%9A%80%22%27&task_id={{7*7}}"
    answer = client(airflow).get(path)
    assert answer.status_code == 200
    assert "<script>alert(1)" not in answer.text
    assert "{{7*7}} · Worker" in answer.text
    assert shown == [PanelParams("<script>alert(1)</script>", "🚀\"'", "{{7*7}}")]


@both
def test_a_workers_page_lists_only_what_the_reader_may_see(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch, airflow: int
) -> None:
    asked: list[tuple[str, WorkerParams, Collection[str] | None, bool]] = []

    def worker_page(worker_id: str, params: WorkerParams, *, dag_ids: Collection[str] | None, may_decide: bool) -> None:
        asked.append((worker_id, params, dag_ids, may_decide))
        raise service.WorkerNotFoundError

    monkeypatch.setattr(page_service, "worker_page", worker_page)
    pages = client(airflow)
    assert pages.get("/workerinsight/workers/w1").status_code == 403
    assert not asked
    rights.jobs = True
    answer = pages.get("/workerinsight/workers/celery-1@a:b?offset=25&hours=6")
    assert answer.status_code == 404
    assert "No worker with this ID was recorded." in answer.text
    rights.dag_ids, rights.pools = {"etl"}, True
    pages.get("/workerinsight/workers/w1")
    assert asked == [
        ("celery-1@a:b", WorkerParams(hours=6, offset=25), None, False),
        ("w1", WorkerParams(), {"etl"}, True),
    ]


@pytest.fixture
def pages_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the list of workers, the page of one, and the list of attempts."""

    def workers_page(params: WorkersParams) -> Any:
        return build_workers_page(params, a_listing(a_worker_row()), now=NOW)

    def worker_page(_: str, params: WorkerParams, *, dag_ids: Collection[str] | None, may_decide: bool) -> Any:
        return build_worker_page(a_life(), params, may_read=bool(dag_ids), may_decide=may_decide, now=NOW)

    def attempts_page(params: Any, *, dag_ids: Collection[str], **_: Any) -> Any:
        tries = [a_try(1, 0, 10, on("w1"))] if "etl" in dag_ids else []
        found = AttemptPage(tries, len(tries), total_is_exact=True)
        return build_attempts_page(params, found, dag_ids=dag_ids, states=["success"], now=NOW)

    def waiting_page(params: WaitingParams, *, dag_ids: Collection[str], may_see_workers: bool) -> WaitingPage:
        executor = Executor(places=True)
        return build_waiting_page(params, ([], 0), executor, dag_ids=dag_ids, may_see_workers=may_see_workers, now=NOW)

    monkeypatch.setattr(page_service, "workers_page", workers_page)
    monkeypatch.setattr(page_service, "worker_page", worker_page)
    monkeypatch.setattr(page_service, "attempts_page", attempts_page)
    monkeypatch.setattr(page_service, "waiting_page", waiting_page)


@both
@pytest.mark.usefixtures("pages_shown")
def test_each_page_and_its_fragment(client: Callable[[int], FlaskClient], rights: Rights, airflow: int) -> None:
    rights.dag_ids, rights.jobs = {"etl"}, True
    below = "/deep" if airflow == 2 else "/deep/pluginsv2"
    for page, identity in (
        ("workers", "wi-workers"),
        ("workers/w1", "wi-worker"),
        ("attempts", "wi-attempts"),
        ("waiting", "wi-waiting"),
    ):
        answer = client(airflow).get(f"/workerinsight/{page}")
        assert answer.status_code == 200
        assert f'id="{identity}"' in answer.text
        assert f'href="{below}/workerinsight/workers"' in answer.text
        assert ("<nav>Airflow</nav>" in answer.text) == (airflow == 2)
        fragment = client(airflow).get(f"/workerinsight/{page}/fragment")
        assert fragment.text.strip().startswith(f'<div class="wi" id="{identity}"')


@both
@pytest.mark.usefixtures("pages_shown")
def test_lists_are_for_those_who_may_see_them(
    client: Callable[[int], FlaskClient], rights: Rights, airflow: int
) -> None:
    pages = client(airflow)
    for path in ("workers", "workers/fragment", "workers/w1/fragment", "attempts", "attempts/fragment", "waiting"):
        assert pages.get(f"/workerinsight/{path}").status_code == 403
    rights.logged_in = False
    assert pages.get("/workerinsight/workers").status_code == 302
    assert pages.get("/workerinsight/attempts/fragment").status_code == 401
    # The login comes before what is wrong with the address.
    for path in ("workers?colour=red", "workers/w1?dag_id=etl", "attempts?colour=red"):
        assert pages.get(f"/workerinsight/{path}").status_code == 302


@both
def test_a_decision_is_kept_for_one_who_may_edit_pools(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch, airflow: int
) -> None:
    decided: list[tuple[str, str, str | None, str]] = []

    def change_availability(worker_id: str, availability: str, *, note: str | None, changed_by: str) -> None:
        decided.append((worker_id, availability, note, changed_by))
        if worker_id != "w1":
            raise service.WorkerNotFoundError

    monkeypatch.setattr(service, "change_availability", change_availability)
    pages = client(airflow)

    def post(worker_id: str = "w1", site: str = "same-origin") -> TestResponse:
        return pages.post(
            f"/workerinsight/workers/{worker_id}/availability",
            data={"availability": "draining", "note": "Disk fails"},
            headers={"Sec-Fetch-Site": site},
        )

    rights.jobs = True
    assert post().status_code == 403
    rights.jobs, rights.pools = False, True
    assert post().status_code == 403
    rights.jobs = True
    assert post(site="cross-site").status_code == 403
    assert not decided
    below = "/deep" if airflow == 2 else "/deep/pluginsv2"
    answer = post()
    assert (answer.status_code, answer.location) == (303, f"{below}/workerinsight/workers/w1")
    assert post("w2").status_code == 404
    assert decided[0] == ("w1", "draining", "Disk fails", "alice")
    rights.logged_in = rights.pools = False
    assert post().location == f"/deep/login?next={below}/workerinsight/workers/w1"


@both
@pytest.mark.usefixtures("pages_shown")
def test_the_form_carries_what_airflows_flask_app_asks_for(
    client: Callable[[int], FlaskClient], rights: Rights, airflow: int
) -> None:
    rights.jobs = True
    assert "csrf_token" not in client(airflow).get("/workerinsight/workers/w1").text
    rights.pools = True
    assert 'name="csrf_token" value="of-airflow"' in client(airflow).get("/workerinsight/workers/w1").text


# --- REST -----------------------------------------------------------------------------------------------------------

ATTEMPTS = "/workerinsight/api/v1/attempts"


def detail(answer: TestResponse) -> Any:
    return json.loads(answer.text)["detail"]


def test_airflow_3_has_the_rest_api_elsewhere(client: Callable[[int], FlaskClient], rights: Rights) -> None:
    rights.dag_ids = {"etl"}
    assert client(3).get(ATTEMPTS).status_code == 404


def test_attempts_are_those_of_the_readable_dags(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[queries.AttemptQuery, Collection[str]]] = []

    def list_attempts(query: queries.AttemptQuery, *, dag_ids: Collection[str], **_: Any) -> dict[str, Any]:
        asked.append((query, dag_ids))
        return {"attempts": [a_try(1, 0, 10, on("w1", 0))], "total_entries": 1, "total_is_exact": True}

    monkeypatch.setattr(service, "list_attempts", list_attempts)
    rights.dag_ids = {"etl", "sales"}
    answer = client(2).get(f"{ATTEMPTS}?limit=1")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    body = json.loads(answer.text)
    assert body["total_entries"] == 1
    assert body["attempts"][0]["started_at"] == "2026-03-01T12:00:00Z"
    assert body["attempts"][0]["workers"][0]["worker_id"] == "w1"
    client(2).get(f"{ATTEMPTS}?dag_id=etl")
    assert [(query.limit, dag_ids) for query, dag_ids in asked] == [(1, {"etl", "sales"}), (50, {"etl"})]


def test_placements_are_those_of_the_readable_dags(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str | None, Collection[str], bool]] = []

    def list_placements(
        query: queries.PlacementQuery, *, dag_ids: Collection[str], may_see_workers: bool
    ) -> dict[str, Any]:
        asked.append((query.filters().state, dag_ids, may_see_workers))
        return {"placements": [], "total_entries": 0, "total_is_exact": True}

    monkeypatch.setattr(service, "list_placements", list_placements)
    api, path = client(2), "/workerinsight/api/v1/placements"
    assert api.get(path).status_code == 403
    rights.dag_ids = {"etl", "sales"}
    assert json.loads(api.get(path).text) == {"placements": [], "total_entries": 0, "total_is_exact": True}
    rights.jobs = True
    api.get(f"{path}?dag_id=etl&state=waiting")
    assert asked == [(None, {"etl", "sales"}, False), ("waiting", {"etl"}, True)]
    assert api.get(f"{path}?dag_id=secret").status_code == 403
    assert api.get(f"{path}?state=queued").status_code == 422


def test_the_rest_api_says_no_in_json(client: Callable[[int], FlaskClient], rights: Rights) -> None:
    api = client(2)
    assert api.get(ATTEMPTS).status_code == 403
    assert detail(api.get(f"{ATTEMPTS}?dag_id=etl")) == "Forbidden"
    wrong = api.get(f"{ATTEMPTS}?limit=0&nope=1&state=sleeping")
    assert wrong.status_code == 422
    assert {problem["loc"][1] for problem in detail(wrong)} == {"limit", "nope", "state"}
    assert all(problem["loc"][0] == "query" for problem in detail(wrong))
    # What Airflow's authentication lets pass as the public role is still nobody, unless that role has rights.
    for rights.known_to_api, rights.logged_in in ((False, True), (True, False)):
        for path in (ATTEMPTS, f"{ATTEMPTS}?limit=0", "/workerinsight/api/v1/health"):
            answer = api.get(path)
            assert (answer.status_code, detail(answer)) == (401, "Not authenticated")
    rights.dag_ids = {"etl"}
    assert api.get(f"{ATTEMPTS}?limit=0").status_code == 422


def test_missing_tables_are_503_for_a_program(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_ready(*_: Any, **__: Any) -> dict[str, Any]:
        raise SchemaNotReadyError(Schema.OLD)

    rights.dag_ids = {"etl"}
    monkeypatch.setattr(service, "list_attempts", not_ready)
    answer = client(2).get(ATTEMPTS)
    assert answer.status_code == 503
    assert "older version" in detail(answer)


def test_a_programs_login_leaves_no_session_behind(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_in() -> object:
        session["_user_id"] = "1"
        return object()

    rights.dag_ids = {"etl"}
    monkeypatch.setattr(airflow_fab, "flask_api_user", log_in)
    monkeypatch.setattr(service, "health", dict)
    api = client(2)
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
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Have one worker, w1; note what was asked for and decided."""
    asked: list[tuple[Any, ...]] = []

    def known(worker_id: str) -> None:
        if worker_id != "w1":
            raise service.WorkerNotFoundError

    def get_worker(worker_id: str) -> dict[str, Any]:
        known(worker_id)
        return {**A_WORKER, "changes": []}

    def list_workers(query: queries.WorkerQuery) -> dict[str, Any]:
        asked.append((query.filters().label, query.order_by))
        return {"workers": [A_WORKER], "total_entries": 1, "total_is_exact": True}

    def list_worker_attempts(worker_id: str, query: Any, *, dag_ids: Collection[str]) -> dict[str, Any]:
        known(worker_id)
        asked.append((worker_id, query.filters().state, dag_ids))
        return {"attempts": [], "total_entries": 0, "total_is_exact": True}

    def list_services(query: queries.ServiceQuery) -> dict[str, Any]:
        asked.append((query.filters().kind,))
        return {"services": [], "total_entries": 0, "total_is_exact": True}

    def change_availability(worker_id: str, availability: str, *, note: str | None, changed_by: str) -> dict[str, Any]:
        known(worker_id)
        if note == "host":
            raise queries.InvalidRequestError("a whole host")
        asked.append((worker_id, availability, note, changed_by))
        return get_worker(worker_id)

    for function in (get_worker, list_workers, list_worker_attempts, list_services, change_availability):
        monkeypatch.setattr(service, function.__name__, function)
    return asked


def test_workers_and_services_over_rest(
    client: Callable[[int], FlaskClient], rights: Rights, recorded: list[tuple[Any, ...]]
) -> None:
    rights.jobs, rights.dag_ids = True, {"etl"}
    api = client(2)
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


def test_what_workers_are_is_for_those_who_may_see_jobs(
    client: Callable[[int], FlaskClient], rights: Rights, recorded: list[tuple[Any, ...]]
) -> None:
    rights.dag_ids = {"etl"}
    api = client(2)
    for path in ("workers", "workers/w1", "workers/w1/attempts", "services"):
        answer = api.get(f"{API}/{path}")
        assert (answer.status_code, detail(answer)) == (403, "Forbidden")
    rights.jobs, rights.dag_ids = True, set()
    assert api.get(f"{API}/workers/w1/attempts").status_code == 403
    assert api.get(f"{API}/workers/w1/attempts?dag_id=etl").status_code == 403
    rights.known_to_api = False
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
def test_a_change_is_made_for_whom_no_page_elsewhere_speaks(
    client: Callable[[int], FlaskClient],
    rights: Rights,
    recorded: list[tuple[Any, ...]],
    headers: dict[str, str],
    cookie: str | None,
    status: int,
) -> None:
    rights.jobs = rights.pools = True
    api = client(2)
    if cookie is not None:
        api.set_cookie(cookie, "given")
    body = json.dumps({"availability": "draining", "note": "disk"})
    answer = api.patch(f"{API}/workers/w1", data=body, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code == status
    assert recorded == ([("w1", "draining", "disk", "alice")] if status == 200 else [])


def test_what_is_wrong_with_a_change_is_said(
    client: Callable[[int], FlaskClient], rights: Rights, recorded: list[tuple[Any, ...]]
) -> None:
    rights.jobs = True
    api = client(2)

    def patch(body: str, worker_id: str = "w1", kind: str = "application/json") -> TestResponse:
        headers = {**BASIC, "Content-Type": kind}
        return api.patch(f"{API}/workers/{worker_id}", data=body, headers=headers)

    decision = json.dumps({"availability": "draining"})
    assert patch(decision).status_code == 403
    assert patch("{").status_code == 403
    rights.pools = True
    assert patch(decision, "w2").status_code == 404
    assert "must be JSON" in detail(patch(decision, kind="text/plain"))
    assert "longer than" in detail(patch(decision + " " * 20_000))
    assert detail(patch(json.dumps({"availability": "draining", "note": "host"}))) == "a whole host"
    (problem,) = detail(patch(json.dumps({"availability": "gone"})))
    assert problem["loc"] == ["body", "availability"]
    assert patch("{").status_code == 422
    assert not recorded


def test_airflows_form_protection_does_not_ask_programs_for_its_token(
    client: Callable[..., FlaskClient], rights: Rights, recorded: list[tuple[Any, ...]]
) -> None:
    api = client(2, csrf=True)
    rights.jobs = rights.pools = True
    headers = {**BASIC, "Content-Type": "application/json"}
    body = json.dumps({"availability": "draining"})
    assert api.patch(f"{API}/workers/w1", data=body, headers=headers).status_code == 200
    assert api.post("/workerinsight/workers/w1/availability", headers=headers).status_code == 400
    assert len(recorded) == 1


# --- what is asked of Airflow ---------------------------------------------------------------------------------------


class Manager:
    """An auth manager of Airflow 3 with one user and one token."""

    def __init__(self) -> None:
        self.of_session = SimpleNamespace(name="of the session", is_anonymous=False)
        self.of_token = SimpleNamespace(name="of the token", is_anonymous=False)

    def get_user(self) -> Any:
        return self.of_session

    async def get_user_from_token(self, token: str) -> Any:
        from jwt import InvalidTokenError

        if token != "good":
            raise InvalidTokenError
        return self.of_token


@pytest.mark.parametrize(
    ("version", "cookie", "expected"),
    [
        ((2, 11), "good", "of the session"),
        ((3, 0), None, "of the session"),
        ((3, 0), "good", "of the token"),
        ((3, 1), "good", "of the token"),
        ((3, 3), "forged", "nobody"),
        ((3, 3), None, "nobody"),
    ],
)
def test_who_sends_a_request(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], cookie: str | None, expected: str
) -> None:
    manager = Manager()
    monkeypatch.setattr(compat, "airflow_version", lambda: version)
    monkeypatch.setattr(airflow_fab, "_flask_auth_manager", lambda: manager)
    app: Any = Flask("airflow")
    app.login_manager = SimpleNamespace(anonymous_user=AnonymousUserMixin)
    with app.test_request_context("/", headers={"Cookie": f"_token={cookie}"} if cookie else {}):
        assert request.cookies.get("_token") == cookie
        assert getattr(airflow_fab.flask_user(), "name", "nobody") == expected


def test_flask_views_are_served_where_the_auth_manager_is_fabs() -> None:
    from airflow.configuration import conf

    if not compat.is_airflow_3():
        assert airflow_fab.serves_flask_views()
        return
    fabs = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    assert not airflow_fab.serves_flask_views()
    conf.set("core", "auth_manager", fabs)
    try:
        assert airflow_fab.serves_flask_views()
    finally:
        conf.remove_option("core", "auth_manager")


# --- others' locks ---------------------------------------------------------------------------------------------------

airflow_2 = pytest.mark.skipif(compat.is_airflow_3(), reason="Airflow 3 has REST elsewhere")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("table", "path"),
    [
        (attempt.name, PANEL),
        (worker.name, "/workerinsight/workers"),
        (worker.name, "/workerinsight/workers/w1"),
        (attempt.name, "/workerinsight/attempts"),
        (placement.name, "/workerinsight/waiting"),
        (VERSION_TABLE, "/workerinsight/workers"),
        pytest.param(worker.name, "/workerinsight/api/v1/workers", marks=airflow_2),
        pytest.param(attempt.name, "/workerinsight/api/v1/attempts", marks=airflow_2),
    ],
)
def test_a_locked_table_is_said_in_plain_words(
    database: Database,
    client: Callable[[int], FlaskClient],
    rights: Rights,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    path: str,
) -> None:
    monkeypatch.setattr(web_database, "breaker", CircuitBreaker(0.0))
    monkeypatch.setattr(bounds, "PAGE", replace(bounds.PAGE, lock=0.2))
    rights.dag_ids, rights.jobs = {"etl"}, True
    served = client(3 if compat.is_airflow_3() else 2)
    web_database.schema_check.forget()
    with locked(database, table):
        answer = served.get(path)
    assert answer.status_code == 503
    assert "Try again in a few seconds" in answer.text
    assert served.get(path).status_code in {200, 404}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_decision_does_not_wait_for_a_lock_either(
    database: Database, client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_database, "breaker", CircuitBreaker(0.0))
    rights.dag_ids, rights.jobs, rights.pools = {"etl"}, True, True
    served = client(3 if compat.is_airflow_3() else 2)
    with locked(database, worker.name):
        answer = served.post(
            "/workerinsight/workers/w1/availability",
            data={"availability": "draining"},
            headers={"Sec-Fetch-Site": "same-origin"},
        )
    assert answer.status_code == 503
