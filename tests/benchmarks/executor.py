"""Four real Celery workers under Airflow's own executor and under the one that places tasks.

How evenly tasks are spread, what one slow worker costs, how many retries meet the worker again that failed them, and
how long it takes until what waited at a worker that was killed runs elsewhere.
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

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

PLAIN = "CeleryExecutor"
OURS = "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor"

WORKERS = ("w1", "w2", "w3", "w4")
BROKEN, SLOW = WORKERS[0], WORKERS[-1]
TIMES_SLOWER = 10

UNEVEN_AT_MOST = 10.0
"""Percent that a worker may have more or less than its share."""

DAGS = """
import os
import time

from airflow.sdk import dag, task

WORKER = os.environ.get("BENCHMARK_WORKER")


@dag(schedule=None, params={"number": 1, "seconds": 0.0, "slow": ""})
def short():
    @task
    def numbers(params):
        return list(range(int(params["number"])))

    @task
    def work(number, params):
        time.sleep(float(params["seconds"]) * (TIMES_SLOWER if WORKER == params["slow"] else 1))

    work.expand(number=numbers())


@dag(schedule=None, params={"number": 1})
def poisoned():
    @task
    def numbers(params):
        return list(range(int(params["number"])))

    @task(retries=20, retry_delay=1)
    def work(number):
        if WORKER == "BROKEN":
            raise RuntimeError("this machine is broken")

    work.expand(number=numbers())


