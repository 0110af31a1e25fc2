"""The numbers arrive where Airflow's own do, under names that it takes, and each is documented."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat, metrics
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.compat import stats as airflow_stats
from airflow_worker_insight.registry.gauges import MAX_KINDS, FleetGauges
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import worker
from airflow_worker_insight.store.workers import counts as worker_counts
from airflow_worker_insight.store.workers.counts import WorkerLoad
from tests.unit.database import Database, a_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_mock import MockerFixture
    from sqlalchemy.engine import Connection

ROOT = Path(__file__).parents[2]


# --- a real StatsD socket --------------------------------------------------------------------------------------------

PROCESS = """
import sys
from airflow_worker_insight import compat
from airflow_worker_insight.capture import claim, counters
from airflow_worker_insight.capture.reconcile import reconcile_runs
from airflow_worker_insight.registry.gauges import emit_gauges
from airflow_worker_insight.store import findings
from airflow_worker_insight.store.tables import worker
from tests.unit.database import Database, add_run, add_try, at
from tests.unit.findings import a_finding

database = Database(sys.argv[1])
if compat.is_airflow_3():
    from airflow_worker_insight.capture.claim import Claimer
    from tests.unit.bounds import ANY_MACHINE, ANY_MACHINE_EXPLAINS
    from tests.unit.capture.reports import a_report, a_running_try, push
    claim.install(Claimer(bounds=ANY_MACHINE, explain_bounds=ANY_MACHINE_EXPLAINS))
    one = a_running_try(database)
    push(one, a_report(one.try_id))
    push(a_running_try(database, "other"), "nonsense")
else:
    from airflow_worker_insight.capture import direct
    from tests.unit.capture.test_direct import a_task_instance
    direct.record(a_task_instance())
    counters.count("reports.dropped.malformed")
with database.engine.begin() as connection:
    ended = add_run(connection, run_id="ended")
    add_try(connection, ended)
    reconcile_runs(connection, [ended])
    connection.execute(worker.update().where(worker.c.host_only.is_(False)).values(
        kind="celery", name="w1@host-1", running=3, concurrency=4))
    findings.sync(connection, [a_finding()], now=at(700))
counters.count("runs.not_reconciled")
emit_gauges()
"""

COUNTED = {
    "worker_insight.reports.claimed:1|c",
    "worker_insight.reports.dropped.malformed:1|c",
    "worker_insight.tries.inferred:1|c",
    "worker_insight.runs.not_reconciled:1|c",
}


@pytest.fixture
def statsd() -> Iterator[socket.socket]:
    """Return the socket of a StatsD server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0)
        yield server


def what_arrives(statsd: socket.socket, database: Database, **options: str) -> set[str]:
    """Return what a process of this package sends, without Airflow's own prefix; times as ``T``."""
    settings = {"statsd_on": "True", "statsd_port": str(statsd.getsockname()[1]), **options}
    environment = {
        **os.environ,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        **{f"AIRFLOW__METRICS__{name.upper()}": value for name, value in settings.items()},
    }
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, database.url],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    arrived = set()
    while True:
        try:
            sent = statsd.recv(65536).decode()
        except BlockingIOError:
            break
        arrived.update(re.sub(r":[0-9.]+\|ms", ":T|ms", line) for line in sent.splitlines())
    return {line.removeprefix("airflow.") for line in arrived if line.startswith("airflow.worker_insight.")}


def test_the_numbers_arrive(statsd: socket.socket, database: Database) -> None:
    assert what_arrives(statsd, database) == {
        *COUNTED,
        "worker_insight.claim.duration:T|ms",
        "worker_insight.workers.online.celery:1|g",
        "worker_insight.workers.unresponsive.celery:0|g",
        "worker_insight.workers.lost.celery:0|g",
        "worker_insight.findings.open.failed:1|g",
        "worker_insight.findings.open.lost:0|g",
        "worker_insight.findings.open.slow:0|g",
    }


