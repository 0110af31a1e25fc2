"""Dedicated queue of each Celery worker instance, set up by Celery's remote control.

Workers are started as usual. A remote control command makes a worker consume one more queue. It gets tasks through that
queue only once its own answer confirms that it consumes it. A restarted worker has forgotten the queue, which
distinguishes it from the instance before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.names import NAME_LENGTH, clean
from airflow_worker_insight.registry.sources.celery import (
    DEDICATED_QUEUE_PREFIX,
    TIMEOUTS,
    BrokerTimeouts,
    Call,
    broadcast,
    connected,
    queue_names,
    require_fanout,
    require_remote_control,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def dedicated_queue(worker_id: str) -> str:
    """Return the name of a worker's dedicated queue."""
    return f"{DEDICATED_QUEUE_PREFIX}{worker_id}"


def declared_queue(app: Any, name: str) -> Any:
    """Return a queue as Celery declares it when it sends to an unknown one.

    RabbitMQ rejects a declaration that differs: type and priorities of queues may have been configured.
    """
    queues = app.amqp.queues
    queue = queues.new_missing(name)
    queue.max_priority = queues.max_priority
    return queue


def sync_consumers(
    app: Any, *, add: Mapping[str, str], cancel: Mapping[str, str], timeouts: BrokerTimeouts = TIMEOUTS
) -> dict[str, frozenset[str]]:
    """Make workers consume their dedicated queues, or stop; return what each consumes now.

    It waits for answers, some seconds at most, and raises whatever keeps it from polling the workers.

    :param add: dedicated queues to consume, by the node names of workers that may get tasks
    :param cancel: dedicated queues to stop consuming, by the node names of workers that may not get tasks
    :return: the queues that each worker that answered consumes, by node name
    """
    require_remote_control(app)
    with connected(app, timeouts=timeouts) as connection:
        require_fanout(connection)
        answers = _QueueAnswers()
        # Wait for all answers: of two workers with the same name, both must consume a queue.
        broadcast(app, connection, [Call("active_queues")], answers, timeouts=timeouts)
        consumed = answers.by_node
        missing = {node: queue for node, queue in add.items() if node in consumed and queue not in consumed[node]}
        surplus = {node: queue for node, queue in cancel.items() if queue in consumed.get(node, ())}
        calls = [Call("add_consumer", _consumer_arguments(app, queue), [node]) for node, queue in missing.items()]
        calls += [Call("cancel_consumer", {"queue": queue}, [node]) for node, queue in surplus.items()]
        if calls:
            confirmed = _Confirmations()
            broadcast(app, connection, calls, confirmed, expected=len(calls), timeouts=timeouts)
            for node in confirmed.nodes & missing.keys():
                consumed[node].add(missing[node])
            for node in confirmed.nodes & surplus.keys():
                consumed[node].discard(surplus[node])
    return {node: frozenset(queues) for node, queues in consumed.items()}


def _consumer_arguments(app: Any, name: str) -> dict[str, Any]:
    """Return the arguments to consume a queue, where a worker's own declaration would differ."""
    queue = declared_queue(app, name)
    arguments: dict[str, Any] = {"queue": name}
    if queue.exchange.type != "direct":
        arguments["exchange_type"] = queue.exchange.type
    if queue.queue_arguments:
        arguments["queue_arguments"] = queue.queue_arguments
    return arguments


class _Answers(ABC):
    """Answers of workers, one of each; invalid ones are counted and ignored."""

    def __init__(self) -> None:
        self.ignored = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, body: object) -> None:
        self._count += 1
        node, answer = _parse_answer(body)
        if node is None or not self._note(node, answer):
            self.ignored += 1

    @abstractmethod
    def _note(self, node: str, answer: Any) -> bool:
        """Note a worker's answer; return whether it is valid."""


class _QueueAnswers(_Answers):
    """Answers to ``active_queues``; for two workers with the same name, what both consume."""

    def __init__(self) -> None:
        super().__init__()
        self.by_node: dict[str, set[str]] = {}

    def _note(self, node: str, answer: Any) -> bool:
        queues = queue_names(answer)
        if queues is None:
            return False
        self.by_node[node] = queues & self.by_node.get(node, queues)
        return True


class _Confirmations(_Answers):
    """Nodes that confirmed a command."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: set[str] = set()

    def _note(self, node: str, answer: Any) -> bool:
        if not isinstance(answer, dict) or "ok" not in answer:
            return False
        self.nodes.add(node)
        return True


def _parse_answer(body: object) -> tuple[str | None, Any]:
    """Parse an answer: a mapping with the worker's name as its only key."""
    if not isinstance(body, dict) or len(body) != 1:
        return None, None
    ((name, answer),) = body.items()
    return clean(name, NAME_LENGTH) or None, answer
