"""Our listeners are called, and Airflow does not count them: with its own listener manager, in a process of its own.

A listener manager lives as long as its process and cannot be cleaned, so each test starts an interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from airflow_worker_insight import compat

DAG = """
from datetime import datetime
from inspect import signature
try:
    from airflow.sdk import DAG, BaseOperator
except ImportError:
    from airflow.models import DAG, BaseOperator
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag

class WaitsInTheTriggerer(BaseOperator):
    end_from_trigger = True

with DAG("patient", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
    WaitsInTheTriggerer(task_id="wait")

def is_taken():
    bag = DagBag(dag_folder="/dev/null", collect_dags=False)
    extra = {"root_dag": dag} if "root_dag" in signature(bag.bag_dag).parameters else {}
    try:
        bag.bag_dag(dag=dag, **extra)
    except Exception as error:
        assert "end_from_trigger" in str(error), error
    return "patient" in bag.dags
"""

SCHEDULER = """
import json
from types import SimpleNamespace
import airflow.jobs.scheduler_job_runner
from airflow.listeners.listener import get_listener_manager
from airflow_worker_insight.capture import queue
{dag}
told = []
queue.queue = SimpleNamespace(put=lambda *names: told.append(names))
manager = get_listener_manager()
before = is_taken()
{starting}
after = is_taken()
run = SimpleNamespace(dag_id="etl", run_id="run-1")
manager.hook.on_dag_run_success(dag_run=run, msg="")
manager.hook.on_dag_run_failed(dag_run=run, msg="")
manager.hook.on_dag_run_running(dag_run=run, msg="")
print(json.dumps(dict(before=before, after=after, counted=manager.has_listeners, told=told)))
"""

TASK = """
import json, uuid
from types import SimpleNamespace
import airflow.sdk.execution_time.task_runner as task_runner
told = []
class CommsDecoder:
    def send(self, message):
        told.append(message.key)
task_runner.SUPERVISOR_COMMS = CommsDecoder()
try:
    from airflow.sdk.listener import get_listener_manager
except ImportError:
    from airflow.listeners.listener import get_listener_manager
manager = get_listener_manager()
manager.hook.on_starting(component=None)
names = dict(dag_id="etl", run_id="run-1", task_id="extract", map_index=-1)
one = SimpleNamespace(id=uuid.uuid4(), hostname="host-1", executor=None, **names)
manager.hook.on_task_instance_running(previous_state=None, task_instance=one)
print(json.dumps(dict(counted=manager.has_listeners, told=told)))
"""

STARTING = "manager.hook.on_starting(component=None)"


def run(script: str) -> dict[str, Any]:
    """Run a script in an interpreter of its own and return what it printed last."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_after_the_start_airflow_counts_no_listener_of_ours_and_calls_them_all_the_same() -> None:
    seen = run(SCHEDULER.format(dag=DAG, starting=STARTING))
    assert seen == {
        # What the trick is for: Airflow itself refuses the Dag as long as we are counted.
        "before": False,
        "after": True,
        "counted": False,
        "told": [["etl", "run-1"], ["etl", "run-1"]],
    }


def test_starting_again_calls_them_no_more_often() -> None:
    # A process that stands by for a database starts its job twice.
    seen = run(SCHEDULER.format(dag=DAG, starting=f"{STARTING}\n{STARTING}"))
    assert seen["told"] == [["etl", "run-1"], ["etl", "run-1"]]


@pytest.mark.skipif(not compat.is_airflow_3(), reason="a task process of Airflow 2.11 writes by itself")
def test_a_task_process_reports_once() -> None:
    assert run(TASK) == {"counted": False, "told": ["__worker_insight_report__"]}
