"""Celery's remote control: commands to workers over a connection with timeouts, and their answers.

Whoever reaches the broker can write an answer, so every answer is validated.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from airflow_worker_insight.capture.counters import warn_once
from airflow_worker_insight.domain.names import clean
from airflow_worker_insight.registry.observations import SourceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MAX_ANSWERS = 20_000
"""Maximum number of answers, and of ``worker-offline`` events, that one poll reads."""

DEDICATED_QUEUE_PREFIX = "worker-insight.worker."
"""Prefix of a worker's dedicated queue; the worker's ID follows."""

QUEUE_LENGTH = 256
"""Maximum characters of a queue's name, as in Airflow's ``task_instance.queue``."""

QUEUES_SIZE = 2**20
"""Maximum total length in characters of the names of one worker's queues.

Queues are given on the command line, which on Linux takes an eighth of that, so a longer answer was made up. It is
ignored as a whole: with only a part of a worker's queues, tasks of the other queues would wait.
"""


@dataclass(frozen=True, slots=True)
class BrokerTimeouts:
    """Time limits in seconds of polling the workers of a broker."""

    connect: float = 5.0
    """Of connecting and of each of the broker's replies."""
    idle: float = 2.0
    """Without an answer; workers answer at once unless they are busy starting or ending."""
    collect: float = 10.0
    """In which answers are collected."""
    poll: float = 30.0
    """Of polling one broker, whatever its client waits for."""
    enforce: float = 20.0
    """Of having workers stop or restart consuming queues, over all brokers."""
    cleanup: float = 10.0
    """Of removing ``worker-offline`` events from one broker."""
    total: float = 50.0
    """Of polling all brokers.

    It is shorter than ``leases.POLL_TIMEOUT``, after which another process may poll.
    """


TIMEOUTS = BrokerTimeouts()


def require_remote_control(app: Any) -> None:
    """Refuse an application whose workers accept no remote control commands.

    :raises SourceUnavailableError: with the reason
    """
    if not app.conf.worker_enable_remote_control:
        raise SourceUnavailableError(
            "Celery's remote control is off. Set [celery] worker_enable_remote_control to True."
        )


def require_fanout(connection: Any) -> None:
    """Refuse a broker without fanout exchanges: it cannot send a message to all workers.

    :raises SourceUnavailableError: with the reason
    """
    if "fanout" not in connection.transport.implements.exchange_type:
        raise SourceUnavailableError("Celery's remote control does not work with this broker. Use Redis or RabbitMQ.")


@contextmanager
def connected(app: Any, *, timeouts: BrokerTimeouts = TIMEOUTS) -> Iterator[Any]:
    """Yield a connection to the broker whose operations time out after a few seconds."""
    driver = app.connection_for_write().transport.driver_type
    options = {
        "redis": {
            "socket_timeout": timeouts.connect,
            "socket_connect_timeout": timeouts.connect,
            "retry_on_timeout": False,
        },
        "amqp": {"read_timeout": timeouts.connect, "write_timeout": timeouts.connect},
    }.get(driver, {})
    connection = app.connection_for_write(connect_timeout=timeouts.connect, transport_options=options)
    try:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeouts.connect)
        yield connection
    finally:
        connection.release()


class Call(NamedTuple):
    """One remote control command of Celery, to all workers or to some."""

    command: str
    arguments: Mapping[str, str] = {}
    nodes: Sequence[str] | None = None


class Answers(Protocol):
    """Collector of workers' answers; its length counts all answers, with the invalid ones."""

    ignored: int

    def __len__(self) -> int:
        """Return the number of answers."""

    def take(self, body: object) -> None:
        """Take an answer, which anyone who reaches the broker may have written."""


def broadcast(
    app: Any,
    connection: Any,
    calls: Sequence[Call],
    answers: Answers,
    *,
    expected: int = MAX_ANSWERS,
    timeouts: BrokerTimeouts = TIMEOUTS,
) -> None:
    """Send commands to workers and take their answers until there are no more.

    Celery's own ``broadcast`` sends over a connection without a timeout, raises on the first answer that it cannot
    decode, and goes on for as long as answers come.

    :param connection: of :func:`connected`
    :param expected: stop waiting after so many answers
    """
    from kombu import Consumer, Producer

    mailbox = app.control.mailbox
    channel = connection.channel()
    ticket = str(uuid.uuid4())
    # Named after the thread. Not ``mailbox.reply_queue``: that is the queue of the first thread that ever asked, while
    # ``mailbox.oid`` is of this thread, so answers would go to an address without a consumer (kombu 5.6.2, pidbox).
    queue = mailbox.get_reply_queue()(channel)
    queue.declare()
    ends_at = time.monotonic() + timeouts.collect

    def on_answer(body: object, message: Any) -> None:
        headers = message.headers
        if isinstance(headers, dict) and headers.get("ticket") == ticket:
            answers.take(body)

    def on_garbage(_message: Any, _error: Exception) -> None:
        answers.ignored += 1

    consumer = Consumer(
        channel, [queue], accept=mailbox.accept, no_ack=True, callbacks=[on_answer], on_decode_error=on_garbage
    )
    try:
        with consumer:
            producer = Producer(channel, auto_declare=False)
            for call in calls:
                producer.publish(
                    {
                        "method": call.command,
                        "arguments": dict(call.arguments),
                        "destination": None if call.nodes is None else list(call.nodes),
                        "pattern": None,
                        "matcher": None,
                        "ticket": ticket,
                        "reply_to": {"exchange": mailbox.reply_exchange.name, "routing_key": mailbox.oid},
                    },
                    exchange=mailbox.exchange.name,
                    declare=[mailbox.exchange],
                    # No "expires": workers compare it with their own clock.
                    headers={"clock": app.clock.forward(), "expires": 0},
                    serializer=mailbox.serializer,
                )
            while len(answers) < min(expected, MAX_ANSWERS) and (remaining := ends_at - time.monotonic()) > 0:
                try:
                    connection.drain_events(timeout=min(timeouts.idle, remaining))
                except TimeoutError:
                    break
    finally:
        best_effort(queue.delete, "could not remove its queue of answers")


def queue_names(answer: Any) -> set[str] | None:
    """Return all queues of an answer to ``active_queues``; ``None`` for an invalid one."""
    if not isinstance(answer, list):
        return None
    names: set[str] = set()
    size = 0
    for queue in answer:
        # Only unchanged: a name that is cut or cleaned would be another queue's.
        name = queue.get("name") if isinstance(queue, dict) else None
        if isinstance(name, str) and 0 < len(name) <= QUEUE_LENGTH and name == clean(name, QUEUE_LENGTH):
            names.add(name)
            size += len(name)
        if size > QUEUES_SIZE:
            return None
    return names


def best_effort(action: Callable[[], Any], failure: str) -> Any:
    """Do what a poll can do without; return ``None`` where it fails."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - brokers raise what they like
        warn_once(f"celery.{failure}", "Airflow Worker Insight %s: %s", failure, type(error).__name__)
        return None
