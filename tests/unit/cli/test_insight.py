"""``insight run``: once, and by whom it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.cli import fleet, insight
from tests.unit.analysis.deployment import Deployment, steady
from tests.unit.cli.running import Printed, refused, run

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

    from airflow_worker_insight.analysis.job import Job
    from tests.unit.database import Database


@pytest.fixture
def deployment(database: Database, mocker: MockerFixture) -> Deployment:
    """Return a deployment whose commands have its time."""
    made = Deployment(database, steady(rounds=3))
    mocker.patch.object(insight, "make_job", made.job)
    mocker.patch.object(insight, "BUSY_SECONDS", 0.0)
    return made


def test_each_run_goes_on_where_the_last_one_ended(deployment: Deployment, capsys: Printed) -> None:
    for moment, answer in [(60, "6 tries started, 6 ended"), (180, "9 tries started, 9 ended"), (180, "0 tries")]:
        deployment.until(moment)
        run("insight", "run")
        assert capsys.readouterr().out.startswith(answer)
    run("insight", "run", "--recompute")
    assert capsys.readouterr().out.startswith("15 tries started, 15 ended; 0 open findings")


def test_while_another_process_runs_it_there_is_nothing_to_do(deployment: Deployment, capsys: Printed) -> None:
    deployment.until(60)
    server: Job = deployment.job()
    server.step()
    run("insight", "run")
    assert capsys.readouterr().out.strip() == insight.OTHER_PROCESS
    run("insight", "run", "--recompute")
    assert capsys.readouterr().out.startswith("6 tries started, 6 ended")
    assert server.step().has_lease


def test_switched_off_it_says_so(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    del database
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__INSIGHT_ENABLED", "False")
    assert "switched off" in refused("insight", "run")


@pytest.mark.parametrize("has_api_server", [True, False])
def test_refresh_analyses_where_no_api_server_does(mocker: MockerFixture, has_api_server: bool) -> None:
    thread = mocker.patch.object(fleet, "AnalysisThread").return_value
    mocker.patch.object(fleet.airflow_plugins, "serves_fastapi_apps", return_value=has_api_server)
    with fleet.analysis():
        assert thread.start.call_count == (not has_api_server)
        assert thread.stop.call_count == 0
    assert thread.stop.call_count == (not has_api_server)
