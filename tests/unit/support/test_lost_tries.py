"""A run is repeated only if Airflow's own logs prove that Airflow lost a try."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import lost_tries
from tests.support.environments import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# As Airflow 3.3 writes them.
CLIENT = json.dumps(
    {
        "level": "error",
        "event": "Task failed with exception",
        "error_detail": [
            {
                "exc_type": "AirflowRuntimeError",
                "exc_value": "API_SERVER_ERROR: {'status_code': None, 'message': 'timed out', "
                "'exception_type': 'ReadTimeout'}",
            }
        ],
    }
)
IMPORT = json.dumps({"level": "error", "event": "DagBag import timeout for /dags/sales.py after 30.0s."})
TASK = json.dumps({"level": "error", "event": "Task failed with exception", "exc": "ValueError: not the first time"})
OURS = json.dumps(
    {
        "level": "error",
        "event": "Task failed with exception",
        "error_detail": [
            {
                "exc_type": "KeyError",
                "frames": [{"filename": "/site-packages/airflow_worker_insight/capture/listener.py"}],
            }
        ],
    }
)
PLAIN_TIMEOUT = "requests.exceptions.ReadTimeout: the task's own client"


@dataclass
class Component:
    log: Path

    def output(self) -> str:
        return self.log.read_text()


@dataclass
class Airflow:
    """Each run has one task, whose tries end as the logs in ``plan`` say; None is a success."""

    logs_folder: Path
    plan: list[list[str | None]]
    components: dict[str, Any] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None) -> str:
        assert conf is None
        run_id = f"run-{len(self.runs)}"
        self.runs.append(run_id)
        folder = self.logs_folder / f"dag_id={dag_id}" / f"run_id={run_id}" / "task_id=load"
        folder.mkdir(parents=True)
        for number, log in enumerate(self._plan(run_id), start=1):
            (folder / f"attempt={number}.log").write_text(log or "")
        return run_id

    def _plan(self, run_id: str) -> list[str | None]:
        return self.plan[self.runs.index(run_id)]

    def wait_run(self, dag_id: str, run_id: str, timeout: float) -> str:
        assert dag_id == "sales"
        assert timeout > 0
        return "success" if self._plan(run_id)[-1] is None else "failed"

    def tries(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        assert dag_id == "sales"
        return [
            {
                "task_id": "load",
                "map_index": -1,
                "try_number": number,
                "state": "success" if log is None else "failed",
                "external_executor_id": f"celery-{run_id}-{number}",
            }
            for number, log in enumerate(self._plan(run_id), start=1)
        ]

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return self.tries(dag_id, run_id)[-1:]


@pytest.fixture(autouse=True)
def repeated() -> Iterator[list[str]]:
    """Give this test an empty list of repeated runs, and restore the session's."""
    before = list(lost_tries.repeated)
    lost_tries.repeated.clear()
    yield lost_tries.repeated
    lost_tries.repeated[:] = before


def test_run_that_ends_as_expected_is_not_repeated(tmp_path: Path, repeated: list[str]) -> None:
    airflow = Airflow(tmp_path, [[TASK, None]])
    assert lost_tries.run_to_end(airflow, "sales", tries=2) == "run-0"
    assert repeated == []


@pytest.mark.parametrize("log", [CLIENT, IMPORT])
def test_run_with_an_extra_try_that_airflow_lost_is_repeated(
    tmp_path: Path, repeated: list[str], log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    airflow = Airflow(tmp_path, [[log, TASK, None], [TASK, None]])
    assert lost_tries.run_to_end(airflow, "sales", tries=2) == "run-1"
    assert len(repeated) == 1
    assert "sales/run-0: load (try 1): " in capsys.readouterr().err


def test_run_that_failed_by_a_lost_try_is_repeated(tmp_path: Path, repeated: list[str]) -> None:
    airflow = Airflow(tmp_path, [[CLIENT], [None]])
    assert lost_tries.run_to_end(airflow, "sales") == "run-1"
    assert len(repeated) == 1


@pytest.mark.parametrize("log", [TASK, OURS, PLAIN_TIMEOUT, "", f"{CLIENT}\n{OURS}"])
def test_run_with_another_fault_is_never_repeated(tmp_path: Path, repeated: list[str], log: str) -> None:
    for number, plan in enumerate(([log], [log, None])):
        airflow = Airflow(tmp_path / str(number), [plan, [None]])
        with pytest.raises(lost_tries.UnexpectedEndError, match="load"):
            lost_tries.run_to_end(airflow, "sales", tries=1)
        assert airflow.runs == ["run-0"]
    assert repeated == []


def test_lost_try_does_not_excuse_another_failed_try(tmp_path: Path, repeated: list[str]) -> None:
    for number, plan in enumerate(([CLIENT, TASK], [CLIENT, TASK, None], [TASK, CLIENT, TASK, None])):
        airflow = Airflow(tmp_path / str(number), [plan, [None]])
        with pytest.raises(lost_tries.UnexpectedEndError):
            lost_tries.run_to_end(airflow, "sales", tries=1)
        assert airflow.runs == ["run-0"]
    assert repeated == []


def test_timeout_beside_a_traceback_of_ours_is_no_proof(tmp_path: Path, repeated: list[str]) -> None:
    server = tmp_path / "api-server.log"
    server.write_text(
        'Traceback (most recent call last):\n  File "/x/airflow_worker_insight/capture/claim.py", line 1\n'
    )
    airflow = Airflow(tmp_path / "logs", [[CLIENT, None], [None]], {"api-server": Component(server)})
    with pytest.raises(lost_tries.UnexpectedEndError, match="api-server: first error: Traceback"):
        lost_tries.run_to_end(airflow, "sales", tries=1)
    assert repeated == []


def test_try_lost_before_it_had_a_log_is_found_in_the_worker_output(tmp_path: Path, repeated: list[str]) -> None:
    worker = tmp_path / "w1.log"
    worker.write_text("[ERROR] Task execute_workload[celery-run-0-1] raised unexpected: ReadTimeout('timed out')\n")
    airflow = Airflow(tmp_path / "logs", [["", None], [None]], {"w1": Component(worker)})
    assert lost_tries.run_to_end(airflow, "sales", tries=1) == "run-1"
    assert len(repeated) == 1


def test_run_to_end_gives_up_after_its_repeats(tmp_path: Path) -> None:
    airflow = Airflow(tmp_path, [[CLIENT]] * 5)
    with pytest.raises(lost_tries.UnexpectedEndError):
        lost_tries.run_to_end(airflow, "sales")
    assert len(airflow.runs) == 1 + lost_tries.REPEATS


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "1"]])
def test_repeated_runs_are_counted_at_the_end(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(
        "from tests.integration.conftest import pytest_runtest_makereport, pytest_terminal_summary\n"
    )
    (tmp_path / "test_session.py").write_text(
        "from tests.support import lost_tries\n"
        "def test_that_passes():\n    lost_tries.repeated.append('sales/run-0: load (try 1): a reason')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "runs repeated because Airflow lost a try of them: 1" in done.stdout
    assert "test_session.py::test_that_passes: sales/run-0: load (try 1): a reason" in done.stdout
