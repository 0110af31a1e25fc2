"""``services list``."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert

from airflow_worker_insight.compat import metadata_database
from tests.unit.cli.fleet import add_worker, looked_at
from tests.unit.cli.running import Printed, read

if TYPE_CHECKING:
    from tests.unit.database import Database


@pytest.fixture
def services(database: Database) -> Database:
    """Have a scheduler that runs, a triggerer that has ended, and a worker."""
    looked_at(database)
    add_worker(database, "c-1", hostname="w")
    now = datetime.now(timezone.utc)
    with database.engine.begin() as connection:
        for number, (job_type, state) in enumerate([("SchedulerJob", "running"), ("TriggererJob", "success")], 1):
            ended = {"end_date": now} if state == "success" else {}
            times = {"start_date": now, "latest_heartbeat": now}
            row = {"id": number, "job_type": job_type, "state": state, "hostname": "h", **times, **ended}
            connection.execute(insert(metadata_database.job_table()).values(row))
    return database


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], {("scheduler", "online"), ("triggerer", "offline"), ("worker", "online")}),
        (["--kind", "scheduler"], {("scheduler", "online")}),
        (["--state", "online"], {("scheduler", "online"), ("worker", "online")}),
        (["--kind", "worker", "--state", "lost"], set()),
    ],
    ids=str,
)
def test_services_are_listed(
    services: Database, capsys: Printed, options: list[str], found: set[tuple[str, str]]
) -> None:
    del services
    rows = read(capsys, "services", "list", *options)
    assert {(row["kind"], row["state"]) for row in rows} == found


def test_a_service_is_named_and_timed(services: Database, capsys: Printed) -> None:
    del services
    (row,) = read(capsys, "services", "list", "--kind", "worker")
    assert (row["service_id"], row["hostname"], row["ended_at"]) == ("c-1", "w", None)
