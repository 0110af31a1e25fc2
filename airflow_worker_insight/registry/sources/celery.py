"""CeleryExecutor: ask its workers through Celery's remote control.

Each poll sends one message to all workers of a broker, over its own connection with timeouts of a few seconds. Whoever
reaches the broker can write an answer, so every answer is validated.

A worker that shuts down sends the event ``worker-offline``, which reaches only the clients that listen at that moment.
On Redis the worker's mailbox tells later whether it shut down gracefully: a graceful shutdown removes the mailbox, any
other end leaves it. With RabbitMQ mailboxes vanish either way, so a queue of this package keeps the events there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from datetime import timedelta
from functools import cache, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import quote
from zlib import crc32

from airflow_worker_insight.compat import celery as airflow_celery
from airflow_worker_insight.domain.names import HOSTNAME_LENGTH, NAME_LENGTH, clean
from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry.observations import PollResult, SourceUnavailableError, WorkerObservation
from airflow_worker_insight.registry.sources import celery_consumers
from airflow_worker_insight.registry.sources.celery_control import (
    DEDICATED_QUEUE_PREFIX,
    MAX_ANSWERS,
    TIMEOUTS,
    BrokerTimeouts,
    Call,
    best_effort,
    broadcast,
    connected,
    queue_names,
    require_fanout,
    require_remote_control,
)
from airflow_worker_insight.registry.timeouts import CallTimeoutError, TimeLimitedCaller
from airflow_worker_insight.store import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from airflow_worker_insight.domain.enforcement import Answer, Request
    from airflow_worker_insight.registry.observations import PollContext, Remember

log = logging.getLogger(__name__)

EVENT_TRANSPORTS = frozenset({"amqp"})
"""kombu transports whose mailboxes do not tell how a worker ended: its ``worker-offline`` event does."""

QUEUES_EVERY = 10
"""One poll in so many asks for the workers' queues, which may change while they run."""

OFFLINE_EVENTS_TTL = timedelta(days=1)
"""How long RabbitMQ keeps ``worker-offline`` events and their queue while no process polls."""

MAX_SAME_NAME = 100
"""Maximum number of answers with the same name in one poll.

A few workers may share a name by mistake; more are made up.
"""

MAX_UPTIME = 10 * 365 * 86400
MAX_NUMBER = 2**31 - 1


@cache
def _caller_of(_broker: str) -> TimeLimitedCaller[Any]:
    """Return the caller of a broker: a broker that hangs does not block the others."""
    return TimeLimitedCaller("Celery's broker")


