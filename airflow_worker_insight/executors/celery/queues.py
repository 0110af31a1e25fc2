"""Dedicated queue of each Celery worker instance, set up by Celery's remote control.

Workers are started as usual. A remote control command makes a worker consume one more queue. It gets tasks through that
queue only once its own answer confirms that it consumes it. A restarted worker has forgotten the queue, which
distinguishes it from the instance before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_worker_insight.registry.sources.celery_consumers import Confirmations, QueueAnswers, consumer_arguments
from airflow_worker_insight.registry.sources.celery_control import (
    DEDICATED_QUEUE_PREFIX,
    TIMEOUTS,
    BrokerTimeouts,
    Call,
    broadcast,
    connected,
    require_fanout,
    require_remote_control,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def dedicated_queue(worker_id: str) -> str:
    """Return the name of a worker's dedicated queue."""
    return f"{DEDICATED_QUEUE_PREFIX}{worker_id}"


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
        answers = QueueAnswers()
        # Wait for all answers: of two workers with the same name, both must consume a queue.
        broadcast(app, connection, [Call("active_queues")], answers, timeouts=timeouts)
        consumed = answers.by_node
        missing = {node: queue for node, queue in add.items() if node in consumed and queue not in consumed[node]}
        surplus = {node: queue for node, queue in cancel.items() if queue in consumed.get(node, ())}
        calls = [Call("add_consumer", consumer_arguments(app, queue), [node]) for node, queue in missing.items()]
        calls += [Call("cancel_consumer", {"queue": queue}, [node]) for node, queue in surplus.items()]
        if calls:
            confirmed = Confirmations()
            broadcast(app, connection, calls, confirmed, expected=len(calls), timeouts=timeouts)
            for node in confirmed.nodes & missing.keys():
                consumed[node].add(missing[node])
            for node in confirmed.nodes & surplus.keys():
                consumed[node].discard(surplus[node])
    return {node: frozenset(queues) for node, queues in consumed.items()}
