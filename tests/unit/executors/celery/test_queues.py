"""Dedicated queues of workers, over a real broker; each worker here is a mailbox."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.executors.celery import queues
from airflow_worker_insight.executors.celery.queues import declared_queue, dedicated_queue
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.registry.sources.celery import BrokerTimeouts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.services import Redis

celery = pytest.importorskip("celery")

A, B = dedicated_queue("celery-a"), dedicated_queue("celery-b")

sync_consumers = partial(queues.sync_consumers, timeouts=BrokerTimeouts(idle=0.5))


class Node:
    """The mailbox of one worker, which notes the commands that it gets."""

    def __init__(self, app: Any, name: str, *queues: str, obeys: bool = True) -> None:
        self.app = app
        self.name = name
        self.queues = set(queues)
        self.obeys = obeys
        self.commands: list[str] = []
        self.declared: list[Any] = []
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        assert self._ready.wait(120)

    def _work(self) -> None:
        connection = self.app.connection_for_read()
        handlers = {
            "active_queues": lambda _state: [{"name": queue} for queue in sorted(self.queues)],
            "add_consumer": lambda _state, queue, **options: self._obey("add", queue, **options),
            "cancel_consumer": lambda _state, queue: self._obey("cancel", queue),
        }
        node = self.app.control.mailbox(connection).Node(
            self.name, state=None, channel=connection.channel(), handlers=handlers
        )
        node.listen()
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)
        self._ready.set()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
        connection.release()

    def _obey(self, what: str, queue: str, **options: Any) -> Any:
        self.commands.append(f"{what} {queue}")
        # As a worker of Celery does (Consumer.add_task_queue).
        options = {"exchange": queue, "exchange_type": "direct", **options}
        self.declared.append(self.app.amqp.Queues({}).add(queue, **options))
        if not self.obeys:
            return {"error": "no"}
        (self.queues.add if what == "add" else self.queues.discard)(queue)
        return {"ok": f"{what} consumer {queue}"}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


@pytest.fixture
def app(redis: Redis) -> Any:
    made = celery.Celery("airflow.executors.celery_executor", broker=redis.broker_url())
    made.conf.update(accept_content=["json"], event_serializer="json")
    return made


@pytest.fixture
def nodes(app: Any) -> Iterator[Any]:
    started: list[Node] = []

    def start(name: str, *queues: str, **others: Any) -> Node:
        started.append(Node(app, name, *queues, **others))
        return started[-1]

    yield start
    for node in started:
        node.stop()


def test_each_worker_is_told_once_to_consume_its_own_queue(app: Any, nodes: Any) -> None:
    node, other = nodes("w1@host", "default"), nodes("w2@host", "default", B)
    add = {"w1@host": A, "w2@host": B}
    assert sync_consumers(app, add=add, cancel={}) == {"w1@host": {"default", A}, "w2@host": {"default", B}}
    assert (node.commands, other.commands) == ([f"add {A}"], [])
    assert sync_consumers(app, add=add, cancel={})["w1@host"] == {"default", A}
    assert node.commands == [f"add {A}"]


@pytest.mark.parametrize("number", [121, 2_000])
def test_all_of_many_queues_count(app: Any, nodes: Any, number: int) -> None:
    queues = {f"queue-{each:04}" for each in range(number)}
    node = nodes("w1@host", *queues)
    assert sync_consumers(app, add={"w1@host": A}, cancel={}) == {"w1@host": queues | {A}}
    # Its own queue is behind all others.
    assert sync_consumers(app, add={"w1@host": A}, cancel={}) == {"w1@host": queues | {A}}
    assert node.commands == [f"add {A}"]


def test_held_worker_stops_consuming_its_queue(app: Any, nodes: Any) -> None:
    node = nodes("w1@host", "default", A)
    assert sync_consumers(app, add={}, cancel={"w1@host": A}) == {"w1@host": {"default"}}
    assert node.commands == [f"cancel {A}"]


def test_worker_that_does_not_obey_or_answer_has_no_queue(app: Any, nodes: Any) -> None:
    nodes("w1@host", "default", obeys=False)
    assert sync_consumers(app, add={"w1@host": A, "gone@host": B}, cancel={}) == {"w1@host": {"default"}}


def test_only_queues_that_both_workers_of_one_name_consume_count(app: Any, nodes: Any) -> None:
    nodes("w1@host", "default", "large", A)
    second = nodes("w1@host", "default")
    assert sync_consumers(app, add={"w1@host": A}, cancel={}) == {"w1@host": {"default", A}}
    assert A in second.queues


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"task_queue_max_priority": 10},
        {"task_create_missing_queue_type": "quorum"},
        {"task_create_missing_queue_exchange_type": "topic"},
    ],
    ids=["by default", "priorities", "quorum", "topic"],
)
def test_queue_is_declared_as_the_worker_declares_it(app: Any, nodes: Any, settings: dict[str, Any]) -> None:
    """RabbitMQ rejects any other declaration, and a task that cannot be sent fails."""
    app.conf.update(settings)
    node = nodes("w1@host", "default")
    sync_consumers(app, add={"w1@host": A}, cancel={})
    (at_worker,) = node.declared
    assert (
        seen_by_rabbitmq(at_worker) == seen_by_rabbitmq(app.amqp.queues[A]) == seen_by_rabbitmq(declared_queue(app, A))
    )


def seen_by_rabbitmq(queue: Any) -> Any:
    from kombu.transport.base import to_rabbitmq_queue_arguments

    arguments = to_rabbitmq_queue_arguments(queue.queue_arguments or {}, max_priority=queue.max_priority)
    exchange = (queue.exchange.name, queue.exchange.type, queue.exchange.durable)
    return queue.name, queue.routing_key, queue.durable, queue.auto_delete, arguments, exchange


def test_no_worker_is_polled_without_remote_control(app: Any) -> None:
    app.conf.worker_enable_remote_control = False
    with pytest.raises(SourceUnavailableError, match="worker_enable_remote_control"):
        sync_consumers(app, add={"w1@host": A}, cancel={})


def test_queue_of_the_longest_id_fits_into_the_table() -> None:
    assert len(dedicated_queue("x" * 64)) <= 100
