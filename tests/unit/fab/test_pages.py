"""The pages that Flask serves: what each user gets. Only the tests of locks read a database."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.api import service
from airflow_worker_insight.api.database import SchemaNotReadyError
from airflow_worker_insight.api.service import WorkerNotFoundError
from airflow_worker_insight.domain.attempts import AttemptPage
from airflow_worker_insight.domain.findings import FindingOutcome, FindingState, StoredFinding, SubjectKind
from airflow_worker_insight.domain.statistics import HeatMap
from airflow_worker_insight.store import session as bounds
from airflow_worker_insight.store.insight_tables import finding, worker_hour
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.session import CircuitBreaker
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt, placement, worker
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import (
    InsightParams,
    PanelParams,
    WaitingParams,
    WorkerParams,
    WorkersParams,
)
from airflow_worker_insight.ui.views.attempts import build_attempts_page
from airflow_worker_insight.ui.views.findings import FindingCard, build_card
from airflow_worker_insight.ui.views.heat_map import build_heat_map
from airflow_worker_insight.ui.views.insight import Analysis, InsightListing, InsightPage, build_insight_page
from airflow_worker_insight.ui.views.panel import Panel, build_panel
from airflow_worker_insight.ui.views.waiting import Executor, WaitingPage, build_waiting_page
from airflow_worker_insight.ui.views.worker import build_worker_page
from airflow_worker_insight.ui.views.workers import build_workers_page
from tests.unit.database import Database, at, locked
from tests.unit.findings import a_finding
from tests.unit.ui.attempts import a_try, on
from tests.unit.ui.workers import NOW, a_listing, a_worker_row, an_instance

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from flask.testing import FlaskClient
    from pytest_mock import MockerFixture
    from werkzeug.test import TestResponse

    from tests.unit.fab.conftest import Permissions

    Serve = Callable[..., FlaskClient]

PANEL = "/workerinsight/panel?dag_id=etl&run_id=2026-03-01T12:00:00+00:00&task_id=load&map_index=-1"


@pytest.fixture
def shown(mocker: MockerFixture) -> list[PanelParams]:
    """Fill each panel with one try; return the URLs of the panels."""
    addresses: list[PanelParams] = []

    def panel(params: PanelParams, **_: Any) -> Panel:
        addresses.append(params)
        return build_panel(params, [a_try(1, 0, 10, on("w1"))], now=at(1000))

    mocker.patch.object(page_service, "panel", panel)
    return addresses


both = pytest.mark.parametrize("version", [2, 3])

# --- pages ----------------------------------------------------------------------------------------------------------


def test_panel_is_embedded_in_the_page_of_airflow_2(
    serve: Serve, permissions: Permissions, shown: list[PanelParams]
) -> None:
    permissions.dag_ids = {"etl"}
    answer = serve(2).get(PANEL)
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


def test_panel_is_a_standalone_page_on_airflow_3(
    serve: Serve, permissions: Permissions, shown: list[PanelParams]
) -> None:
    permissions.dag_ids = {"etl"}
    answer = serve(3).get(PANEL)
    assert answer.status_code == 200
    assert "<title>load · Worker</title>" in answer.text
    assert 'href="/deep/pluginsv2/workerinsight/static/worker-insight.css' in answer.text
    assert 'href="/deep/dags/etl/runs/2026-03-01T12%3A00%3A00%2B00%3A00/tasks/load"' in answer.text
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert len(shown) == 1


@both
def test_pages_are_not_cached(serve: Serve, permissions: Permissions, shown: list[PanelParams], version: int) -> None:
    permissions.dag_ids = {"etl"}
    pages = serve(version)
    for answer in (pages.get(PANEL), pages.get(PANEL.replace("panel", "panel/fragment"))):
        assert answer.headers["cache-control"] == "no-store"
    static = pages.get("/workerinsight/static/worker-insight.css")
    assert (static.status_code, static.headers["cache-control"]) == (200, "private, max-age=3600")
    assert len(shown) == 2


@both
def test_fragment_is_the_panel_without_layout(
    serve: Serve, permissions: Permissions, shown: list[PanelParams], version: int
) -> None:
    permissions.dag_ids = {"etl"}
    answer = serve(version).get(PANEL.replace("panel", "panel/fragment"))
    assert answer.status_code == 200
    assert answer.text.strip().startswith('<div class="wi" id="wi-panel"')
    assert shown


@both
def test_reader_without_permission_is_refused_before_anything_is_read(
    serve: Serve, permissions: Permissions, shown: list[PanelParams], version: int
) -> None:
    permissions.dag_ids = {"other"}
    for path in (PANEL, PANEL.replace("panel", "panel/fragment")):
        answer = serve(version).get(path)
        assert answer.status_code == 403
        assert "Access denied" in answer.text
        assert "etl" not in answer.text
    assert permissions.checked_dag_ids == ["etl", "etl"]
    assert not shown


@both
def test_permission_is_checked_for_the_dag_that_is_shown(
    serve: Serve, permissions: Permissions, shown: list[PanelParams], version: int
) -> None:
    permissions.dag_ids = {"a b"}
    # A plus is a plus here, and a space in a query string that Flask reads.
    assert serve(version).get("/workerinsight/panel?dag_id=a+b&run_id=r&task_id=t").status_code == 403
    assert serve(version).get("/workerinsight/panel?dag_id=other&dag_id=a%20b&run_id=r&task_id=t").status_code == 422
    assert not shown


@both
def test_anonymous_reader_is_sent_to_the_login_and_back(
    serve: Serve, permissions: Permissions, shown: list[PanelParams], version: int
) -> None:
    permissions.is_logged_in = False
    answer = serve(version).get(PANEL)
    below = "/deep" if version == 2 else "/deep/pluginsv2"
    assert (answer.status_code, answer.location) == (302, f"/deep/login?next={below}{PANEL}")
    # The fragment is asked for by a script, which a redirect to another page would only confuse.
    fragment = serve(version).get(PANEL.replace("panel", "panel/fragment"))
    assert (fragment.status_code, fragment.text) == (401, "")
    assert serve(version).get("/workerinsight/workers/w1").status_code == 302
    assert not shown


@both
def test_invalid_url_is_answered_with_a_page(
    serve: Serve, permissions: Permissions, shown: list[PanelParams], version: int
) -> None:
    answer = serve(version).get("/workerinsight/panel?dag_id={DAG_ID}&run_id=r&task_id=t")
    assert answer.status_code == 422
    assert "The URL has no dag_id." in answer.text
    assert not permissions.checked_dag_ids
    assert not shown


@both
def test_missing_tables_are_answered_with_the_command_to_run(
    serve: Serve, permissions: Permissions, mocker: MockerFixture, version: int
) -> None:
    def not_ready(*_: Any, **__: Any) -> Panel:
        raise SchemaNotReadyError(Schema.MISSING)

    permissions.dag_ids = {"etl"}
    mocker.patch.object(page_service, "panel", not_ready)
    answer = serve(version).get(PANEL)
    assert answer.status_code == 503
    assert "airflow-worker-insight db migrate" in answer.text


@both
def test_markup_in_ids_is_escaped(
    serve: Serve, permissions: Permissions, shown: list[PanelParams], version: int
) -> None:
    permissions.dag_ids = {"<script>alert(1)</script>"}
    path = "/workerinsight/panel?dag_id=%3Cscript%3Ealert(1)%3C/script%3E&run_id=%F0%9F%9A%80%22%27&task_id={{7*7}}"
    answer = serve(version).get(path)
    assert answer.status_code == 200
    assert "<script>alert(1)" not in answer.text
    assert "{{7*7}} · Worker" in answer.text
    assert shown == [PanelParams("<script>alert(1)</script>", "🚀\"'", "{{7*7}}")]


@both
def test_page_of_a_worker_lists_only_readable_dags(
    serve: Serve, permissions: Permissions, mocker: MockerFixture, version: int
) -> None:
    asked: list[tuple[str, WorkerParams, Collection[str] | None, bool]] = []

    def worker_page(worker_id: str, params: WorkerParams, *, dag_ids: Collection[str] | None, may_decide: bool) -> None:
        asked.append((worker_id, params, dag_ids, may_decide))
        raise WorkerNotFoundError

    mocker.patch.object(page_service, "worker_page", worker_page)
    pages = serve(version)
    assert pages.get("/workerinsight/workers/w1").status_code == 403
    assert not asked
    permissions.jobs = True
    answer = pages.get("/workerinsight/workers/celery-1@a:b?offset=25&hours=6")
    assert answer.status_code == 404
    assert "No worker with this ID" in answer.text
    permissions.dag_ids, permissions.pools = {"etl"}, True
    pages.get("/workerinsight/workers/w1")
    assert asked == [
        ("celery-1@a:b", WorkerParams(hours=6, offset=25), None, False),
        ("w1", WorkerParams(), {"etl"}, True),
    ]


@pytest.fixture
def pages_shown(mocker: MockerFixture) -> None:
    """Fill all pages but the panel."""

    def workers_page(params: WorkersParams) -> Any:
        return build_workers_page(params, a_listing(a_worker_row()), now=NOW)

    def worker_page(_: str, params: WorkerParams, *, dag_ids: Collection[str] | None, may_decide: bool) -> Any:
        return build_worker_page(an_instance(), params, may_read=bool(dag_ids), may_decide=may_decide, now=NOW)

    def attempts_page(params: Any, *, dag_ids: Collection[str], **_: Any) -> Any:
        tries = [a_try(1, 0, 10, on("w1"))] if "etl" in dag_ids else []
        found = AttemptPage(tries, len(tries), total_is_exact=True)
        return build_attempts_page(params, found, dag_ids=dag_ids, states=["success"], now=NOW)

    def waiting_page(params: WaitingParams, *, dag_ids: Collection[str], may_see_workers: bool) -> WaitingPage:
        executor = Executor(places=True)
        return build_waiting_page(params, ([], 0), executor, dag_ids=dag_ids, may_see_workers=may_see_workers, now=NOW)

    mocker.patch.object(page_service, "workers_page", workers_page)
    mocker.patch.object(page_service, "worker_page", worker_page)
    mocker.patch.object(page_service, "attempts_page", attempts_page)

    def insight_page(params: InsightParams, *, may_decide: bool, **_: Any) -> InsightPage:
        listing = InsightListing([a_card(may_decide=may_decide)], 1, [], 0, Analysis(None), None)
        drawn = build_heat_map(params, HeatMap([], 0), now=NOW)
        return build_insight_page(params, listing, drawn, now=NOW)

    def finding_page(_: str, *, may_decide: bool, **__: Any) -> Any:
        return a_card(may_decide=may_decide), NOW

    mocker.patch.object(page_service, "waiting_page", waiting_page)
    mocker.patch.object(page_service, "insight_page", insight_page)
    mocker.patch.object(page_service, "finding_page", finding_page)


def a_card(*, may_decide: bool) -> FindingCard:
    stored = StoredFinding(
        1, FindingState.OPEN, SubjectKind.WORKER, FindingOutcome.FAILED, at(0), None, None, a_finding()
    )
    return build_card(stored, dag_ids={"etl"}, workers={}, may_decide=may_decide)


@both
@pytest.mark.usefixtures("pages_shown")
def test_each_page_has_a_fragment(serve: Serve, permissions: Permissions, version: int) -> None:
    permissions.dag_ids, permissions.jobs = {"etl"}, True
    below = "/deep" if version == 2 else "/deep/pluginsv2"
    for page, identity in (
        ("workers", "wi-workers"),
        ("workers/w1", "wi-worker"),
        ("attempts", "wi-attempts"),
        ("waiting", "wi-waiting"),
        ("insight", "wi-insight"),
        ("insight/1", "wi-finding"),
    ):
        answer = serve(version).get(f"/workerinsight/{page}")
        assert answer.status_code == 200
        assert f'id="{identity}"' in answer.text
        assert f'href="{below}/workerinsight/workers"' in answer.text
        assert ("<nav>Airflow</nav>" in answer.text) == (version == 2)
        fragment = serve(version).get(f"/workerinsight/{page}/fragment")
        assert fragment.text.strip().startswith(f'<div class="wi" id="{identity}"')


@both
@pytest.mark.usefixtures("pages_shown")
def test_lists_need_permission(serve: Serve, permissions: Permissions, version: int) -> None:
    pages = serve(version)
    of_workers = ("workers", "workers/fragment", "workers/w1/fragment", "insight", "insight/fragment", "insight/1")
    for path in (*of_workers, "insight/1/fragment", "attempts", "attempts/fragment", "waiting"):
        assert pages.get(f"/workerinsight/{path}").status_code == 403
    permissions.is_logged_in = False
    assert pages.get("/workerinsight/workers").status_code == 302
    assert pages.get("/workerinsight/attempts/fragment").status_code == 401
    # The login comes before what is wrong with the address.
    for path in ("workers?colour=red", "workers/w1?dag_id=etl", "attempts?colour=red"):
        assert pages.get(f"/workerinsight/{path}").status_code == 302


@both
def test_decision_needs_permission_to_edit_pools(
    serve: Serve, permissions: Permissions, mocker: MockerFixture, version: int
) -> None:
    decided: list[tuple[str, str, str | None, str]] = []

    def change_availability(worker_id: str, availability: str, *, note: str | None, changed_by: str) -> None:
        decided.append((worker_id, availability, note, changed_by))
        if worker_id != "w1":
            raise WorkerNotFoundError

    mocker.patch.object(service, "change_availability", change_availability)
    pages = serve(version)

    def post(worker_id: str = "w1", site: str = "same-origin") -> TestResponse:
        return pages.post(
            f"/workerinsight/workers/{worker_id}/availability",
            data={"availability": "draining", "note": "Disk fails"},
            headers={"Sec-Fetch-Site": site},
        )

    permissions.jobs = True
    assert post().status_code == 403
    permissions.jobs, permissions.pools = False, True
    assert post().status_code == 403
    permissions.jobs = True
    assert post(site="cross-site").status_code == 403
    assert not decided
    below = "/deep" if version == 2 else "/deep/pluginsv2"
    answer = post()
    assert (answer.status_code, answer.location) == (303, f"{below}/workerinsight/workers/w1")
    assert post("w2").status_code == 404
    assert decided[0] == ("w1", "draining", "Disk fails", "alice")
    permissions.is_logged_in = permissions.pools = False
    assert post().location == f"/deep/login?next={below}/workerinsight/workers/w1"


@both
@pytest.mark.usefixtures("pages_shown")
def test_form_carries_airflows_csrf_token(serve: Serve, permissions: Permissions, version: int) -> None:
    permissions.jobs = True
    paths = [f"/workerinsight/{page}" for page in ("workers/w1", "insight", "insight/1")]
    assert all("csrf_token" not in serve(version).get(path).text for path in paths)
    permissions.pools = True
    assert all('name="csrf_token" value="of-airflow"' in serve(version).get(path).text for path in paths)


@both
def test_dismissal_needs_permission_to_edit_pools(
    serve: Serve, permissions: Permissions, mocker: MockerFixture, version: int
) -> None:
    dismissed: list[tuple[str, str, str]] = []

    def dismiss_finding(finding_id: str, *, note: str, actor: str, **_: Any) -> int:
        dismissed.append((finding_id, note, actor))
        return 7

    mocker.patch.object(page_service, "dismiss_finding", dismiss_finding)
    pages = serve(version)

    def post(site: str = "same-origin") -> TestResponse:
        path = "/workerinsight/insight/7/dismiss"
        return pages.post(path, data={"note": "Known"}, headers={"Sec-Fetch-Site": site})

    permissions.jobs = True
    assert post().status_code == 403
    permissions.jobs, permissions.pools = False, True
    assert post().status_code == 403
    permissions.jobs = True
    assert post("cross-site").status_code == 403
    assert not dismissed
    below = "/deep" if version == 2 else "/deep/pluginsv2"
    answer = post()
    assert (answer.status_code, answer.location) == (303, f"{below}/workerinsight/insight/7")
    assert dismissed == [("7", "Known", "alice")]
    permissions.is_logged_in = permissions.pools = False
    assert post().location == f"/deep/login?next={below}/workerinsight/insight/7"


# --- locked tables ---------------------------------------------------------------------------------------------------

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
        (finding.name, "/workerinsight/insight"),
        (finding.name, "/workerinsight/insight/1"),
        (worker_hour.name, "/workerinsight/insight"),
        (VERSION_TABLE, "/workerinsight/workers"),
        pytest.param(worker.name, "/workerinsight/api/v1/workers", marks=airflow_2),
        pytest.param(attempt.name, "/workerinsight/api/v1/attempts", marks=airflow_2),
    ],
)
def test_locked_table_is_answered_with_503(
    database: Database,
    serve: Serve,
    permissions: Permissions,
    mocker: MockerFixture,
    table: str,
    path: str,
) -> None:
    mocker.patch.object(web_database, "breaker", CircuitBreaker(0.0))
    mocker.patch.object(bounds, "PAGE", replace(bounds.PAGE, lock=0.2))
    permissions.dag_ids, permissions.jobs = {"etl"}, True
    served = serve(3 if compat.is_airflow_3() else 2)
    web_database.schema_gate.forget()
    with locked(database, table):
        answer = served.get(path)
    assert answer.status_code == 503
    assert "Try again in a few seconds" in answer.text
    assert served.get(path).status_code in {200, 404}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_decision_does_not_wait_for_a_lock(
    database: Database, serve: Serve, permissions: Permissions, mocker: MockerFixture
) -> None:
    mocker.patch.object(web_database, "breaker", CircuitBreaker(0.0))
    permissions.dag_ids, permissions.jobs, permissions.pools = {"etl"}, True, True
    served = serve(3 if compat.is_airflow_3() else 2)
    with locked(database, worker.name):
        answer = served.post(
            "/workerinsight/workers/w1/availability",
            data={"availability": "draining"},
            headers={"Sec-Fetch-Site": "same-origin"},
        )
    assert answer.status_code == 503
