"""Feed Celery's events of a fleet to a running Flower, and answer it as workers do."""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import filling  # type: ignore[import-not-found]
import traffic  # type: ignore[import-not-found]
from airflow.providers.celery.executors.celery_executor import app
from celery.events import EventDispatcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

TASK = "execute_workload"
LAST = "the_last_task"

AT_ONCE = 500
"""Number of tasks after which Flower must have read all events: Redis drops a client that lags behind."""


class Flower:
    """The API of the running Flower."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str) -> Any:
        """Return an answer of its API."""
        with urllib.request.urlopen(f"{self._url}{path}", timeout=300) as answer:
            return json.load(answer)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 600) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def is_taken_in(connection: Connection) -> bool:
    """Return whether Redis has delivered everything to its subscribers."""
    clients = connection.default_channel.client.client_list()
    return not any(int(client["omem"]) for client in clients if int(client["psub"]) or int(client["sub"]))


# --- events ----------------------------------------------------------------------------------------------------------


def workload(start: traffic.Start, task_id: str) -> str:
    """Return a try's workload as a Celery event shows it: the first 1,024 characters."""
    instance = {
        "id": task_id,
        "dag_version_id": str(UUID(int=1)),
        "task_id": start.task_id,
        "dag_id": start.run.dag_id,
        "run_id": start.run.run_id,
        "try_number": start.try_number,
        "map_index": start.map_index,
        "pool_slots": 1,
        "queue": "default",
        "priority_weight": 1,
    }
    found = {"token": "e" * 300, "ti": instance, "dag_rel_path": "dags.py", "bundle_info": {"name": "dags-folder"}}
    return repr((json.dumps(found),))[:1024]


def tell_of_workers(dispatchers: list[EventDispatcher], flower: Flower) -> None:
    """Send heartbeats of all workers until Flower knows them."""

    def known() -> bool:
        for dispatcher in dispatchers:
            dispatcher.send("worker-online", freq=2, sw_ident="py-celery", sw_ver="5.6.3", sw_sys="Linux")
            dispatcher.send(
                "worker-heartbeat",
                freq=2,
                sw_ident="py-celery",
                sw_ver="5.6.3",
                sw_sys="Linux",
                active=3,
                processed=1000,
                loadavg=[0.5, 0.4, 0.3],
            )
        with suppress(OSError):
            return len(flower.get("/api/workers?status=true")) >= len(dispatchers)
        return False

    wait_until(known, "Flower to know the workers")


def tell_of_tasks(connection: Connection, dispatchers: list[EventDispatcher], tasks: int) -> None:
    """Send the events of received, started and ended tasks."""
    numbers = count(1)
    starts = (start for start in traffic.events(tasks, len(dispatchers)) if isinstance(start, traffic.Start))
    for start in starts:
        number = next(numbers)
        by, task_id = dispatchers[start.worker], str(UUID(int=number << 64 | 0x4000800000000000 | number))
        last = number == tasks
        by.send(
            "task-received",
            uuid=task_id,
            name=LAST if last else TASK,
            args=workload(start, task_id),
            kwargs="{}",
            root_id=task_id,
            parent_id=None,
            retries=0,
            eta=None,
            expires=None,
        )
        by.send("task-started", uuid=task_id)
        if start.state == "success":
            by.send("task-succeeded", uuid=task_id, result="None", runtime=12.5)
        else:
            by.send("task-failed", uuid=task_id, exception="AirflowException('the task failed')", traceback="")
        if number % AT_ONCE == 0 or last:
            for dispatcher in dispatchers:
                dispatcher.flush()
            wait_until(lambda: is_taken_in(connection), "Flower to take in the events")


# --- inspections ---------------------------------------------------------------------------------------------