class CelerySource:
    """Source of the workers of one Celery application, or of several with teams."""

    name = SourceName.CELERY
    keeps_requests = False

    def __init__(
        self,
        teams: tuple[str | None, ...] = (None,),
        *,
        celery_app: Callable[[str | None], Any] = airflow_celery.celery_app,
        caller_of: Callable[[str], TimeLimitedCaller[Any]] = _caller_of,
        clock: Callable[[], float] = time.monotonic,
        timeouts: BrokerTimeouts = TIMEOUTS,
        max_answers: int = MAX_ANSWERS,
        event_transports: frozenset[str] = EVENT_TRANSPORTS,
    ) -> None:
        """Prepare polls.

        :param teams: the teams whose applications to poll
        :param celery_app: returns the application of a team
        :param caller_of: returns what calls a broker, one call at a time
        :param clock: returns seconds that never go back
        :param event_transports: kombu transports of which to keep ``worker-offline`` events
        """
        self._teams = teams
        self._celery_app = celery_app
        self._caller_of = caller_of
        self._clock = clock
        self._timeouts = timeouts
        self._max_answers = max_answers
        self._event_transports = event_transports

    def poll(self, context: PollContext) -> PollResult:
        """Return the workers that answered and those that shut down.

        A failure at one broker becomes the result's ``error``.
        """
        results, errors = [], []
        cleanups: list[Callable[[], None]] = []
        apps = self._apps()
        ends_at = self._clock() + self._timeouts.total
        for index, (broker, app) in enumerate(apps.items()):
            # A broker leaves its unused time to the next ones; one that hangs takes no more than its share.
            share = (ends_at - self._clock()) / (len(apps) - index)
            try:
                caller = self._caller_of(broker)
                result, digests = caller.call(
                    partial(self._poll_broker, app, context), seconds=min(self._timeouts.poll, share)
                )
                results.append(result)
                if digests:
                    cleanup = partial(self._remove_offline_events, app, digests)
                    cleanups.append(partial(caller.call, cleanup, seconds=self._timeouts.cleanup))
            except Exception as error:
                log.debug("Polling Celery's workers failed", exc_info=True)
                errors.append(_explanation(error, app))
        mailbox_sets = [result.mailboxes for result in results if result.mailboxes is not None]
        return PollResult(
            observations=tuple(observation for result in results for observation in result.observations),
            error=" ".join(dict.fromkeys(errors)) or None,
            mailboxes=frozenset().union(*mailbox_sets) if mailbox_sets and len(mailbox_sets) == len(results) else None,
            ignored=sum(result.ignored for result in results),
            on_written=partial(_run_cleanups, cleanups) if cleanups else None,
        )

    def enforce(self, request: Request, remember: Remember) -> dict[str, Answer]:
        """Have workers stop consuming their queues, or consume them again; return what each does now.

        :param remember: stores what workers consume, before they are told to stop

        :raises SourceUnavailableError: where a broker cannot be reached; the workers of the others are asked anew later
        """
        answers: dict[str, Answer] = {}
        apps = self._apps()
        for broker, app in apps.items():
            caller = self._caller_of(broker)
            try:
                answers |= caller.call(
                    partial(celery_consumers.enforce, app, request, remember, timeouts=self._timeouts),
                    seconds=self._timeouts.enforce / len(apps),
                )
            except Exception as error:
                raise SourceUnavailableError(_explanation(error, app)) from error
        return answers

    def _apps(self) -> dict[str, Any]:
        """Return the Celery applications by broker; applications that share one share its workers."""
        apps: dict[str, Any] = {}
        for team in self._teams:
            app = self._celery_app(team)
            apps.setdefault(str(app.conf.broker_write_url or app.conf.broker_url), app)
        return apps

    def _poll_broker(self, app: Any, context: PollContext) -> tuple[PollResult, frozenset[bytes]]:
        """Poll one broker; return the result, and digests of the events to remove once written."""
        require_remote_control(app)
        with connected(app, timeouts=self._timeouts) as connection:
            require_fanout(connection)
            # Read before the answers: a worker that answers after this event has not shut down.
            departed, digests = self._offline_events(app, connection)
            wants_queues = _wants_queues(context)
            answers = _Answers(_queues_observation if wants_queues else _stats_observation, context)
            broadcast(
                app,
                connection,
                [Call("active_queues" if wants_queues else "stats")],
                answers,
                expected=self._max_answers,
                timeouts=self._timeouts,
            )
            # Read after the answers: a worker that has just started has its mailbox by then.
            mailboxes = _mailboxes(app, connection)
        answered = {(observation.engine_name, observation.pid) for observation in answers.observations}
        # A worker that loses its connection sends the event too: one that answers has not shut down.
        departed = [
            observation
            for observation in departed
            if not answered & {(observation.engine_name, observation.pid), (observation.engine_name, None)}
        ]
        return PollResult((*answers.observations, *departed), mailboxes=mailboxes, ignored=answers.ignored), digests

    def _offline_events(self, app: Any, connection: Any) -> tuple[list[WorkerObservation], frozenset[bytes]]:
        """Return the workers that sent ``worker-offline``, and the digests of these messages.

        This package's queue keeps the messages; the digests find them again.
        """
        empty: tuple[list[WorkerObservation], frozenset[bytes]] = ([], frozenset())
        if connection.transport.driver_type not in self._event_transports:
            return empty
        return (
            best_effort(lambda: _read_offline_events(app, connection), "could not read worker-offline events") or empty
        )

    def _remove_offline_events(self, app: Any, digests: frozenset[bytes]) -> None:
        """Remove the events that were read before; leave those that came since."""
        with connected(app, timeouts=self._timeouts) as connection:
            for message in _offline_messages(app, connection):
                if _digest(message) in digests:
                    message.ack()


