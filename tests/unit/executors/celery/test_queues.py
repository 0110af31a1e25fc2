"""Dedicated queues of workers, over a real broker; each worker here is a mailbox."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.executors.celery import queues
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.registry.sources.celery_consumers import declared_queue
from airflow_worker_insight.registry.sources.celery_control import BrokerTimeouts
from tests.unit.celery_nodes import started_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.services import Redis

celery = pytest.importorskip("celery")

A, B = dedicated_queue("celery-a"), dedicated_queue("celery-b")

sync_consumers = partial(queues.sync_consumers, timeouts=BrokerTimeouts(idle=0.5))


@pytest.fixture
def app(redis: Redis) -> Any:
    made = celery.Celery("airflow.executors.celery_executor", broker=redis.broker_url())
    made.conf.update(accept_content=["json"], event_serializer="json")
    return made


@pytest.fixture
def nodes(app: Any) -> Iterator[Any]:
    with started_nodes(app) as start:
        yield start


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
