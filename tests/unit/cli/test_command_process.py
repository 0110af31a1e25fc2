"""A command as a process: nothing but its answer on the standard output, and an end that tells of signals."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from airflow_worker_insight import cli, compat
from airflow_worker_insight.cli import process
from airflow_worker_insight.cli.arguments import ARG_LIMIT
from airflow_worker_insight.store import findings, migrate
from airflow_worker_insight.store.tables import worker
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.cli.test_command import ACTIONS
from tests.unit.database import NOON, OUR_COMMAND, a_worker, add_run, add_try, at
from tests.unit.findings import a_finding

if TYPE_CHECKING:
    from tests.unit.database import Database

ROOT = Path(cli.__file__).parent

STRUCTURED = [
    ["workers", "list"],
    ["workers", "show", "celery-1"],
    ["workers", "attempts", "celery-1"],
    ["attempts", "list"],
    ["placements", "list"],
    ["services", "list"],
    ["findings", "list"],
    ["findings", "show", "1"],
]

# --- the standard output ---------------------------------------------------------------------------------------------


def execute(database: Database, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with Airflow at its most talkative."""
    return subprocess.run(
        [sys.executable, *command],
        env={
            **os.environ,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
            **env,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


@pytest.fixture
def one_worker(database: Database) -> Database:
    with database.engine.begin() as connection:
        upsert_worker(connection, a_worker("celery-1"), now=NOON)
        findings.sync(connection, [a_finding()], now=NOON)
    return database


def test_every_command_with_structured_output_is_tried_here() -> None:
    with_output = {
        " ".join(names)
        for names, command in ACTIONS
        if any("--output" in arg.flags for arg in command.args) or ARG_LIMIT in command.args
    }
    assert with_output == {" ".join(command[:2]) for command in STRUCTURED}


@pytest.mark.parametrize("command", STRUCTURED, ids=" ".join)
def test_the_standard_output_holds_the_answer_whatever_airflow_logs(one_worker: Database, command: list[str]) -> None:
    done = execute(one_worker, "-c", OUR_COMMAND, *command, "--output", "json", "--verbose")
    rows = json.loads(done.stdout)
    assert isinstance(rows, list)
    if command in (["workers", "list"], ["workers", "show", "celery-1"]):
        assert rows[0]["worker_id"] == "celery-1"
    # It was talkative, also while it was imported and at its end.
    assert "DB connection pool" in done.stderr


def test_so_do_the_messages_of_python_and_of_libraries(one_worker: Database) -> None:
    loud = "import warnings, os; warnings.warn('a warning'); print('a library'); os.write(1, b'a C library')"
    script = "from airflow_worker_insight.cli import main; import atexit; atexit.register(print, 'the end'); main()"
    noisy = (
        "import airflow_worker_insight.cli.process as process\n"
        "real = process.answer\n"
        f"def answer():\n    {loud}\n    return real()\n"
        "process.answer = answer\n" + script
    )
    done = execute(one_worker, "-c", noisy, "workers", "list", "--output", "json")
    assert [row["worker_id"] for row in json.loads(done.stdout)] == ["celery-1"]
    for said in ("a warning", "a library", "a C library", "the end"):
        assert said in done.stderr


@pytest.mark.skipif(compat.airflow_version() < (3, 2), reason="Airflow reads a provider's commands from 3.2 on")
def test_under_airflows_own_command_nothing_follows_its_beginning(one_worker: Database) -> None:
    """What Airflow logs before it reads the first provider is on the standard output of all its commands."""
    command = ("-m", "airflow", "worker-insight", "workers", "list", "--output", "json", "--verbose")
    *before, answer = execute(one_worker, *command).stdout.splitlines()
    assert [row["worker_id"] for row in json.loads(answer)] == ["celery-1"]
    assert not [line for line in before if "airflow_worker_insight.store" in line]
    quiet = execute(one_worker, *command, AIRFLOW__LOGGING__LOGGING_LEVEL="INFO").stdout
    assert [row["worker_id"] for row in json.loads(quiet)] == ["celery-1"]


def test_a_command_prints_its_answer_or_says_that_it_is_none() -> None:
    """A plain ``print`` goes to the standard error while a command runs: not what whoever wrote it meant."""
    plain = [
        f"{path.name}:{node.lineno}"
        for path in sorted(ROOT.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and "file" not in {keyword.arg for keyword in node.keywords}
    ]
    assert plain == []


def test_who_reads_no_further_gets_no_traceback(one_worker: Database) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OUR_COMMAND, "workers", "list", "--output", "json"],
        env={**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": one_worker.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        command.stdout.close()
        _, said = command.communicate(timeout=120)
    assert command.returncode == 1
    assert "Traceback" not in said


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def history(database: Database) -> Database:
    """Have five Dag runs that ended, and five workers that left long ago."""
    with database.engine.begin() as connection:
        for number in range(5):
            add_try(connection, add_run(connection, run_id=f"run-{number}", ended_at=at(number)))
            upsert_worker(connection, a_worker(f"celery-{number}"), now=NOON)
        connection.execute(update(worker).values(state="lost", ended_at=NOON))
    return database


HISTORY, FLEET, DB = (f"airflow_worker_insight.cli.{name}" for name in ("history", "fleet", "db"))

LONG = {
    "backfill": ["backfill", "--dag-id", "etl"],
    "backfill, imported": [HISTORY, "backfill", "--dag-id", "etl"],
    "reconcile": [HISTORY, "reconcile", "--since", "2000-01-01"],
    "prune": [HISTORY, "prune", "--older-than", "2026-03-02", "--yes"],
    "db migrate": [DB, "db", "migrate"],
    "refresh": [FLEET, "refresh"],
}


def interrupt(database: Database, tmp_path: Path, *arguments: str, points: int = 12) -> list[dict[str, Any]]:
    """Run a command with a signal at many moments, each time on a copy of the database."""
    template, copy = tmp_path / "template.db", tmp_path / "copy.db"
    shutil.copyfile(database.url.removeprefix("sqlite:///"), template)
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.cli.interrupting", str(template), str(copy), str(points), *arguments],
        env={**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{copy}"},
        cwd=ROOT.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Airflow may log to the standard output while it is imported.
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


@pytest.mark.parametrize("command", LONG)
def test_what_was_interrupted_never_looks_done(history: Database, tmp_path: Path, command: str) -> None:
    if command == "db migrate":
        migrate.downgrade("base")
    for run in interrupt(history, tmp_path, *LONG[command]):
        number = signal.Signals(run["signal"])
        # Before the command listens, and after it is over, a signal ends it as it ends any process.
        assert run["ended"] in (128 + number, -number), run
        if run["ended"] > 0:
            assert f"Interrupted by {number.name}. " in run["error"]
        # Python itself tells of an exception that it drops, as one in a callback of an import.
        assert "Traceback" not in run["error"] or "Exception ignored in" in run["error"]


def test_a_signal_that_a_destructor_swallows_counts(capfd: pytest.CaptureFixture[str]) -> None:
    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    done = []
    before = signal.getsignal(signal.SIGINT)

    def batches() -> None:
        process.set_resume_hint("Begin again.")
        Swallows()
        done.append("the last batch")
        process.raise_if_interrupted()
        done.append("never")

    with pytest.raises(SystemExit) as end, process.command_process():
        batches()
    assert end.value.code == 130
    assert done == ["the last batch"]
    assert "Interrupted by SIGINT. Begin again." in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_after_a_signal_hides_it_not() -> None:
    def fails() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise OSError("the connection is gone") from None

    with pytest.raises(SystemExit) as end, process.command_process():
        fails()
    assert end.value.code == 143


def test_what_a_shell_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with process.command_process():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