def _run_cleanups(cleanups: Iterable[Callable[[], None]]) -> None:
    for cleanup in cleanups:
        cleanup()


def _explanation(error: Exception, app: Any) -> str:
    """Return one line for operators, without the broker's password: the pages show it too."""
    if isinstance(error, (SourceUnavailableError, CallTimeoutError)):
        return clean(str(error), 400)
    text = str(error)
    for secret in _broker_secrets(app):
        text = text.replace(secret, "***")
    return clean(f"Celery's broker cannot be reached: {text or type(error).__name__}", 400)


def _broker_secrets(app: Any) -> list[str]:
    """Return the strings to mask: the broker's password, as it is and as quoted in a URL."""
    password = app.connection_for_write().password
    return [secret for secret in {password, quote(password or "", safe="")} if secret]


def _wants_queues(context: PollContext) -> bool:
    """Return whether this poll asks for queues; such answers do not register new workers.

    The poll before may have run in another process. It did not ask for queues if a worker that answered it has
    no queues recorded. Workers that never tell theirs make every second poll ask for queues.
    """
    answered = [
        instance
        for instance in context.instances
        if context.previous_started_at is not None
        and instance.engine_heartbeat_at is not None
        and context.previous_started_at <= instance.engine_heartbeat_at <= context.started_at
    ]
    if any(instance.queues is None for instance in answered):
        return True
    if context.previous_started_at is None or not answered:
        return False
    return _is_queue_poll(context.started_at, context.interval) and not _is_queue_poll(
        context.previous_started_at, context.interval
    )


