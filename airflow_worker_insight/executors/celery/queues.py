"""A queue of its own for each life of a Celery worker: made by Celery's remote control, with workers started as ever.

A worker is told to consume one more queue, and is given work through it only once its own answer says that it does. A
worker that starts anew has forgotten, which tells it from the life before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.names import NAME_LENGTH, clean
from airflow_worker_insight.registry.sources.celery import (
    OWN_QUEUE_PREFIX,
    Call,
    broadcast,
    connected,
    queue_names,
    require_fanout,
    require_remote_control,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def own_queue(worker_id: str) -> str:
    """Return the name of a worker's own queue."""
    return f"{OWN_QUEUE_PREFIX}{worker_id}"


def as_declared(app: Any, name: str) -> Any:
    """Return a queue as Celery declares it when it sends to one that it has not heard of.

    RabbitMQ refuses whoever declares it in another way: its type and priorities may have been configured.
    """
    queues = app.amqp.queues
    queue = queues.new_missing(name)
    queue.max_priority = queues.max_priority
    return queue


def sync_consumers(app: Any, *, give: Mapping[str, str], hold: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Have each worker consume its own queue, or not; return the queues that each one which answered consumes now.

    It waits for answers, some seconds at most, and raises what keeps it from asking.

    :param give: by node name the own queues of workers that are to be given work
    :param hold: the same of those that are to be given none: what waits there is for others to take
    """
    require_remote_control(app)
    with connected(app) as connection:
        require_fanout(connection)
        found = _Queues()
        # All answers are waited for: of two workers under one name both must have said it.
        broadcast(app, connection, [Call("active_queues")], found)
        consumed = found.by_node
        missing = {node: queue for node, queue in give.items() if node in consumed and queue not in consumed[node]}
        spare = {node: queue for node, queue in hold.items() if queue in consumed.get(node, ())}
        calls = [Call("add_consumer", _to_consume(app, queue), [node]) for node, queue in missing.items()]
        calls += [Call("cancel_consumer", {"queue": queue}, [node]) for node, queue in spare.items()]
        if calls:
            agreed = _Agreed()
            broadcast(app, connection, calls, agreed, expected=len(calls))
            for node in agreed.nodes & missing.keys():
                consumed[node].add(missing[node])
            for node in agreed.nodes & spare.keys():
                consumed[node].discard(spare[node])
    return {node: frozenset(queues) for node, queues in consumed.items()}


def _to_consume(app: Any, name: str) -> dict[str, Any]:
    """Return what a worker is told of a queue: what it would declare in another way by itself."""
    queue = as_declared(app, name)
    told: dict[str, Any] = {"queue": name}
    if queue.exchange.type != "direct":
        told["exchange_type"] = queue.exchange.type
    if queue.queue_arguments:
        told["queue_arguments"] = queue.queue_arguments
    return told


class _Answers:
    """Answers of workers, one of each; what is none is counted and passed by."""

    def __init__(self) -> None:
        self.ignored = 0
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def take(self, body: object) -> None:
        self._number += 1
        node, answer = _read(body)
        if node is None or not self._note(node, answer):
            self.ignored += 1

    def _note(self, node: str, answer: Any) -> bool:
        raise NotImplementedError


class _Queues(_Answers):
    """Answers to ``active_queues``; of two workers under one name, what both consume."""

    def __init__(self) -> None:
        super().__init__()
        self.by_node: dict[str, set[str]] = {}

    def _note(self, node: str, answer: Any) -> bool:
        queues = queue_names(answer)
        if queues is None:
            return False
        self.by_node[node] = queues & self.by_node.get(node, queues)
        return True


class _Agreed(_Answers):
    """The nodes that did as they were told."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: set[str] = set()

    def _note(self, node: str, answer: Any) -> bool:
        if not isinstance(answer, dict) or "ok" not in answer:
            return False
        self.nodes.add(node)
        return True


def _read(body: object) -> tuple[str | None, Any]:
    """Read an answer: an object with the worker's name as its only key."""
    if not isinstance(body, dict) or len(body) != 1:
        return None, None
    ((name, answer),) = body.items()
    return clean(name, NAME_LENGTH) or None, answer