_QUEUE = {
    "name": "default",
    "routing_key": "default",
    "queue_arguments": None,
    "binding_arguments": None,
    "consumer_arguments": None,
    "durable": True,
    "exclusive": False,
    "auto_delete": False,
    "no_ack": False,
    "alias": None,
    "bindings": [],
    "no_declare": None,
    "expires": None,
    "message_ttl": None,
    "max_length": None,
    "exchange": {"name": "default", "type": "direct", "durable": True, "auto_delete": False, "delivery_mode": None},
    "max_length_bytes": None,
    "max_priority": None,
}
_STATS = {
    "total": {TASK: 1000},
    "pid": 4242,
    "clock": "81234",
    "uptime": 86400,
    "prefetch_count": 16,
    "pool": {
        "implementation": "celery.concurrency.prefork:TaskPool",
        "max-concurrency": 16,
        "processes": list(range(4243, 4259)),
        "max-tasks-per-child": "N/A",
        "put-guarded-by-semaphore": False,
        "timeouts": [0, 0],
        "writes": {"total": 1000, "avg": "0.06", "all": "0.06", "raw": "62", "strategy": "fair", "inqueues": {}},
    },
    "broker": {
        "hostname": "redis.prod.example.internal",
        "userid": None,
        "virtual_host": "0",
        "port": 6379,
        "insist": False,
        "ssl": False,
        "transport": "redis",
        "connect_timeout": 4,
        "transport_options": {},
        "login_method": None,
        "uri_prefix": None,
        "heartbeat": 0,
        "failover_strategy": "round-robin",
    },
    "rusage": dict.fromkeys(("utime", "stime", "maxrss", "ixrss", "idrss", "isrss", "minflt", "majflt", "nswap"), 1.0),
}


def answered(workers: dict[str, dict[str, Any]]) -> int:
    """Return how many workers have answered all of Flower's inspections."""
    return sum({"stats", "active_queues", "registered", "conf"} <= worker.keys() for worker in workers.values())


def ask_workers(flower: Flower, workers: int) -> None:
    """Let Flower inspect its workers; it may still wait for the inspection of its start."""
    for _ in range(3):
        if answered(flower.get("/api/workers?refresh=true")) == workers:
            return


def answer_while(connection: Connection, names: list[str], busy: threading.Thread) -> None:
    """Answer Flower's inspections for every worker until ``busy`` is done."""
    conf = {"broker_url": "redis://redis:6379/0", "task_default_queue": "default", "worker_concurrency": 16}
    handlers = {
        "stats": lambda _state: _STATS,
        "active_queues": lambda _state: [_QUEUE],
        "registered": lambda _state, **_: [TASK],
        "conf": lambda _state, **_: conf,
    }
    channel = connection.default_channel
    nodes = [app.control.mailbox.Node(name, channel=channel, handlers=handlers) for name in names]

    def answer(body: Any, _message: Any) -> None:
        if body.get("reply_to") and body["method"] in handlers:
            for node in nodes:
                node.handle_message(body)

    with nodes[0].Consumer(callbacks=[answer]):
        busy.start()
        while busy.is_alive():
            with suppress(socket.timeout):
                connection.drain_events(timeout=0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    args = parser.parse_args()
    flower = Flower(args.url)
    names = [filling.worker_record(number, traffic.BEGIN).name for number in range(args.workers)]
    begin = time.perf_counter()
    with app.connection_for_write() as connection:
        # A worker collects the events of tasks and sends several at once.
        dispatchers = [
            EventDispatcher(channel=connection.default_channel, app=app, hostname=name, buffer_group={"task"})
            for name in names
        ]
        tell_of_workers(dispatchers, flower)
        tell_of_tasks(connection, dispatchers, args.tasks)
        wait_until(lambda: bool(flower.get(f"/api/tasks?taskname={LAST}")), "Flower to know the last task")
        fed = time.perf_counter()
        answer_while(connection, names, threading.Thread(target=ask_workers, args=(flower, args.workers)))
    found = {
        "sent": args.tasks,
        "kept": len(flower.get("/api/tasks")),
        "workers": answered(flower.get("/api/workers")),
        "names": names[:60],
        "seconds": {"events": fed - begin, "answers": time.perf_counter() - fed},
    }
    args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
