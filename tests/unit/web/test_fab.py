"""The Flask views: who gets which answer. No Airflow web server runs, and nothing is read from a database."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, request, session
from flask_login import AnonymousUserMixin
from jinja2 import DictLoader

from airflow_worker_insight import compat
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.web import content, fab, objects
from airflow_worker_insight.web.address import PanelAddress
from airflow_worker_insight.web.database import SchemaNotReady
from airflow_worker_insight.web.view import Panel, build_panel
from tests.unit.database import at
from tests.unit.web.attempts import a_try, on

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
    logged_in: bool = True
    known_to_api: bool = True
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def rights(monkeypatch: pytest.MonkeyPatch) -> Rights:
    given = Rights()

    def may_see_task_instances(_: Any, dag_id: str | None) -> bool:
        given.asked.append(dag_id)
        return bool(given.dag_ids) if dag_id is None else dag_id in given.dag_ids

    monkeypatch.setattr(compat, "flask_user", object)
    monkeypatch.setattr(compat, "flask_api_user", lambda: object() if given.known_to_api else None)
    monkeypatch.setattr(compat, "flask_is_logged_in", lambda _: given.logged_in)
    monkeypatch.setattr(compat, "flask_may_see_task_instances", may_see_task_instances)
    monkeypatch.setattr(compat, "flask_may_see_jobs", lambda _: given.jobs)
    monkeypatch.setattr(compat, "flask_readable_dag_ids", lambda _: given.dag_ids)
    monkeypatch.setattr(compat, "flask_login_url", lambda root, next_url: f"{root}/login?next={next_url}")
    return given


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[PanelAddress]:
    """Fill every panel with one try, and note whose panels were asked for."""
    addresses: list[PanelAddress] = []

    def panel(address: PanelAddress) -> Panel:
        addresses.append(address)
        return build_panel(address, [a_try(1, 0, 10, on("w1"))], now=at(1000))

    monkeypatch.setattr(content, "panel", panel)
    return addresses


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], FlaskClient]:
    """Return a function that serves the views as an Airflow of this major version does."""

    def serve(airflow: int) -> FlaskClient:
        monkeypatch.setattr(compat, "is_airflow_3", lambda: airflow == 3)
        app: Any = Flask("airflow")
        app.secret_key = "secret"
        app.jinja_loader = DictLoader({"airflow/main.html": AIRFLOW_PAGE})
        appbuilder = SimpleNamespace(base_template="airflow/main.html")
        for one in fab.appbuilder_views():
            app.register_blueprint(one["view"].create_blueprint(appbuilder))
        app.register_blueprint(fab.blueprint())
        mounted_below = "/deep/pluginsv2" if airflow == 3 else "/deep"
        under = app.wsgi_app
        app.wsgi_app = lambda environ, start: under({**environ, "SCRIPT_NAME": mounted_below}, start)
        served: FlaskClient = app.test_client()
        return served

    return serve


both = pytest.mark.parametrize("airflow", [2, 3])

# --- pages ----------------------------------------------------------------------------------------------------------


def test_the_panel_stands_inside_the_page_of_airflow_2(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress]
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
    assert shown == [PanelAddress("etl", "2026-03-01T12:00:00+00:00", "load")]


def test_the_panel_is_a_page_of_its_own_on_airflow_3(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress]
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
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress], airflow: int
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
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress], airflow: int
) -> None:
    rights.dag_ids = {"etl"}
    answer = client(airflow).get(PANEL.replace("panel", "panel/fragment"))
    assert answer.status_code == 200
    assert answer.text.strip().startswith('<div class="wi" id="wi-panel"')
    assert shown


@both
def test_a_reader_without_the_right_is_refused_before_anything_is_read(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress], airflow: int
) -> None:
    rights.dag_ids = {"other"}
    for path in (PANEL, PANEL.replace("panel", "panel/fragment")):
        answer = client(airflow).get(path)
        assert answer.status_code == 403
        assert "Not for you to see" in answer.text
        assert "etl" not in answer.text
    assert rights.asked == ["etl", "etl"]
    assert not shown


@both
def test_what_is_checked_is_what_is_shown(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress], airflow: int
) -> None:
    rights.dag_ids = {"a b"}
    # A plus is a plus here, and a space in a query string that Flask reads.
    assert client(airflow).get("/workerinsight/panel?dag_id=a+b&run_id=r&task_id=t").status_code == 403
    assert client(airflow).get("/workerinsight/panel?dag_id=other&dag_id=a%20b&run_id=r&task_id=t").status_code == 422
    assert not shown


@both
def test_one_who_is_not_logged_in_is_sent_to_the_login_and_back(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress], airflow: int
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
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress], airflow: int
) -> None:
    answer = client(airflow).get("/workerinsight/panel?dag_id={DAG_ID}&run_id=r&task_id=t")
    assert answer.status_code == 422
    assert "The address does not say which dag_id is meant." in answer.text
    assert not rights.asked
    assert not shown


@both
def test_missing_tables_are_answered_with_what_to_do(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch, airflow: int
) -> None:
    def not_ready(_: PanelAddress) -> Panel:
        raise SchemaNotReady(Schema.MISSING)

    rights.dag_ids = {"etl"}
    monkeypatch.setattr(content, "panel", not_ready)
    answer = client(airflow).get(PANEL)
    assert answer.status_code == 503
    assert "airflow-worker-insight db migrate" in answer.text


@both
def test_markup_in_ids_is_text(
    client: Callable[[int], FlaskClient], rights: Rights, shown: list[PanelAddress], airflow: int
) -> None:
    rights.dag_ids = {"<script>alert(1)</script>"}
    path = "/workerinsight/panel?dag_id=%3Cscript%3Ealert(1)%3C/script%3E&run_id=%F0%9F%9A%80%22%27&task_id={{7*7}}"
    answer = client(airflow).get(path)
    assert answer.status_code == 200
    assert "<script>alert(1)" not in answer.text
    assert "{{7*7}} · Worker" in answer.text
    assert shown == [PanelAddress("<script>alert(1)</script>", "🚀\"'", "{{7*7}}")]


@both
def test_a_workers_page_lists_only_what_the_reader_may_see(
    client: Callable[[int], FlaskClient], rights: Rights, monkeypatch: pytest.MonkeyPatch, airflow: int
) -> None:
    asked: list[tuple[str, Collection[str], int]] = []

    def worker_page(worker_id: str, *, dag_ids: Collection[str], offset: int) -> None:
        asked.append((worker_id, dag_ids, offset))

    monkeypatch.setattr(content, "worker_page", worker_page)
    pages = client(airflow)
    assert pages.get("/workerinsight/workers/w1").status_code == 403
    assert not asked
    rights.jobs = True
    answer = pages.get("/workerinsight/workers/celery-1@a:b?offset=25")
    assert answer.status_code == 404
    assert content.NO_SUCH_WORKER[:20] in answer.text
    rights.dag_ids = {"etl"}
    pages.get("/workerinsight/workers/w1")
    assert asked == [("celery-1@a:b", set(), 25), ("w1", {"etl"}, 0)]


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
    asked: list[tuple[objects.AttemptQuery, Collection[str]]] = []

    def list_attempts(query: objects.AttemptQuery, *, dag_ids: Collection[str]) -> dict[str, Any]:
        asked.append((query, dag_ids))
        return {"attempts": [a_try(1, 0, 10, on("w1", 0))], "total_entries": 1}

    monkeypatch.setattr(objects, "list_attempts", list_attempts)
    rights.dag_ids = {"etl", "sales"}
    answer = client(2).get(f"{ATTEMPTS}?limit=1")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    body = json.loads(answer.text)
    assert body["total_entries"] == 1
    assert body["attempts"][0]["started_at"] == "2026-03-01T12:00:00Z"
    assert body["attempts"][0]["workers"][0]["worker_id"] == "w1"
    client(2).get(f"{ATTEMPTS}?dag_id=etl")
    assert [(query.limit, dag_ids) for query, dag_ids in asked] == [(1, {"etl", "sales"}), (50, {"etl"})]


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
        raise SchemaNotReady(Schema.OLD)

    rights.dag_ids = {"etl"}
    monkeypatch.setattr(objects, "list_attempts", not_ready)
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
    monkeypatch.setattr(compat, "flask_api_user", log_in)
    monkeypatch.setattr(objects, "health", dict)
    api = client(2)
    assert "Set-Cookie" not in api.get("/workerinsight/api/v1/attempts?limit=0").headers
    with api.session_transaction() as kept:
        kept["_user_id"] = "7"
    api.get("/workerinsight/api/v1/attempts?limit=0")
    with api.session_transaction() as kept:
        assert "_user_id" in kept


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
    monkeypatch.setattr(compat, "_flask_auth_manager", lambda: manager)
    app: Any = Flask("airflow")
    app.login_manager = SimpleNamespace(anonymous_user=AnonymousUserMixin)
    with app.test_request_context("/", headers={"Cookie": f"_token={cookie}"} if cookie else {}):
        assert request.cookies.get("_token") == cookie
        assert getattr(compat.flask_user(), "name", "nobody") == expected


def test_flask_views_are_served_where_the_auth_manager_is_fabs() -> None:
    from airflow.configuration import conf

    if not compat.is_airflow_3():
        assert compat.serves_flask_views()
        return
    fabs = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    assert not compat.serves_flask_views()
    conf.set("core", "auth_manager", fabs)
    try:
        assert compat.serves_flask_views()
    finally:
        conf.remove_option("core", "auth_manager")
