"""The dependency rules of the house, and what a task process pays for this package."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from tests.unit.database import Database

ROOT = Path(__file__).resolve().parents[2]

airflow_3 = pytest.mark.skipif(not compat.is_airflow_3(), reason="task processes of Airflow 2.11 record for themselves")
airflow_2 = pytest.mark.skipif(compat.is_airflow_3(), reason="task processes of Airflow 3 send a report")

TASK_PROCESS = """
import json, sys, types, uuid
{before}
from airflow import plugins_manager
def new_since(known):
    return sorted(set(sys.modules) - known)
known = set(sys.modules)
import airflow_worker_insight.plugin
{instance}
loaded = new_since(known)
known = set(sys.modules)
{hook}
print(json.dumps({{"loaded": loaded, "ran": new_since(known), "sent": sent}}))
"""

RUNNER = """
import airflow.sdk.execution_time.task_runner as task_runner
class CommsDecoder:
    def send(self, message):
        sent.append(message.key)
sent = []
"""

HOOK = """
task_runner.SUPERVISOR_COMMS = CommsDecoder()
from airflow_worker_insight.capture import listener, run_listener
names = dict(dag_id="etl", run_id="run-1", task_id="extract", map_index=-1)
task_instance = types.SimpleNamespace(id=uuid.uuid4(), hostname="host-1", executor=None, **names)
listener.on_task_instance_running(task_instance)
run_listener.on_task_instance_success(task_instance)
"""

# Airflow 2.11's has the models and the database before it looks for plugins.
RUNNER_2 = """
import airflow.cli.commands.task_command, airflow.listeners.listener, airflow.models.taskinstance
import airflow.task.task_runner.standard_task_runner
sent = []
"""

HOOK_2 = """
import datetime
from airflow_worker_insight.capture import listener
dag_run = types.SimpleNamespace(id=1, execution_date=datetime.datetime(2026, 1, 31, tzinfo=datetime.timezone.utc))
names = dict(dag_id="etl", run_id="run-1", task_id="extract", map_index=-1, try_number=1)
jobs = dict(job_id=7, queued_by_job_id=7, queued_dttm=None, external_executor_id=None)
listener.on_task_instance_running(
    types.SimpleNamespace(start_date=None, hostname="host-1", executor=None, dag_run=dag_run, **names, **jobs)
)
"""

OWN = {
    "airflow_worker_insight",
    "airflow_worker_insight.plugin",
    "airflow_worker_insight.compat",
    "airflow_worker_insight.compat.task_runtime",
    "airflow_worker_insight.config",
    "airflow_worker_insight.options",
    "airflow_worker_insight.domain",
    "airflow_worker_insight.domain.names",
    "airflow_worker_insight.capture",
    "airflow_worker_insight.capture.listener",
    "airflow_worker_insight.capture.hook_monitoring",
    "airflow_worker_insight.capture.run_listener",
    "airflow_worker_insight.capture.report",
}


OWN_2 = OWN | {
    "airflow_worker_insight.compat.metadata_database",
    "airflow_worker_insight.compat.stats",
    "airflow_worker_insight.metrics",
    "airflow_worker_insight.capture.counters",
    "airflow_worker_insight.capture.direct",
    "airflow_worker_insight.domain.attempts",
    "airflow_worker_insight.domain.clock",
    "airflow_worker_insight.domain.keys",
    "airflow_worker_insight.domain.limits",
    "airflow_worker_insight.domain.reasons",
    "airflow_worker_insight.domain.states",
    "airflow_worker_insight.domain.workers",
    "airflow_worker_insight.store",
    "airflow_worker_insight.store.attempts",
    "airflow_worker_insight.store.attempts.start",
    "airflow_worker_insight.store.dialects",
    "airflow_worker_insight.store.session",
    "airflow_worker_insight.store.tables",
    "airflow_worker_insight.store.workers",
    "airflow_worker_insight.store.workers.names",
    "airflow_worker_insight.store.workers.upsert",
}


def run_task_process(*, before: str, hook: str, **env: str) -> dict[str, Any]:
    """Return the modules that a task process loads for this package: with the plugin, and in the hooks."""
    script = TASK_PROCESS.format(
        before=before, instance="airflow_worker_insight.plugin.WorkerInsightPlugin()", hook=hook
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def task_process() -> dict[str, Any]:
    """Return what a task process of Airflow 3 loads."""
    return run_task_process(before=RUNNER, hook=HOOK)


def foreign(modules: list[str]) -> list[str]:
    """Return what is neither ours nor Python's own."""
    ours_or_pythons = {"airflow_worker_insight", *sys.stdlib_module_names}
    return [name for name in modules if name.partition(".")[0] not in ours_or_pythons]


@airflow_3
def test_the_plugin_loads_nothing_that_a_task_process_does_not_have(task_process: dict[str, Any]) -> None:
    # A task process loads this one by itself, after the task runner.
    assert set(foreign(task_process["loaded"])) <= {"airflow.sdk.plugins_manager"}


