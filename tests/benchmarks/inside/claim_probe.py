"""Send pairs of XComs to an API server as task processes do: a claimed one and another.

Both go through the same route, for a running try of its own each, with that try's own token, over one connection that
stays open. Which of the two comes first changes from pair to pair.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import filling  # type: ignore[import-not-found]
import requests
import traffic  # type: ignore[import-not-found]
from airflow.executors.base_executor import BaseExecutor
from sqlalchemy import text

from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.capture.report_schema import worker_record
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store.workers.upsert import upsert_worker

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerRecord

DAG_ID, RUN_ID, TASK_ID = "billing_export_hour_00", "manual__2026-03-01T00:00:00+00:00", "transform_partitions"
ORDINARY_KEY = "an_ordinary_key_of_the_same_length"[: len(REPORT_KEY)]

CLAIMS_PER_WORKER = 4
"""Each worker is known, but the first of its claims finds that it was not seen for an hour and writes that too.

A busy deployment does that once a minute for each worker.
"""

_DAG_RUN = """
INSERT INTO dag_run (dag_id, run_id, run_type, run_after, logical_date, start_date, state, clear_number)
VALUES (:dag_id, :run_id, 'scheduled', now(), now(), now(), 'running', 0)
"""

_TASK_INSTANCES = """
INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, start_date, state, try_number, max_tries, hostname,
       unixname, pool, pool_slots, queue, priority_weight, operator, queued_dttm, queued_by_job_id, pid, executor,
       updated_at)
VALUES (:id, :task_id, :dag_id, :run_id, :map_index, now(), 'running', 1, 3, :hostname,
       'airflow', 'default_pool', 1, 'default', 1, 'PythonOperator', now(), 1, 4242, 'CeleryExecutor', now())
"""


def make_running_tries(number: int) -> list[UUID]:
    """Write so many running task instances and return the IDs of their tries."""
    tries = [uuid4() for _ in range(number)]
    names = {"dag_id": DAG_ID, "run_id": RUN_ID}
    with metadata_database.engine().begin() as connection:
        connection.execute(text(_DAG_RUN), names)
        connection.execute(
            text(_TASK_INSTANCES),
            [
                {**names, "task_id": TASK_ID, "map_index": n, "id": str(try_id), "hostname": hostname(n // 2)}
                for n, try_id in enumerate(tries)
            ],
        )
    return tries


def hostname(pair: int) -> str:
    """Return the host of the worker that a report is of, which Airflow records for its try."""
    return str(described(pair).hostname)


def described(pair: int) -> WorkerRecord:
    """Return the worker that a report is of."""
    return filling.worker_record(pair // CLAIMS_PER_WORKER, traffic.BEGIN)  # type: ignore[no-any-return]


def make_workers(pairs: int) -> None:
    """Write the workers of all reports, as seen an hour ago."""
    with metadata_database.engine().begin() as connection:
        for number in range(0, pairs, CLAIMS_PER_WORKER):
            as_claimed = worker_record(report(number, uuid4())["worker"], job_id=None)
            upsert_worker(connection, as_claimed, now=datetime.now(timezone.utc) - timedelta(hours=1))


def report(number: int, try_id: UUID) -> dict[str, Any]:
    """Return a report as a Celery worker's task process sends it."""
    worker = described(number)
    names = ("worker_id", "name", "kind", "hostname", "pid", "labels", "resources", "versions")
    description = {name: getattr(worker, name) for name in names}
    return {
        "version": 1,
        "try_id": str(try_id),
        "worker": {**description, "started_at": traffic.BEGIN.isoformat()},
    }


class Sender:
    """Posts XComs as the supervisor's client does."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/execution/xcoms/{DAG_ID}/{RUN_ID}/{TASK_ID}"
        self.session = requests.Session()
        self.session.trust_env = False

    def post(self, key: str, value: Any, map_index: int, token: str) -> float:
        """Send one XCom and return how many milliseconds the request took."""
        request = self.session.prepare_request(
            requests.Request(
                "POST",
                f"{self.url}/{key}",
                params={"map_index": map_index},
                json=value,
                headers={"Authorization": f"Bearer {token}"},
            )
        )
        begin = time.perf_counter()
        answer = self.session.send(request)
        spent = time.perf_counter() - begin
        if answer.status_code != requests.codes.created:
            raise RuntimeError(f"{answer.status_code}: {answer.text}")
        return spent * 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--warm", type=int, default=30)
    args = parser.parse_args()
    pairs = args.pairs + args.warm
    tries = make_running_tries(2 * pairs)
    make_workers(pairs)
    generator = BaseExecutor(parallelism=1).jwt_generator
    tokens = [generator.generate({"sub": str(try_id), "scope": "execution"}, valid_for=3600) for try_id in tries]
    sender = Sender(args.url)
    found = []
    for pair in range(pairs):
        claimed, ordinary = 2 * pair, 2 * pair + 1
        keys = [(REPORT_KEY, claimed), (ORDINARY_KEY, ordinary)]
        spent = {
            key: sender.post(key, report(pair, tries[at]), at, tokens[at])
            for key, at in (keys if pair % 2 else reversed(keys))
        }
        found.append(
            {
                "claimed": spent[REPORT_KEY],
                "ordinary": spent[ORDINARY_KEY],
                "marks_worker": pair % CLAIMS_PER_WORKER == 0,
            }
        )
    with metadata_database.engine().connect() as connection:
        attempts = connection.execute(text("SELECT count(*) FROM worker_insight_attempt")).scalar_one()
        xcoms = connection.execute(text("SELECT key, count(*) FROM xcom GROUP BY key")).all()
    args.output.write_text(
        json.dumps(
            {
                "pairs": found[args.warm :],
                "attempts": attempts,
                "xcoms": dict(map(tuple, xcoms)),
                "expected": pairs,
                "report_bytes": len(json.dumps(report(0, tries[0]))),
            }
        )
    )


if __name__ == "__main__":
    main()
