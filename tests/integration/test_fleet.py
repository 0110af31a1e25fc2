"""Worker liveness on real processes: workers and brokers that start, stop, die and return."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.domain.states import WorkerState
from tests.integration.accounting import attempts
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, witnessed
from tests.support.processes import MissingRequirementError, stop
from tests.support.services import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from tests.support.deployment import Component
    from tests.support.environments import Environment
    from tests.support.services import Postgres

HOST = socket.gethostname()
STATES = {None: None, **dict(enumerate(WorkerState.values(), 1))}
"""By their number in the database."""

INTERVAL = 3
QUICK = {
    "worker_insight.refresh_interval": str(INTERVAL),
    "worker_insight.heartbeat_timeout": "8",
    "worker_insight.lost_timeout": "12",
    # The Dag files do not change: leave the CPU to the workers.
    "dag_processor.min_file_process_interval": "600",
}

HELD_ON_W2 = (
    WITNESS
    + """
import time

from airflow.sdk import dag, task


@dag(schedule=None)
def held_on_w2():
    @task(queue="w2", retries=1, retry_delay=0)
    def held(**context):
        witness(context)
        while context["ti"].try_number == 1:
            time.sleep(0.1)

    held()


held_on_w2()
"""
)


@dataclass(frozen=True)
class WorkerInstance:
    """One row of our table of workers."""

    worker_id: str
    name: str
    kind: str
    state: str | None
    reason: str | None
    pid: int | None
    running: int | None
    queues: list[str] | None
    has_ended: bool


def fleet(airflow: Deployment) -> list[WorkerInstance]:
    """Return all worker instances in the order in which they became known."""
    rows = airflow.sql("SELECT * FROM worker_insight_worker WHERE NOT host_only ORDER BY id")
    return [
        WorkerInstance(
            worker_id=row["worker_id"],
            name=row["engine_name"],
            kind=row["kind"],
            state=STATES[row["state"]],
            reason=row["state_reason"],
            pid=row["pid"],
            running=row["running"],
            queues=row["queues"],
            has_ended=row["ended_at"] is not None,
        )
        for row in rows
    ]


def instances(airflow: Deployment, name: str) -> list[WorkerInstance]:
    """Return the instances of one name; a Celery worker's name is given without its host."""
    return [instance for instance in fleet(airflow) if instance.name in (name, f"{name}@{HOST}")]


def wait_states(airflow: Deployment, name: str, *states: str, timeout: float = 60) -> list[WorkerInstance]:
    """Wait until the instances of a name are in these states, the oldest first."""

    def found() -> list[WorkerInstance] | None:
        known = instances(airflow, name)
        return known if tuple(instance.state for instance in known) == states else None

    try:
        return airflow.wait_for(found, timeout, f"{name} to be {', '.join(states)}") or []
    except AssertionError as error:
        raise AssertionError(
            f"{error}\n{fleet(airflow)}\n{airflow.sql('SELECT * FROM worker_insight_engine')}"
        ) from None


def history(airflow: Deployment, instance: WorkerInstance) -> list[str | None]:
    """Return the states that an instance entered, in order."""
    rows = airflow.sql(
        "SELECT c.state FROM worker_insight_change c JOIN worker_insight_worker w ON w.id = c.worker_ref "
        "WHERE w.worker_id = :worker_id ORDER BY c.id",
        worker_id=instance.worker_id,
    )
    return [STATES[row["state"]] for row in rows]


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Deployment]:
    with Deployment(
        airflow_env("3.3.2"),
        executor="CeleryExecutor,airflow.providers.edge3.executors.EdgeExecutor",
        postgres=postgres,
        redis=redis,
        config={**QUICK, "edge.heartbeat_interval": "2", "api.workers": "2"},
    ) as airflow:
        airflow.write_dag("held_on_w2", HELD_ON_W2)
        airflow.migrate()
        airflow.start_all()
        yield airflow


def test_workers_are_known_before_their_first_try(airflow: Deployment) -> None:
    celery = {
        name: airflow.start("celery worker", "--queues", f"default,{name}", name=name, wait=False)
        for name in ("w1", "w2")
    }
    edge = airflow.start("edge worker", "--queues", "remote", name="edge-1", wait=False)
    for component in (*celery.values(), edge):
        airflow.wait_ready(component)
    for name, component in celery.items():
        (instance,) = wait_states(airflow, name, "online")
        assert (instance.kind, instance.pid, instance.running) == ("celery", component.pid, 0)
        airflow.wait_for(lambda: instances(airflow, name)[0].queues == ["default", name], 60, "its queues")  # noqa: B023
    (instance,) = wait_states(airflow, "edge-1", "online")
    assert (instance.kind, instance.queues) == ("edge", ["remote"])
    assert airflow.sql("SELECT count(*) AS n FROM worker_insight_attempt") == [{"n": 0}]