def _is_queue_poll(moment: datetime, interval: timedelta) -> bool:
    """Return whether a moment is in one of every :data:`QUEUES_EVERY` intervals.

    These intervals are scattered by a hash: polls that are a multiple of intervals apart, as from cron, would otherwise
    hit all of them or none.
    """
    number = int(moment.timestamp() // interval.total_seconds())
    return crc32(str(number).encode()) % QUEUES_EVERY == 0


# --- remote control --------------------------------------------------------------------------------------------------


class _Answers:
    """The valid answers, as observations."""

    def __init__(
        self, parse: Callable[[str, Any, PollContext], WorkerObservation | None], context: PollContext
    ) -> None:
        self.observations: list[WorkerObservation] = []
        self.ignored = 0
        self._name_counts: Counter[str] = Counter()
        self._parse = parse
        self._context = context

    def __len__(self) -> int:
        return len(self.observations) + self.ignored

    def take(self, body: object) -> None:
        """Take an answer: an object with the worker's name as its only key."""
        observation = None
        if isinstance(body, dict) and len(body) == 1:
            (name, answer), *_ = body.items()
            observation = (
                self._parse(clean(name, NAME_LENGTH), answer, self._context) if clean(name, NAME_LENGTH) else None
            )
        if observation is None or self._name_counts[observation.engine_name] >= MAX_SAME_NAME:
            self.ignored += 1
        else:
            self._name_counts[observation.engine_name] += 1
            self.observations.append(observation)


def _stats_observation(name: str, answer: Any, context: PollContext) -> WorkerObservation | None:
    """Read an answer to ``stats``; return ``None`` for an invalid one."""
    if not isinstance(answer, dict):
        return None
    pid, uptime = answer.get("pid"), answer.get("uptime")
    if not _is_int_between(pid, 1, MAX_NUMBER) or not _is_int_between(uptime, 0, MAX_UPTIME):
        return None
    pool = answer.get("pool")
    concurrency = pool.get("max-concurrency") if isinstance(pool, dict) else None
    now = context.clock()
    return WorkerObservation(
        kind="celery",
        engine_name=name,
        hostname=_host(name),
        pid=pid,
        started_at=now - timedelta(seconds=uptime),
        heartbeat_at=now,
        concurrency=concurrency if _is_int_between(concurrency, 1, MAX_NUMBER) else None,
    )


def _queues_observation(name: str, answer: Any, context: PollContext) -> WorkerObservation | None:
    """Read an answer to ``active_queues``, which does not name the process."""
    names = queue_names(answer)
    if names is None:
        return None
    return WorkerObservation(
        kind="celery",
        engine_name=name,
        hostname=_host(name),
        heartbeat_at=context.clock(),
        # Without the dedicated queues, which this package's executor makes.
        queues=tuple(sorted(queue for queue in names if not queue.startswith(DEDICATED_QUEUE_PREFIX))),
        is_partial=True,
    )


def _is_int_between(value: object, minimum: int, maximum: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _host(name: str) -> str:
    """Return the host of a node: ``w1@host``."""
    return name.rpartition("@")[2][:HOSTNAME_LENGTH] or name[:HOSTNAME_LENGTH]


# --- graceful shutdowns ----------------------------------------------------------------------------------------------


def _mailboxes(app: Any, connection: Any) -> frozenset[str] | None:
    """Return the names of the workers with a mailbox on Redis; ``None`` for other brokers.

    A worker removes its mailbox when its remote control closes (``kombu.transport.redis.Channel.close``), which is its
    first step of a shutdown.
    """
    if connection.transport.driver_type != "redis":
        return None
    exchange = app.control.mailbox.exchange.name
    bindings = best_effort(lambda: connection.channel().get_table(exchange), "could not read the workers' mailboxes")
    if bindings is None:
        return None
    suffix = f".{exchange}"
    return frozenset(clean(queue.removesuffix(suffix), NAME_LENGTH) for *_, queue in bindings)


def _read_offline_events(app: Any, connection: Any) -> tuple[list[WorkerObservation], frozenset[bytes]]:
    """Read the events without removing them.

    A worker sends its event once, and writing what was read may fail.
    """
    observations, digests = [], set()
    for message in _offline_messages(app, connection):
        digests.add(_digest(message))
        observation = _offline_observation(best_effort(message.decode, "could not read a worker-offline event"))
        if observation is not None:
            observations.append(observation)
    return observations, frozenset(digests)


def _offline_messages(app: Any, connection: Any) -> Iterator[Any]:
    """Yield the messages of this package's queue; requeue those that were not acknowledged."""
    from celery.events.event import get_exchange
    from kombu import Queue

    # One queue per deployment: deployments may share a broker, and a consumed message is gone for the others.
    deployment = blake2b(session.database_name().encode(), digest_size=8).hexdigest()
    with connection.channel() as channel:
        queue = Queue(
            f"worker-insight.goodbyes.{deployment}",
            exchange=get_exchange(connection, name=app.conf.event_exchange),
            routing_key="worker.offline",
            durable=True,
            auto_delete=False,
            expires=OFFLINE_EVENTS_TTL.total_seconds(),
            message_ttl=OFFLINE_EVENTS_TTL.total_seconds(),
            max_length=MAX_ANSWERS,
        )(channel)
        queue.declare()
        messages: list[Any] = []
        while len(messages) < MAX_ANSWERS and (message := queue.get(accept=["json"])) is not None:
            messages.append(message)
        yield from messages
        for message in messages:
            if not message.acknowledged:
                message.requeue()


def _digest(message: Any) -> bytes:
    body = message.body
    return blake2b(body.encode() if isinstance(body, str) else bytes(body), digest_size=16).digest()


def _offline_observation(event: Any) -> WorkerObservation | None:
    if not isinstance(event, dict) or event.get("type") != "worker-offline":
        return None
    name, pid = clean(event.get("hostname"), NAME_LENGTH), event.get("pid")
    if not name or not _is_int_between(pid, 1, MAX_NUMBER):
        return None
    return WorkerObservation(kind="celery", engine_name=name, hostname=_host(name), pid=pid, has_left=True)