@airflow_3
def test_the_plugin_loads_only_the_front_of_this_package(task_process: dict[str, Any]) -> None:
    own = {name for name in task_process["loaded"] if name.startswith("airflow_worker_insight")}
    assert {name for name in own if not name.startswith("airflow_worker_insight.identity")} <= OWN


@airflow_3
def test_reporting_loads_nothing_more(task_process: dict[str, Any]) -> None:
    assert task_process["sent"] == ["__worker_insight_report__"]
    assert foreign(task_process["ran"]) == []
    assert not [name for name in task_process["ran"] if name.startswith("airflow_worker_insight")]


@airflow_3
def test_no_database_is_opened_in_a_task_process(task_process: dict[str, Any]) -> None:
    loaded = [*task_process["loaded"], *task_process["ran"]]
    heavy = ("api", "app", "capture.queue", "executors", "fab", "registry", "store", "ui")
    assert not [name for name in loaded if name.startswith(tuple(f"airflow_worker_insight.{room}" for room in heavy))]


@airflow_2
def test_recording_on_airflow_2_loads_nothing_that_its_task_process_does_not_have(database: Database) -> None:
    """Neither Alembic nor pydantic is needed to write a row: with them it cost the first task 100 ms."""
    found = run_task_process(before=RUNNER_2, hook=HOOK_2, AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=database.url)
    assert [row["task_id"] for row in database.attempts()] == ["extract"]
    loaded = [*found["loaded"], *found["ran"]]
    assert foreign(loaded) == []
    own = {name for name in loaded if name.startswith("airflow_worker_insight")}
    assert {name for name in own if not name.startswith("airflow_worker_insight.identity")} <= OWN_2


def test_the_command_loads_nothing_before_it_runs() -> None:
    """Airflow reads it at each start of its own command line."""
    script = (
        "import sys, airflow.cli.cli_config\n"
        "known = set(sys.modules)\n"
        "import airflow_worker_insight.cli as cli\n"
        "cli.get_commands()\n"
        "own = {name for name in sys.modules if name.startswith('airflow_worker_insight')}\n"
        "print(*sorted(own | set(sys.modules) - known))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    new = done.stdout.splitlines()[-1].split()
    assert foreign(new) == []
    own = {name for name in new if name.startswith("airflow_worker_insight")}
    # Airflow may have read the provider info before, which is made of the options.
    assert own - {"airflow_worker_insight.provider_info", "airflow_worker_insight.options"} == {
        "airflow_worker_insight",
        "airflow_worker_insight.cli",
        "airflow_worker_insight.cli.arguments",
        "airflow_worker_insight.cli.definitions",
        "airflow_worker_insight.domain",
        "airflow_worker_insight.domain.filters",
        "airflow_worker_insight.domain.findings",
        "airflow_worker_insight.domain.limits",
        "airflow_worker_insight.domain.parameters",
        "airflow_worker_insight.domain.reasons",
        "airflow_worker_insight.domain.states",
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and those for the type checker only count too: they are how circles are hidden."""
    paths = {
        path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", "."): path
        for path in (ROOT / "airflow_worker_insight").rglob("*.py")
    }
    imported: dict[str, set[str]] = {}
    for module, path in paths.items():
        imported[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = {f"{node.module}.{name.name}" for name in node.names}
                imported[module] |= {name if name in paths else node.module for name in names} & paths.keys()
    left = {module: names - {module} for module, names in imported.items()}
    while ends := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in ends}
    assert sorted(left) == []


def test_no_driver_is_asked_how_many_rows_were_written() -> None:
    """They disagree: `store.dialects.execute_and_count` and `row_count` know which can be believed."""
    asking = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "airflow_worker_insight").rglob("*.py"))
        if any(
            isinstance(node, ast.Attribute) and node.attr == "rowcount"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert asking == ["airflow_worker_insight/store/dialects.py"]


def test_versions_of_airflow_are_told_apart_in_compat_only() -> None:
    """Elsewhere a function of ``compat`` says what differs, not since which version."""
    package = ROOT / "airflow_worker_insight"
    checking = [
        f"{path.relative_to(package).as_posix()}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0] != "compat"
        for node in ast.walk(ast.parse(path.read_text()))
        if {getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "name", None)}
        & {"is_airflow_3", "airflow_version"}
        or (isinstance(node, ast.ImportFrom) and node.module == "airflow" and "__version__" in _names(node))
    ]
    assert checking == []


def _names(node: ast.ImportFrom) -> set[str]:
    return {name.name for name in node.names}


@pytest.mark.skipif(
    not compat.is_airflow_3(), reason="import-linter does not work with Airflow 2.11's rich; imports are the same"
)
def test_the_contracts_hold() -> None:
    pytest.importorskip("importlinter", reason="import-linter is installed for the newest Airflow only")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