def test_worker_shut_down_gracefully_is_offline(airflow: Deployment) -> None:
    for name in ("w1", "edge-1"):
        airflow.stop(name)
        (instance,) = wait_states(airflow, name, "offline")
        assert instance.has_ended
        assert history(airflow, instance) == ["offline"]


def test_worker_killed_with_a_running_try_is_lost(airflow: Deployment) -> None:
    run_id = airflow.trigger("held_on_w2")
    airflow.wait_for(lambda: witnessed(airflow, "held_on_w2", run_id), 120, "the try to start")
    airflow.wait_for(lambda: instances(airflow, "w2")[0].running == 1, 60, "its try to be counted")
    airflow.kill("w2", descendants=True)
    (instance,) = wait_states(airflow, "w2", "lost")
    assert instance.has_ended
    assert history(airflow, instance) == ["unresponsive", "lost"]
    # Its running try names the worker and has not ended.
    ((_, attempt),) = attempts(airflow, "held_on_w2", run_id).items()
    assert [worker.pid for worker in attempt.workers] == [instance.pid]
    assert not attempt.closed


def test_restarted_worker_is_a_new_instance_under_the_same_name(airflow: Deployment) -> None:
    started = airflow.start("celery worker", "--queues", "default,w2", name="w2")
    old, new = wait_states(airflow, "w2", "lost", "online")
    assert (old.name, old.worker_id != new.worker_id, new.pid) == (new.name, True, started.pid)
    (attempt,) = airflow.sql(
        "SELECT w.worker_id FROM worker_insight_attempt a JOIN worker_insight_worker w ON w.id = a.worker_ref"
    )
    assert attempt["worker_id"] == old.worker_id, "the try still names the old instance"
    airflow.start("edge worker", "--queues", "remote", name="edge-1")
    wait_states(airflow, "edge-1", "offline", "online")


def test_first_try_belongs_to_the_instance_already_known(airflow: Deployment) -> None:
    """Celery and the worker's own report share one row."""
    before = fleet(airflow)
    airflow.write_dag(
        "once_on_w2", HELD_ON_W2.replace("held_on_w2", "once_on_w2").replace("while ", "while False and ")
    )
    run_id = airflow.trigger("once_on_w2")
    airflow.wait_run("once_on_w2", run_id, expect="success")
    (attempt,) = attempts(airflow, "once_on_w2", run_id).values()
    (_, instance) = instances(airflow, "w2")
    assert [worker.pid for worker in attempt.workers] == [instance.pid]
    assert [known.worker_id for known in fleet(airflow)] == [known.worker_id for known in before]


# --- decisions under Airflow's own executors -------------------------------------------------------------------------


def decide(airflow: Deployment, name: str, availability: str) -> None:
    """Decide on the latest instance of a name, as a user."""
    worker_id = instances(airflow, name)[-1].worker_id
    answer = airflow.api(
        "PATCH", f"/worker-insight/api/v1/workers/{worker_id}", json={"availability": availability, "note": "disk"}
    )
    assert answer.ok, answer.text


def wait_enforced(airflow: Deployment, name: str, *states: str | None) -> None:
    """Wait until the decision on each instance of a name has this state, the oldest first."""

    def found() -> list[str | None]:
        shown = (
            airflow.api("GET", f"/worker-insight/api/v1/workers/{instance.worker_id}").json()["enforcement"]
            for instance in instances(airflow, name)
        )
        return [None if enforcement is None else enforcement["state"] for enforcement in shown]

    airflow.wait_for(lambda: found() == list(states), 60, f"the decisions on {name} to be {states}")


def test_quarantine_keeps_work_off_a_celery_worker_also_after_its_restart(airflow: Deployment) -> None:
    airflow.write_dag("kept_off", HELD_ON_W2.replace("held_on_w2", "kept_off").replace("while ", "while False and "))
    decide(airflow, "w2", "quarantined")
    wait_enforced(airflow, "w2", None, "in_effect")
    airflow.stop("w2")
    airflow.start("celery worker", "--queues", "default,w2", name="w2")
    wait_enforced(airflow, "w2", None, None, "in_effect")

    run_id = airflow.trigger("kept_off")
    queued = "SELECT state FROM task_instance WHERE run_id = :run_id AND state = 'queued'"
    airflow.wait_for(lambda: airflow.sql(queued, run_id=run_id), 120, "the try to be sent to w2's queue")
    wait_polls(airflow, 2)
    assert not witnessed(airflow, "kept_off", run_id), "nobody consumes the queue"

    decide(airflow, "w2", "available")
    airflow.wait_run("kept_off", run_id, expect="success")
    wait_enforced(airflow, "w2", None, None, None)
    (attempt,) = attempts(airflow, "kept_off", run_id).values()
    assert [worker.pid for worker in attempt.workers] == [instances(airflow, "w2")[-1].pid]


