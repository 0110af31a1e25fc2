"""Measure four real Celery workers under Airflow's executor and under ours.

How evenly tasks are spread, what one slow worker costs, how many retries meet the worker again that failed them, and
how long it takes until tasks that waited at a killed worker run elsewhere.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.benchmarks.results import Grid, Result, Target
from tests.benchmarks.setting import distributions
from tests.support.deployment import Deployment
from tests.support.fleet import INSTANCE, start_worker, start_workers

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

PLAIN, OURS = EXECUTORS = {
    "CeleryExecutor": "CeleryExecutor",
    "WorkerInsightCeleryExecutor": "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor",
}

WORKERS = ("w1", "w2", "w3", "w4")
BROKEN, SLOW = WORKERS[0], WORKERS[-1]
TIMES_SLOWER = 10

UNEVEN_AT_MOST = 10.0
"""Percent that a worker may have more or less than its share."""

CLEARLY_BELOW = 0.95
"""Times what it takes on Airflow's own."""

DAGS = f"""
import os
import time

from airflow.sdk import dag, task

WORKER = os.environ.get({INSTANCE!r})


@dag(schedule=None, params={{"number": 1, "seconds": 0.0, "slow": ""}})
def short():
    @task
    def numbers(params):
        return list(range(int(params["number"])))

    @task
    def work(number, params):
        time.sleep(float(params["seconds"]) * ({TIMES_SLOWER} if WORKER == params["slow"] else 1))

    work.expand(number=numbers())


@dag(schedule=None, params={{"number": 1}})
def poisoned():
    @task
    def numbers(params):
        return list(range(int(params["number"])))

    @task(retries=20, retry_delay=1)
    def work(number):
        if WORKER == {BROKEN!r}:
            raise RuntimeError("this machine is broken")

    work.expand(number=numbers())


short()
poisoned()
"""


@dataclass(frozen=True)
class Found:
    """How many of a Dag run's tasks each worker ran, and how long the run took."""

    shares: dict[str, int]
    seconds: float

    @property
    def uneven(self) -> float:
        """How many percent the worker that is farthest from an even share is away from it."""
        share = sum(self.shares.values()) / len(WORKERS)
        return 100 * max(abs(self.shares.get(name, 0) - share) for name in WORKERS) / share


def spread(setting: Setting) -> Result:
    """Run short tasks, and tasks that fail on one worker only: on Airflow's own, and on ours."""
    found: dict[str, Found] = {}
    failed: dict[str, tuple[int, int]] = {}
    for name, executor in EXECUTORS.items():
        with _deployment(setting, executor, 2) as airflow:
            _begin(airflow)
            found[name] = _found(airflow, _run(airflow, "short", number=setting.size(500, 40), seconds=0))
            run_id = _run(airflow, "poisoned", number=setting.size(100, 16))
            failed[name] = _shares(airflow, run_id)[BROKEN], _shares(airflow, run_id, 2)[BROKEN]
    title = f"{setting.size(500, 40)} short tasks on four workers, two at once on each"
    grid = Grid(title, ("", *WORKERS, "farthest from even (%)", "seconds"))
    poisoned = Grid(f"Tasks that fail on {BROKEN} only", ("", "failed first", "first retry failed too", "%"))
    for name, result in found.items():
        grid.add(name, *(result.shares.get(worker, 0) for worker in WORKERS), result.uneven, result.seconds)
        first, again = failed[name]
        poisoned.add(name, first, again, 100 * again / first if first else 0.0)
    targets = [
        Target("spread: farthest from an even share", found[OURS].uneven, UNEVEN_AT_MOST, "%"),
        Target("spread: first retries on the worker that failed them", float(failed[OURS][1]), 0.0, "tries"),
    ]
    data = {name: {**vars(result), "uneven": result.uneven, "failed": failed[name]} for name, result in found.items()}
    return Result("spread", [grid, poisoned], targets, data, _versions(setting))


def slow(setting: Setting) -> Result:
    """Run tasks of which one worker takes ten times as long: on Airflow's own, and on ours."""
    number, seconds = setting.size(500, 60), float(setting.size(4, 1))
    found: dict[str, Found] = {}
    for name, executor in EXECUTORS.items():
        with _deployment(setting, executor, 4) as airflow:
            _begin(airflow)
            found[name] = _found(airflow, _run(airflow, "short", number=number, seconds=seconds, slow=SLOW))
    title = (
        f"{number} tasks of {seconds:.0f} s, of which {SLOW} takes {TIMES_SLOWER} times as long; four at once on each"
    )
    grid = Grid(title, ("", *WORKERS, "seconds"))
    for name, result in found.items():
        grid.add(name, *(result.shares.get(worker, 0) for worker in WORKERS), result.seconds)
    ratio = found[OURS].seconds / found[PLAIN].seconds
    targets = [Target("slow: the time, against Airflow's own", ratio, CLEARLY_BELOW, "times")]
    return Result("slow", [grid], targets, {name: vars(result) for name, result in found.items()}, _versions(setting))


def death(setting: Setting) -> Result:
    """Kill a worker several times; show when the tasks that waited there ran elsewhere."""
    grid = Grid(
        "SIGKILL of a worker, this package's timeouts as shipped: seconds until what waited there ran elsewhere",
        ("", "waited", "first", "last"),
    )
    found = _deaths(setting)
    for number, (waited, first, last) in enumerate(found, 1):
        grid.add(f"death {number}", waited, first, last)
    data = {"deaths": [{"waited": waited, "first": first, "last": last} for waited, first, last in found]}
    return Result("death", [grid], [], data, _versions(setting))


