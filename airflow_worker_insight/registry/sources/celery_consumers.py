"""Consumers of Celery's workers: which queues they consume, and how to stop and restart that.

What a worker has fetched before it stops consuming a queue it still runs. A cancelled queue stays cancelled when the
worker connects to its broker again (``celery.app.amqp.Queues.deselect``), also if it was added again in between, but
not when the worker is restarted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.enforcement import NOTHING_REMEMBERED, Answer
from airflow_worker_insight.domain.names import NAME_LENGTH, clean
from airflow_worker_insight.registry.sources.celery_control import (
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
    from collections.abc import Iterable, Mapping

    from airflow_worker_insight.domain.enforcement import Request
    from airflow_worker_insight.registry.observations import Remember

NOT_CONSUMING = "It does not consume all of its queues again."
STILL_CONSUMING = "It still consumes a queue."


def enforce(
    app: Any, request: Request, remember: Remember, *, timeouts: BrokerTimeouts = TIMEOUTS
) -> dict[str, Answer]:
    """Have workers stop consuming their queues, or consume them again; return what each does now.

    The dedicated queues of this package's executor are left alone: the executor sends nothing to a worker that is not
    available. It waits for answers, some seconds at most, and raises whatever keeps it from reaching the workers.

    :param request: what to ask of which node
    :param remember: stores what nodes consume, before they are told to stop
    :return: by node name; a node that did not answer is missing
    """
    require_remote_control(app)
    nodes = sorted({*request.hold, *request.release, *request.released})
    with connected(app, timeouts=timeouts) as connection:
        require_fanout(connection)

        def ask() -> dict[str, frozenset[str]]:
            answers = QueueAnswers(with_any=True)
            # Wait for all answers: two workers may have the same name.
            broadcast(app, connection, [Call("active_queues", nodes=nodes)], answers, timeouts=timeouts)
            return {node: shared_queues(answers.by_node[node]) for node in nodes if node in answers.by_node}

        now = ask()
        calls = _cancellations(request, now) + _additions(app, request, now)
        if calls:
            remember({node: now[node] for node in request.hold & now.keys()})
            broadcast(app, connection, calls, Confirmations(), expected=len(calls), timeouts=timeouts)
            now = ask()
        fetched = _Fetched()
        if held := sorted(request.hold & now.keys()):
            broadcast(app, connection, [Call("reserved", nodes=held)], fetched, expected=len(held), timeouts=timeouts)
    return {node: _answer(node, request, queues, fetched) for node, queues in now.items()}


def _cancellations(request: Request, consumed: Mapping[str, frozenset[str]]) -> list[Call]:
    return [
        Call("cancel_consumer", {"queue": queue}, [node])
        for node in sorted(request.hold & consumed.keys())
        for queue in sorted(consumed[node])
    ]


def _additions(app: Any, request: Request, consumed: Mapping[str, frozenset[str]]) -> list[Call]:
    """Return the commands that give queues back.

    A worker that was told to stop and to start again loses its queues when it connects to its broker anew: Celery then
    consumes those that were never cancelled (``Queues.consume_from``). So a released worker that consumes none gets
    them back once more. One that consumes some is left alone: an operator may have removed others.
    """
    wanted = {
        **{node: queues for node, queues in request.released.items() if not consumed.get(node)},
        **request.release,
    }
    return [
        Call("add_consumer", consumer_arguments(app, queue), [node])
        for node, queues in sorted(wanted.items())
        if node in consumed
        for queue in queues
        if queue not in consumed[node]
    ]


def _answer(node: str, request: Request, queues: frozenset[str], fetched: _Fetched) -> Answer:
    consumed = tuple(sorted(queues))
    if node in request.hold:
        return Answer(bool(queues), consumed, fetched.by_node.get(node), STILL_CONSUMING if queues else None)
    remembered = request.release.get(node, ())
    if queues and queues >= set(remembered):
        return Answer(True, consumed)
    is_known = remembered or request.released.get(node)
    return Answer(False, consumed, error=NOT_CONSUMING if is_known else NOTHING_REMEMBERED)


def shared_queues(queues: Iterable[str]) -> frozenset[str]:
    """Return the queues without the dedicated ones, which this package's executor makes."""
    return frozenset(queue for queue in queues if not queue.startswith(DEDICATED_QUEUE_PREFIX))


def declared_queue(app: Any, name: str) -> Any:
    """Return a queue as Celery declares it when it sends to an unknown one.

    RabbitMQ rejects a declaration that differs: type and priorities of queues may have been configured.
    """
    queues = app.amqp.queues
    queue = queues.new_missing(name)
    queue.max_priority = queues.max_priority
    return queue


def consumer_arguments(app: Any, name: str) -> dict[str, Any]:
    """Return the arguments to consume a queue, where a worker's own declaration would differ."""
    queue = declared_queue(app, name)
    arguments: dict[str, Any] = {"queue": name}
    if queue.exchange.type != "direct":
        arguments["exchange_type"] = queue.exchange.type
    if queue.queue_arguments:
        arguments["queue_arguments"] = queue.queue_arguments
    return arguments


class NodeAnswers(ABC):
    """Answers of workers, one of each; invalid ones are counted and ignored."""

    def __init__(self) -> None:
        self.ignored = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, body: object) -> None:
        """Take an answer, which anyone who reaches the broker may have written."""
        self._count += 1
        node, answer = parse_answer(body)
        if node is None or not self._note(node, answer):
            self.ignored += 1

    @abstractmethod
    def _note(self, node: str, answer: Any) -> bool:
        """Note a worker's answer; return whether it is valid."""


class QueueAnswers(NodeAnswers):
    """Answers to ``active_queues``; for two workers with the same name, what both consume."""

    def __init__(self, *, with_any: bool = False) -> None:
        """Begin with no answer.

        :param with_any: of two workers with the same name take what either consumes, not what both do
        """
        super().__init__()
        self._with_any = with_any
        self.by_node: dict[str, set[str]] = {}

    def _note(self, node: str, answer: Any) -> bool:
        queues = queue_names(answer)
        if queues is None:
            return False
        known = self.by_node.get(node, queues)
        self.by_node[node] = queues | known if self._with_any else queues & known
        return True


class Confirmations(NodeAnswers):
    """Nodes that confirmed a command."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: set[str] = set()

    def _note(self, node: str, answer: Any) -> bool:
        if not isinstance(answer, dict) or "ok" not in answer:
            return False
        self.nodes.add(node)
        return True


def parse_answer(body: object) -> tuple[str | None, Any]:
    """Parse an answer: a mapping with the worker's name as its only key."""
    if not isinstance(body, dict) or len(body) != 1:
        return None, None
    ((name, answer),) = body.items()
    return clean(name, NAME_LENGTH) or None, answer


class _Fetched(NodeAnswers):
    """Answers to ``reserved``: how many tries each node has fetched and not begun."""

    def __init__(self) -> None:
        super().__init__()
        self.by_node: dict[str, int] = {}

    def _note(self, node: str, answer: Any) -> bool:
        if not isinstance(answer, list):
            return False
        self.by_node[node] = self.by_node.get(node, 0) + len(answer)
        return True