def test_where_there_are_tags_the_gauges_have_them(
    statsd: socket.socket, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__METRICS_PER_WORKER", "True")
    assert what_arrives(statsd, database, statsd_influxdb_enabled="True") == {
        *COUNTED,
        "worker_insight.claim.duration:T|ms",
        "worker_insight.workers,state=online,kind=celery:1|g",
        "worker_insight.workers,state=unresponsive,kind=celery:0|g",
        "worker_insight.workers,state=lost,kind=celery:0|g",
        "worker_insight.worker.running,worker=w1_host-1:3|g",
        "worker_insight.worker.concurrency,worker=w1_host-1:4|g",
        "worker_insight.findings.open,outcome=failed:1|g",
        "worker_insight.findings.open,outcome=lost:0|g",
        "worker_insight.findings.open,outcome=slow:0|g",
    }


def test_airflows_own_lists_hold_for_them(statsd: socket.socket, database: Database) -> None:
    blocked = "worker_insight.tries,worker_insight.workers,worker_insight.findings"
    arrived = what_arrives(statsd, database, metrics_block_list=blocked)
    assert arrived == {*COUNTED - {"worker_insight.tries.inferred:1|c"}, "worker_insight.claim.duration:T|ms"}


# --- names -----------------------------------------------------------------------------------------------------------


class Sent(list[tuple[Any, ...]]):
    """Stands for Airflow's stats."""

    def gauge(self, name: str, value: float, tags: dict[str, str] | None = None) -> None:
        self.append((name, value) if tags is None else (name, value, tags))


@pytest.fixture
def sent(mocker: MockerFixture) -> Sent:
    found = Sent()
    mocker.patch.object(airflow_stats, "stats", return_value=found)
    return found


@pytest.mark.parametrize(
    ("settings", "take"),
    [
        ({}, False),
        ({"statsd_on": "True"}, False),
        ({"statsd_on": "True", "statsd_influxdb_enabled": "True"}, True),
        ({"statsd_on": "True", "otel_on": "True"}, False),
        ({"otel_on": "True"}, True),
        ({"statsd_datadog_enabled": "True"}, True),
    ],
    ids=str,
)
def test_plain_statsd_has_no_tags(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], take: bool) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"AIRFLOW__METRICS__{name.upper()}", value)
    assert airflow_stats.stats_support_tags() is take


@pytest.mark.parametrize(("tags", "name"), [(False, "a.b@c d.e/ä,=x"), (True, "a.b@c d.e/ä,=x")])
def test_a_name_from_anywhere_is_one_that_airflow_takes(
    mocker: MockerFixture, sent: Sent, tags: bool, name: str
) -> None:
    mocker.patch.object(airflow_stats, "stats_support_tags", return_value=tags)
    metrics.gauge("worker.running", 3, worker=name)
    expected: tuple[Any, ...] = ("worker_insight.worker.running.a_b_c_d_e____x", 3)
    assert sent == [("worker_insight.worker.running", 3, {"worker": "a.b_c_d.e____x"}) if tags else expected]


def validator() -> Any:
    """Return what Airflow holds names against, for OpenTelemetry the strictest."""
    module = (
        "airflow._shared.observability.metrics.validators"
        if compat.airflow_version() >= (3, 2)
        else "airflow.metrics.validators"
    )
    return import_module(module).stat_name_otel_handler


@pytest.mark.parametrize("name", [*metrics.COUNTERS, *metrics.TIMERS, *metrics.GAUGES])
def test_airflow_takes_each_name(name: str) -> None:
    assert validator()("airflow", f"{metrics.PREFIX}.{name}") == f"airflow.{metrics.PREFIX}.{name}"


COUNT_CALLS = ("count", "counters.count", "self.counters.count")


def counted_in_the_code() -> Iterator[str]:
    """Yield a pattern for what each call of ``count`` in the package counts."""
    for path in (ROOT / "airflow_worker_insight").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in COUNT_CALLS:
                name = node.args[0]
                if isinstance(name, ast.Constant):
                    yield re.escape(str(name.value))
                elif isinstance(name, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else None for part in name.values)
                    yield "".join(r"\w+" if part is None else re.escape(str(part)) for part in parts)


def test_what_is_counted_is_listed_and_what_is_listed_is_counted() -> None:
    patterns = set(counted_in_the_code())
    assert len(patterns) > 5
    for pattern in patterns:
        assert [name for name in metrics.COUNTERS if re.fullmatch(pattern, name)], pattern
    for name in metrics.COUNTERS:
        assert [pattern for pattern in patterns if re.fullmatch(pattern, name)], name


def test_the_reasons_are_those_for_which_a_report_is_dropped() -> None:
    source = "".join(
        (ROOT / "airflow_worker_insight" / "capture" / name).read_text() for name in ("claim.py", "report_schema.py")
    )
    reasons = set(re.findall(r'RejectedReportError\(\s*"(\w+)"[,)]', source))
    assert {f"reports.dropped.{reason}" for reason in reasons} == {
        name for name in metrics.COUNTERS if name.startswith("reports.dropped.")
    }


def test_each_is_documented_and_nothing_else_is() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `worker_insight\.([\w.]+)`", page, re.MULTILINE))
    assert documented == {*metrics.COUNTERS, *metrics.TIMERS, *metrics.GAUGES}
    for name, told_apart_by in metrics.GAUGES.items():
        in_name = ".".join([f"worker_insight.{name}", *(part.upper() for part in told_apart_by)])
        assert f"`{in_name}`" in page
        for tag in told_apart_by:
            assert f"`{tag}`" in page


# --- the fleet -------------------------------------------------------------------------------------------------------


