"""What Airflow gets from the plugin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.capture import hook_monitoring, listener, run_listener
from airflow_worker_insight.compat import fab as airflow_fab
from airflow_worker_insight.compat import task_runtime
from airflow_worker_insight.plugin import WorkerInsightPlugin
from airflow_worker_insight.ui.rendering import STATIC
from airflow_worker_insight.ui.urls import URL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_mock import MockerFixture

airflow_3 = pytest.mark.skipif(not compat.is_airflow_3(), reason="Airflow 2.11 has no FastAPI apps")


@pytest.fixture
def unclaimed() -> Iterator[None]:
    """Have no claim in this process before and after."""
    from airflow_worker_insight.capture import claim

    assert claim.installed() is None
    yield
    claim.uninstall()


def claims() -> bool:
    from airflow_worker_insight.capture import claim

    return claim.installed() is not None


def test_airflow_loads_it(run_airflow: str) -> None:
    assert "worker_insight" in run_airflow


@pytest.fixture
def run_airflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what ``airflow plugins`` says."""
    from tests.unit.database import run_command

    path = tmp_path_factory.mktemp("plugins") / "airflow.db"
    return run_command(f"sqlite:///{path}", "-m", "airflow", "plugins", "--output", "json")


@pytest.mark.parametrize("process", ["in_server_process", "in_task_process"])
def test_listeners_are_handed_over_where_they_are_called(mocker: MockerFixture, process: str) -> None:
    mocker.patch.object(task_runtime, process, return_value=True)
    assert WorkerInsightPlugin().listeners == [listener, run_listener, hook_monitoring]


def test_no_listener_where_people_parse_dags(mocker: MockerFixture) -> None:
    """Airflow refuses some Dags as soon as there is any listener, also in a command or in a test of the Dags."""
    for process in ("in_server_process", "in_task_process"):
        mocker.patch.object(task_runtime, process, return_value=False)
    assert WorkerInsightPlugin().listeners == []


@airflow_3
@pytest.mark.usefixtures("unclaimed")
def test_an_api_server_gets_the_app_and_begins_to_claim() -> None:
    plugin = WorkerInsightPlugin()
    assert not claims()
    (app,) = plugin.fastapi_apps
    assert (app["url_prefix"], app["name"]) == (URL_PREFIX, "Airflow Worker Insight")
    assert app["app"].routes
    assert claims()


@airflow_3
@pytest.mark.usefixtures("unclaimed")
def test_reading_the_apps_again_installs_one_claimer() -> None:
    from airflow_worker_insight.capture import claim

    plugin = WorkerInsightPlugin()
    for _ in range(3):
        assert len(plugin.fastapi_apps) == 1
    claim.uninstall()
    assert not claims()


@airflow_3
@pytest.mark.usefixtures("unclaimed")
def test_switched_off_it_shows_but_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENABLED", "False")
    assert len(WorkerInsightPlugin().fastapi_apps) == 1
    assert not claims()


@pytest.mark.skipif(compat.is_airflow_3(), reason="Airflow 3 has FastAPI apps")
def test_airflow_2_gets_no_app() -> None:
    assert WorkerInsightPlugin().fastapi_apps == []


@airflow_3
@pytest.mark.parametrize(
    ("base_url", "path"),
    [("http://localhost:8080", ""), ("https://example.org/team/airflow/", "/team/airflow")],
)
def test_the_tab_and_the_page_are_below_the_servers_own_path(
    monkeypatch: pytest.MonkeyPatch, base_url: str, path: str
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    tab, page = WorkerInsightPlugin().external_views
    assert (page["name"], page["destination"], page["href"]) == ("Workers", "nav", f"{path}/worker-insight/workers")
    assert page["url_route"] != tab["url_route"]
    for icon in (page["icon"], page["icon_dark_mode"]):
        assert icon.startswith(f"{path}/worker-insight/static/")
        assert (STATIC / icon.rpartition("/")[2]).exists()
    assert (tab["name"], tab["destination"]) == ("Worker", "task_instance")
    assert tab["href"] == (
        f"{path}/worker-insight/panel?dag_id={{DAG_ID}}&run_id={{RUN_ID}}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}"
    )


def test_every_task_gets_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.org/team/")
    monkeypatch.setenv("AIRFLOW__WEBSERVER__BASE_URL", "https://example.org/team")
    (link,) = WorkerInsightPlugin().global_operator_extra_links
    key = SimpleNamespace(dag_id="a/b?c", run_id="run 1+x", task_id="t&u", map_index=3, try_number=2)
    page = "worker-insight" if compat.is_airflow_3() else "workerinsight"
    assert link.name == "Worker"
    assert link.get_link(None, ti_key=key) == (
        f"/team/{page}/panel?dag_id=a%2Fb%3Fc&run_id=run%201%2Bx&task_id=t%26u&map_index=3&try_number=2"
    )


@airflow_3
def test_flask_views_are_shown_only_where_they_work(mocker: MockerFixture) -> None:
    """Under another auth manager than FAB's the API server would refuse to start, or each view would answer 500."""
    mocker.patch.object(airflow_fab, "serves_flask_views", return_value=False)
    plugin = WorkerInsightPlugin()
    assert (plugin.appbuilder_views, plugin.appbuilder_menu_items, plugin.flask_blueprints) == ([], [], [])


@pytest.mark.parametrize(
    ("version", "texts"),
    [((2, 11), ["Workers", "Insight", "Attempts"]), ((3, 0), ["Workers", "Insight", "Attempts"]), ((3, 1), [])],
)
def test_the_menu_leads_to_the_pages_where_the_navigation_does_not(
    mocker: MockerFixture, version: tuple[int, int], texts: list[str]
) -> None:
    mocker.patch.object(airflow_fab, "serves_flask_views", return_value=True)
    mocker.patch.object(compat, "airflow_version", return_value=version)
    items = WorkerInsightPlugin().appbuilder_menu_items
    assert [item.get("label", item["name"]) for item in items] == texts