short()
poisoned()
""".replace("TIMES_SLOWER", str(TIMES_SLOWER)).replace('"BROKEN"', repr(BROKEN))


@dataclass(frozen=True)
class Found:
    """What one executor did."""

    shares: dict[str, int]
    seconds: float
    slowed_seconds: float
    slowed_shares: dict[str, int]
    failed_first: int
    failed_again: int

    @property
    def uneven(self) -> float:
        """How many percent the worker that is farthest from an even share is away from it."""
        share = sum(self.shares.values()) / len(WORKERS)
        return 100 * max(abs(self.shares.get(name, 0) - share) for name in WORKERS) / share


def run(setting: Setting) -> Result:
    """Run the same on both, one after the other, and the death of a worker on ours."""
    plain, ours = (_one(setting, executor) for executor in (PLAIN, OURS))
    deaths = _deaths(setting)
    both = (("CeleryExecutor", plain), ("WorkerInsightCeleryExecutor", ours))
    spread = Grid(
        f"{sum(ours.shares.values())} short tasks on four workers, two at once on each",
        ("", *WORKERS, "farthest from even (%)", "seconds"),
    )
    slowed = Grid(
        f"{sum(ours.slowed_shares.values())} tasks of {_seconds(setting):.0f} s, {SLOW} takes {TIMES_SLOWER} times as"
        " long; four at once on each",
        ("", *WORKERS, "seconds"),
    )
    poisoned = Grid(f"Tasks that fail on {BROKEN} only", ("", "failed first", "first retry failed too", "%"))
    for name, one in both:
        spread.add(name, *(one.shares.get(worker, 0) for worker in WORKERS), one.uneven, one.seconds)
        slowed.add(name, *(one.slowed_shares.get(worker, 0) for worker in WORKERS), one.slowed_seconds)
        percent = 100 * one.failed_again / one.failed_first if one.failed_first else 0.0
        poisoned.add(name, one.failed_first, one.failed_again, percent)
    death = Grid(
        "SIGKILL of a worker, this package's timeouts as shipped: seconds until what waited there ran elsewhere",
        ("", "waited", "first", "last"),
    )
    for number, (waited, first, last) in enumerate(deaths, 1):
        death.add(f"death {number}", waited, first, last)
    targets = [
        Target("executor: farthest from an even share", ours.uneven, UNEVEN_AT_MOST, "%"),
        Target(
            "executor: one slow worker, against Airflow's own",
            ours.slowed_seconds / plain.slowed_seconds,
            0.95,
            "times",
        ),
        Target("executor: first retries on the worker that failed them", float(ours.failed_again), 0.0, "tries"),
    ]
    data = {
        **{name: {**vars(one), "uneven": one.uneven} for name, one in both},
        "deaths": [{"waited": waited, "first": first, "last": last} for waited, first, last in deaths],
    }
    names = ("apache-airflow", "apache-airflow-providers-celery", "celery", "airflow-worker-insight")
    versions = distributions(setting.environment(), *names)
    return Result("executor", [spread, slowed, poisoned, death], targets, data, versions)


def _seconds(setting: Setting) -> float:
    return float(setting.size(4, 1))


def _deployment(setting: Setting, executor: str, concurrency: int, **others: str) -> Deployment:
    return Deployment(
        setting.environment(),
        executor=executor,
        postgres=setting.postgres,
        redis=setting.redis,
        config={
            "celery.worker_concurrency": str(concurrency),
            "core.parallelism": "1000",
            "core.max_active_tasks_per_dag": "1000",
            # The processor's time is the tasks'.
            "dag_processor.min_file_process_interval": "600",
            # Airflow's supervisor often notices the end of a short task only with its next heartbeat.
            "workers.min_heartbeat_interval": "1",
            **others,
        },
    )


def _begin(airflow: Deployment) -> None:
    airflow.write_dag("benchmark", DAGS)
    airflow.migrate()
    for name in WORKERS:
        airflow.start("celery worker", name=name, env={"BENCHMARK_WORKER": name}, wait=False)
    airflow.start_all()
    for name in WORKERS:
        airflow.wait_ready(airflow.components[name])
    airflow.wait_for(lambda: len(_living(airflow)) == len(WORKERS), 120, "all workers to be known")
    # Nothing is measured before each has run something.
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


def _one(setting: Setting, executor: str) -> Found:
    with _deployment(setting, executor, 2) as airflow:
        _begin(airflow)
        run_id = _run(airflow, "short", number=setting.size(500, 40), seconds=0)
        shares, seconds = _shares(airflow, run_id), _took(airflow, run_id)
        run_id = _run(airflow, "poisoned", number=setting.size(100, 16))
        failed_first = _shares(airflow, run_id)[BROKEN]
        failed_again = _shares(airflow, run_id, 2)[BROKEN]
    with _deployment(setting, executor, 4) as airflow:
        _begin(airflow)
        run_id = _run(airflow, "short", number=setting.size(500, 60), seconds=_seconds(setting), slow=SLOW)
        slowed = _took(airflow, run_id)
        return Found(dict(shares), seconds, slowed, dict(_shares(airflow, run_id)), failed_first, failed_again)


def _deaths(setting: Setting) -> list[tuple[int, float, float]]:
    """Kill a worker some times; return how many tasks waited there and when the first and last of them ran."""
    found = []
    # The tries that a killed worker ran would keep the next death waiting for five minutes.
    with _deployment(setting, OURS, 4, **{"scheduler.task_instance_heartbeat_timeout": "30"}) as airflow:
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
            airflow.start("celery worker", name=SLOW, env={"BENCHMARK_WORKER": SLOW})
            airflow.wait_run("short", run_id, timeout=1800)
            airflow.wait_for(lambda: len(_living(airflow)) == len(WORKERS), 300, "the new worker to be known")
    return found


def _waiting(airflow: Deployment, run_id: str) -> list[int]:
    """Return what waits at the worker that is to be killed, once it runs four and four wait."""
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
    """Return when these tries began, once all have."""
    rows = airflow.sql(
        "SELECT EXTRACT(EPOCH FROM start_date) AS at FROM task_instance WHERE run_id = :run_id AND task_id = 'work'"
        " AND map_index = ANY(:waiting) AND state IN ('running', 'success')",
        run_id=run_id,
        waiting=waiting,
    )
    return [float(row["at"]) for row in rows] if len(rows) == len(waiting) else []