def _versions(setting: Setting) -> dict[str, str]:
    names = ("apache-airflow", "apache-airflow-providers-celery", "celery", "airflow-worker-insight")
    return distributions(setting.environment(), *names)


def _found(airflow: Deployment, run_id: str) -> Found:
    return Found(dict(_shares(airflow, run_id)), _took(airflow, run_id))


def _deployment(setting: Setting, executor: str, concurrency: int, **options: str) -> Deployment:
    return Deployment(
        setting.environment(),
        executor=executor,
        postgres=setting.postgres,
        redis=setting.redis,
        config={
            "celery.worker_concurrency": str(concurrency),
            "core.parallelism": "1000",
            "core.max_active_tasks_per_dag": "1000",
            # Leave the CPU to the tasks.
            "dag_processor.min_file_process_interval": "600",
            # Airflow's supervisor often notices the end of a short task only with its next heartbeat.
            "workers.min_heartbeat_interval": "1",
            **options,
        },
    )


def _begin(airflow: Deployment) -> None:
    airflow.write_dag("benchmark", DAGS)
    airflow.migrate()
    start_workers(airflow, *WORKERS, wait=False)
    airflow.start_all()
    airflow.wait_for(lambda: len(_living(airflow)) == len(WORKERS), 120, "all workers to be known")
    # Measure only once each worker has run a task.
    while set(_shares(airflow, _run(airflow, "short", number=16, seconds=1))) != set(WORKERS):
        pass


def _living(airflow: Deployment) -> list[dict[str, Any]]:
    return airflow.sql("SELECT engine_name FROM worker_insight_worker WHERE ended_at IS NULL AND engine_name LIKE 'w%'")


def _run(airflow: Deployment, dag_id: str, **params: object) -> str:
    run_id = airflow.trigger(dag_id, conf=params)
    airflow.wait_run(dag_id, run_id, timeout=1800, expect="success")
    return run_id


def _shares(airflow: Deployment, run_id: str, try_number: int = 1) -> Counter[str]:
    """Return how many tries of the mapped task each worker ran."""
    rows = airflow.sql(
        "SELECT w.engine_name, count(*) AS n FROM worker_insight_attempt a JOIN worker_insight_worker w"
        " ON w.id = a.worker_ref WHERE a.run_id = :run_id AND a.task_id = 'work' AND a.try_number = :number"
        " GROUP BY w.engine_name",
        run_id=run_id,
        number=try_number,
    )
    return Counter({row["engine_name"].removesuffix(f"@{socket.gethostname()}"): row["n"] for row in rows})


def _took(airflow: Deployment, run_id: str) -> float:
    """Return the seconds from when the mapped task was put into the queue to its last end."""
    (row,) = airflow.sql(
        "SELECT EXTRACT(EPOCH FROM max(end_date) - min(queued_dttm)) AS seconds FROM task_instance"
        " WHERE run_id = :run_id AND task_id = 'work'",
        run_id=run_id,
    )
    return float(row["seconds"])


def _deaths(setting: Setting) -> list[tuple[int, float, float]]:
    """Kill a worker several times; return the waiting tasks, and when the first and last ran."""
    found = []
    # The tries that a killed worker ran would keep the next death waiting for five minutes.
    with _deployment(setting, EXECUTORS[OURS], 4, **{"scheduler.task_instance_heartbeat_timeout": "30"}) as airflow:
        _begin(airflow)
        for _ in range(setting.size(3, 1)):
            run_id = airflow.trigger("short", conf={"number": 60, "seconds": 8})
            waiting = airflow.wait_for(lambda run_id=run_id: _waiting(airflow, run_id), 120, "tasks to wait")
            killed_at = time.time()
            airflow.kill(SLOW, descendants=True)
            begun = airflow.wait_for(
                lambda run_id=run_id, waiting=waiting: _begun(airflow, run_id, waiting), 600, "them to run elsewhere"
            )
            found.append((len(waiting), min(begun) - killed_at, max(begun) - killed_at))
            start_worker(airflow, SLOW, instance=SLOW)
            airflow.wait_run("short", run_id, timeout=1800)
            airflow.wait_for(lambda: len(_living(airflow)) == len(WORKERS), 300, "the new worker to be known")
    return found


def _waiting(airflow: Deployment, run_id: str) -> list[int]:
    """Return the tasks that wait at the worker to be killed, once four run and four wait."""
    rows = airflow.sql(
        "SELECT p.map_index, t.state FROM worker_insight_placement p"
        " JOIN worker_insight_worker w ON w.id = p.worker_ref"
        " JOIN task_instance t ON (t.run_id, t.task_id, t.map_index) = (p.run_id, p.task_id, p.map_index)"
        " WHERE p.is_open AND p.run_id = :run_id AND p.task_id = 'work' AND w.engine_name LIKE :name",
        run_id=run_id,
        name=f"{SLOW}@%",
    )
    states = Counter(row["state"] for row in rows)
    return (
        [row["map_index"] for row in rows if row["state"] == "queued"]
        if states["running"] == states["queued"] == 4
        else []
    )


def _begun(airflow: Deployment, run_id: str, waiting: list[int]) -> list[float]:
    """Return the start times of these tries, once all have started."""
    rows = airflow.sql(
        "SELECT EXTRACT(EPOCH FROM start_date) AS at FROM task_instance WHERE run_id = :run_id AND task_id = 'work'"
        " AND map_index = ANY(:waiting) AND state IN ('running', 'success')",
        run_id=run_id,
        waiting=waiting,
    )
    return [float(row["at"]) for row in rows] if len(rows) == len(waiting) else []