def test_quarantined_edge_worker_goes_into_maintenance_and_comes_back(airflow: Deployment) -> None:
    decide(airflow, "edge-1", "quarantined")
    wait_enforced(airflow, "edge-1", None, "in_effect")
    (row,) = airflow.sql("SELECT state FROM edge_worker WHERE worker_name = 'edge-1'")
    assert row["state"] in ("maintenance pending", "maintenance mode")
    decide(airflow, "edge-1", "available")
    wait_enforced(airflow, "edge-1", None, None)


# --- the broker ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """Run a Redis that a test may stop."""
    try:
        server = Redis()
    except MissingRequirementError as missing:
        pytest.skip(str(missing))
    with server:
        yield server


def test_workers_are_unresponsive_and_never_lost_while_the_broker_is_down(
    airflow_env: Callable[[str], Environment], postgres: Postgres, own_redis: Redis
) -> None:
    with Deployment(
        airflow_env("3.3.2"), executor="CeleryExecutor", postgres=postgres, redis=own_redis, config=QUICK
    ) as airflow:
        airflow.migrate()
        airflow.start("api-server")
        airflow.start("celery worker", name="w1")
        (instance,) = wait_states(airflow, "w1", "online")
        server = own_redis._process
        assert server is not None

        # The broker hangs.
        server.send_signal(signal.SIGSTOP)
        (instance,) = wait_states(airflow, "w1", "unresponsive")
        assert "Celery's broker" in (instance.reason or "")
        server.send_signal(signal.SIGCONT)
        (instance,) = wait_states(airflow, "w1", "online")
        assert instance.reason is None

        # The broker is down for longer than lost_timeout.
        stop(server)
        (instance,) = wait_states(airflow, "w1", "unresponsive")
        wait_polls(airflow, round(airflow.seconds("worker_insight.lost_timeout") / INTERVAL) + 2)
        (instance,) = instances(airflow, "w1")
        assert instance.state == "unresponsive"
        assert "refused" in (instance.reason or "")
        assert airflow.api("GET", "/worker-insight/api/v1/health").ok
        own_redis.start()
        (instance,) = wait_states(airflow, "w1", "online", timeout=120)
        assert set(history(airflow, instance)) == {"unresponsive", "online"}
        assert instance.worker_id == wait_states(airflow, "w1", "online")[0].worker_id


def wait_polls(airflow: Deployment, number: int) -> None:
    """Wait until Celery was polled so many times."""
    seen: set[Any] = set()

    def enough() -> bool:
        (row,) = airflow.sql("SELECT looked_at FROM worker_insight_engine WHERE name = 'celery'")
        seen.add(row["looked_at"])
        return len(seen) > number

    airflow.wait_for(enough, 120, f"{number} polls")


# --- many servers ----------------------------------------------------------------------------------------------------


class Broadcasts:
    """Counts the broadcasts of Celery's remote control in the broker."""

    def __init__(self, redis: Redis, broker_url: str) -> None:
        self.times: list[float] = []
        self.commands: Counter[str] = Counter()
        self._listener = redis.client().pubsub()
        # Channels of Redis span all databases: Celery puts the database into their names.
        self._listener.psubscribe(f"/{broker_url.rpartition('/')[2]}.*celery.pidbox*")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._listener.close()

    def _count(self) -> None:
        while not self._stop.is_set():
            message = self._listener.get_message(timeout=0.2)
            if message is not None and message["type"] == "pmessage":
                self.times.append(time.monotonic())
                self.commands[_command(message["data"])] += 1


def _command(data: bytes) -> str:
    import base64

    body = json.loads(base64.b64decode(json.loads(data)["body"]))
    return str(body["method"])


@pytest.mark.timeout(1800)
def test_ten_servers_poll_celery_once_per_interval(
    airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis
) -> None:
    with Deployment(
        airflow_env("3.3.2"),
        executor="CeleryExecutor",
        postgres=postgres,
        redis=redis,
        config={**QUICK, "api.workers": "10"},
    ) as airflow:
        airflow.migrate()
        # Without the execution app, which takes each process many seconds to build.
        server = airflow.start("api-server", "--apps", "core", timeout=600)
        airflow.start("celery worker", name="w1")
        airflow.wait_for(lambda: started_serving(server) == 10, 600, "ten serving processes")
        wait_states(airflow, "w1", "online")
        assert airflow._broker is not None
        with Broadcasts(redis, airflow._broker) as seen:
            airflow.wait_for(lambda: len(seen.times) >= 10, 120, "ten broadcasts")
        lasted = seen.times[-1] - seen.times[0]
        # Uncoordinated servers would poll ten times per interval. (This process may see some of them late.)
        assert len(seen.times) - 1 <= lasted / INTERVAL + 2.5, seen.times
        assert set(seen.commands) <= {"stats", "active_queues"}
        wait_states(airflow, "w1", "online")


def started_serving(server: Component) -> int:
    """Count the processes of an API server that have entered their lifespan."""
    return server.output().count("Application startup complete")
