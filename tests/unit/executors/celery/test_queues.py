"""Workers are told to consume a queue of their own, over a real broker; each worker here is a mailbox."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.executors.celery.queues import as_declared, dedicated_queue, sync_consumers
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.registry.sources import celery as engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.services import Redis

celery = pytest.importorskip("celery")

A, B = dedicated_queue("celery-a"), dedicated_queue("celery-b")


class Node:
    """The mailbox of one worker, which remembers the queues that it is told to consume."""

    def __init__(self, app: Any, name: str, *queues: str, obeys: bool = True) -> None:
        self.app = app
        self.name = name
        self.queues = set(queues)
        self.obeys = obeys
        self.told: list[str] = []
        self.declared: list[Any] = []
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        assert self._ready.wait(120)

    def _work(self) -> None:
        connection = self.app.connection_for_read()
        handlers = {
            "active_queues": lambda _state: [{"name": queue} for queue in sorted(self.queues)],
            "add_consumer": lambda _state, queue, **options: self._told("add", queue, **options),
            "cancel_consumer": lambda _state, queue: self._told("cancel", queue),
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

    def _told(self, what: str, queue: str, **options: Any) -> Any:
        self.told.append(f"{what} {queue}")
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
def app(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = celery.Celery("airflow.executors.celery_executor", broker=redis.broker_url())
    made.conf.update(accept_content=["json"], event_serializer="json")
    monkeypatch.setattr(engine, "QUIET_SECONDS", 0.5)
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


def test_a_worker_is_told_once_and_only_its_own(app: Any, nodes: Any) -> None:
    one, other = nodes("w1@host", "default"), nodes("w2@host", "default", B)
    give = {"w1@host": A, "w2@host": B}
    assert sync_consumers(app, give=give, hold={}) == {"w1@host": {"default", A}, "w2@host": {"default", B}}
    assert (one.told, other.told) == ([f"add {A}"], [])
    assert sync_consumers(app, give=give, hold={})["w1@host"] == {"default", A}
    assert one.told == [f"add {A}"]


@pytest.mark.parametrize("number", [121, 2_000])
def test_of_many_queues_all_count(app: Any, nodes: Any, number: int) -> None:
    queues = {f"queue-{each:04}" for each in range(number)}
    one = nodes("w1@host", *queues)
    assert sync_consumers(app, give={"w1@host": A}, hold={}) == {"w1@host": queues | {A}}
    # Its own queue is behind all others.
    assert sync_consumers(app, give={"w1@host": A}, hold={}) == {"w1@host": queues | {A}}
    assert one.told == [f"add {A}"]


def test_one_that_is_held_is_told_to_leave_its_queue(app: Any, nodes: Any) -> None:
    one = nodes("w1@host", "default", A)
    assert sync_consumers(app, give={}, hold={"w1@host": A}) == {"w1@host": {"default"}}
    assert one.told == [f"cancel {A}"]


def test_who_does_not_obey_or_answer_has_no_queue(app: Any, nodes: Any) -> None:
    nodes("w1@host", "default", obeys=False)
    assert sync_consumers(app, give={"w1@host": A, "gone@host": B}, hold={}) == {"w1@host": {"default"}}


def test_of_two_under_one_name_only_what_both_consume_counts(app: Any, nodes: Any) -> None:
    nodes("w1@host", "default", "large", A)
    second = nodes("w1@host", "default")
    assert sync_consumers(app, give={"w1@host": A}, hold={}) == {"w1@host": {"default", A}}
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
def test_whoever_sends_or_takes_back_declares_it_as_the_worker_does(
    app: Any, nodes: Any, settings: dict[str, Any]
) -> None:
    """RabbitMQ refuses to anybody who does not, and a task that cannot be sent fails."""
    app.conf.update(settings)
    one = nodes("w1@host", "default")
    sync_consumers(app, give={"w1@host": A}, hold={})
    (at_worker,) = one.declared
    assert seen_by_rabbitmq(at_worker) == seen_by_rabbitmq(app.amqp.queues[A]) == seen_by_rabbitmq(as_declared(app, A))


def seen_by_rabbitmq(queue: Any) -> Any:
    from kombu.transport.base import to_rabbitmq_queue_arguments

    arguments = to_rabbitmq_queue_arguments(queue.queue_arguments or {}, max_priority=queue.max_priority)
    exchange = (queue.exchange.name, queue.exchange.type, queue.exchange.durable)
    return queue.name, queue.routing_key, queue.durable, queue.auto_delete, arguments, exchange


def test_without_remote_control_nobody_is_asked(app: Any) -> None:
    app.conf.worker_enable_remote_control = False
    with pytest.raises(SourceUnavailableError, match="worker_enable_remote_control"):
        sync_consumers(app, give={"w1@host": A}, hold={})


def test_the_longest_id_makes_a_name_that_the_table_takes() -> None:
    assert len(dedicated_queue("x" * 64)) <= 100