def add(connection: Connection, worker_id: str, **columns: Any) -> None:
    from airflow_worker_insight.store.workers.upsert import upsert_worker

    now = database_now(connection)
    upsert_worker(connection, a_worker(worker_id, kind=columns.pop("kind", "celery")), now=now)
    connection.execute(worker.update().where(worker.c.worker_id == worker_id).values(columns))


def test_workers_are_counted_by_kind_and_state(database: Database) -> None:
    with database.engine.begin() as connection:
        now = database_now(connection)
        add(connection, "c-1", state="online")
        add(connection, "c-2", state="online")
        add(connection, "c-3", state="unresponsive")
        add(connection, "e-1", kind="edge", state="lost", ended_at=now)
        # Who left in order, or was lost long ago, or of whom nothing is known, is no news.
        add(connection, "e-2", kind="edge", state="lost", ended_at=now - 2 * worker_counts.COUNT_LOST_FOR)
        add(connection, "l-1", kind="local", state="offline", ended_at=now)
        add(connection, "x-1", kind="other", state=None)
        assert worker_counts.count_workers(connection) == {
            ("celery", "online"): 2,
            ("celery", "unresponsive"): 1,
            ("celery", "lost"): 0,
            ("edge", "online"): 0,
            ("edge", "unresponsive"): 0,
            ("edge", "lost"): 1,
        }


def test_the_load_of_those_who_live_is_read(database: Database) -> None:
    with database.engine.begin() as connection:
        add(connection, "c-1", state="online", running=2, concurrency=4)
        add(connection, "c-2", state="lost", running=1)
        add(connection, "c-3", state="unresponsive")
        assert worker_counts.worker_loads(connection) == [
            WorkerLoad("c-1@host-1", 2, 4),
            WorkerLoad("c-3@host-1", None, None),
        ]


def test_a_gauge_of_a_kind_that_is_gone_becomes_zero(sent: Sent) -> None:
    fleet = FleetGauges()
    fleet.emit({("edge", "online"): 2})
    fleet.emit({("celery", "online"): 1})
    assert sent == [
        ("worker_insight.workers.online.edge", 2),
        ("worker_insight.workers.online.celery", 1),
        ("worker_insight.workers.online.edge", 0),
    ]


def test_kinds_that_workers_make_up_have_one_series_together(sent: Sent) -> None:
    fleet = FleetGauges()
    for round_ in range(3):
        made_up = {(f"kind{round_}.{number:02}", "online"): 1 for number in range(50)}
        sent.clear()
        fleet.emit({**made_up, ("celery", "online"): 7, ("local", "lost"): 1})
    kinds = {name.removeprefix("worker_insight.workers.").partition(".")[2] for name, _ in sent}
    assert len(kinds) == MAX_KINDS + 1
    assert ("worker_insight.workers.online.celery", 7) in sent
    assert ("worker_insight.workers.lost.local", 1) in sent
    assert ("worker_insight.workers.online.other", 50) in sent


def test_gauges_of_a_worker_that_is_gone_become_zero_once(sent: Sent) -> None:
    fleet = FleetGauges()
    fleet.emit({}, [WorkerLoad("w1", 2, 4), WorkerLoad("w2", None, 1)])
    fleet.emit({}, [WorkerLoad("w2", 1, 1)])
    fleet.emit({}, [WorkerLoad("w2", 1, 1)])
    assert [(name.removeprefix("worker_insight.worker."), value) for name, value in sent] == [
        ("running.w1", 2),
        ("concurrency.w1", 4),
        ("concurrency.w2", 1),
        ("running.w2", 1),
        ("concurrency.w2", 1),
        ("running.w1", 0),
        ("concurrency.w1", 0),
        ("running.w2", 1),
        ("concurrency.w2", 1),
    ]


def test_single_workers_are_told_of_only_where_an_operator_asks_for_it(
    database: Database, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.engine.begin() as connection:
        add(connection, "c-1", state="online", running=2)
    fleet = FleetGauges()
    fleet.update()
    assert not [name for name, *_ in sent if "c-1" in name]
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__METRICS_PER_WORKER", "True")
    fleet.update()
    assert ("worker_insight.worker.running.c-1_host-1", 2) in sent


def test_stats_that_fail_and_a_database_that_is_away_reach_nobody(database: Database, mocker: MockerFixture) -> None:
    fleet = FleetGauges()
    with database.engine.begin() as connection:
        add(connection, "c-1", state="online")
    stats = mocker.patch.object(airflow_stats, "stats", side_effect=OSError("away"))
    fleet.update()
    metrics.timing("claim.duration", seconds=1)
    assert stats.called
    mocker.stop(stats)
    mocker.patch.object(metadata_database, "engine", side_effect=OSError("away"))
    fleet.update()
