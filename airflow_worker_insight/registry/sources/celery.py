"""CeleryExecutor: its workers answer when they are asked through Celery's remote control.

Each look sends one message to all workers of a broker, over a connection of its own that gives up after seconds. What
comes back was written by whoever reaches the broker, so nothing of it is believed unseen.

Celery's workers say goodbye only to those who listen at that moment. What tells later whether one left in order or died
is its mailbox on Redis, which goes with an orderly end and stays after any other; with RabbitMQ mailboxes vanish either
way, but a queue of our own keeps the goodbyes.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard
from urllib.parse import quote
from zlib import crc32

from airflow_worker_insight.capture.counters import warn_once
from airflow_worker_insight.compat import celery as airflow_celery
from airflow_worker_insight.domain.names import HOSTNAME_LENGTH, NAME_LENGTH, clean
from airflow_worker_insight.domain.states import CELERY
from airflow_worker_insight.registry.observations import PollResult, SourceUnavailableError, WorkerObservation
from airflow_worker_insight.registry.timeouts import Bounded, NoAnswerError
from airflow_worker_insight.store import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from airflow_worker_insight.registry.observations import PollContext

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""How long connecting, and each answer of the broker, may take."""

QUIET_SECONDS = 2.0
"""No answer for so long, and there will be none: workers answer at once or are busy starting or ending."""

COLLECT_SECONDS = 10.0
"""How long answers are collected in all."""

LOOK_SECONDS = 30.0
"""How long a look at one broker may take, whatever its client waits for."""

FORGET_SECONDS = 10.0
"""How long removing goodbyes from one broker may take."""

ALL_SECONDS = 50.0
"""How long the looks at all brokers may take: whoever looks has less than ``leases.LOOK_TAKES`` until another may."""

MAX_ANSWERS = 20_000
"""Answers, and goodbyes, that one look reads."""

QUEUES_EVERY = 10
"""One of so many looks asks the workers for their queues instead, which they may change while they run."""

GOODBYES_KEPT = timedelta(days=1)
"""How long RabbitMQ keeps goodbyes, and their queue, while nobody looks."""

MAX_SAME_NAME = 100
"""Answers under one name that a look takes: a few workers may have one by mistake, more are made up."""

OWN_QUEUE_PREFIX = "worker-insight.worker."
"""What the name of a worker's own queue begins with; behind it stands the worker's ID."""

QUEUE_LENGTH = 256
"""Characters of a queue's name, as Airflow's ``task_instance.queue`` takes them: no task names a longer one."""

QUEUES_SIZE = 2**20
"""Characters of all names of one worker's queues. On Linux a command line, where they are given, takes an eighth of
that: an answer with more was made up. None of it is taken, because a part of the queues would keep tasks waiting."""

MAX_UPTIME = 10 * 365 * 86400
MAX_NUMBER = 2**31 - 1

_bounded: dict[str, Bounded[Any]] = {}
"""By broker, so that one that hangs keeps nobody from asking the others."""


class CelerySource:
    """Asks the workers of one Celery application, or with teams of several."""

    name = CELERY

    def __init__(self, teams: tuple[str | None, ...] = (None,)) -> None:
        self._teams = teams

    def look(self, view: PollContext) -> PollResult:
        """Return the workers that answered and those that said goodbye; what failed at one broker is its error."""
        looks, errors = [], []
        forget: list[Callable[[], None]] = []
        apps = _apps(self._teams)
        ends_at = time.monotonic() + ALL_SECONDS
        for asked, (broker, app) in enumerate(apps.items()):
            # What one does not need is there for those after it, and one that hangs takes no more than its share.
            share = (ends_at - time.monotonic()) / (len(apps) - asked)
            try:
                bounded = _bounded.setdefault(broker, Bounded("Celery's broker"))
                found, goodbyes = bounded.ask(partial(_look, app, view), seconds=min(LOOK_SECONDS, share))
                looks.append(found)
                if goodbyes:
                    question = partial(_forget_goodbyes, app, goodbyes)
                    forget.append(partial(bounded.ask, question, seconds=FORGET_SECONDS))
            except Exception as error:
                log.debug("Looking at Celery's workers failed", exc_info=True)
                errors.append(_explanation(error, app))
        known = [one.mailboxes for one in looks if one.mailboxes is not None]
        return PollResult(
            sightings=tuple(sighting for one in looks for sighting in one.sightings),
            error=" ".join(dict.fromkeys(errors)) or None,
            mailboxes=frozenset().union(*known) if known and len(known) == len(looks) else None,
            ignored=sum(one.ignored for one in looks),
            on_written=partial(_do_all, forget) if forget else None,
        )


def _do_all(actions: Iterable[Callable[[], None]]) -> None:
    for action in actions:
        action()


def _apps(teams: tuple[str | None, ...]) -> dict[str, Any]:
    """Return the Celery applications by their brokers: those that share one share its workers."""
    apps: dict[str, Any] = {}
    for team in teams:
        app = airflow_celery.celery_app(team)
        apps.setdefault(str(app.conf.broker_write_url or app.conf.broker_url), app)
    return apps


def _explanation(error: Exception, app: Any) -> str:
    """Return one line for an operator: readers of the pages see it too, so without the broker's password."""
    if isinstance(error, (SourceUnavailableError, NoAnswerError)):
        return clean(str(error), 400)
    text = str(error)
    for secret in _passwords(app):
        text = text.replace(secret, "***")
    return clean(f"Celery's broker cannot be reached: {text or type(error).__name__}", 400)


def _passwords(app: Any) -> list[str]:
    """Return what must not be shown: the password as Celery's client has it, and as it stands in an address."""
    password = app.connection_for_write().password
    return [secret for secret in {password, quote(password or "", safe="")} if secret]


def _look(app: Any, view: PollContext) -> tuple[PollResult, frozenset[bytes]]:
    """Return what a broker's workers say, and which goodbyes are to be forgotten when that is written."""
    require_remote_control(app)
    with connected(app) as connection:
        require_fanout(connection)
        # Read before the answers: one that answers after it said goodbye has not left.
        goodbyes, read = _goodbyes(app, connection)
        wants_queues = _wants_queues(view)
        answers = _Answers(_queues_sighting if wants_queues else _stats_sighting, view)
        broadcast(app, connection, [Call("active_queues" if wants_queues else "stats")], answers)
        # Read after the answers: a worker that is just starting has its mailbox by then.
        mailboxes = _mailboxes(app, connection)
    answered = {(one.engine_name, one.pid) for one in answers.sightings}
    # Celery also says goodbye when a worker loses its connection: one that answers has not left.
    left = [one for one in goodbyes if not answered & {(one.engine_name, one.pid), (one.engine_name, None)}]
    return PollResult((*answers.sightings, *left), mailboxes=mailboxes, ignored=answers.ignored), read


def _wants_queues(view: PollContext) -> bool:
    """Return whether this look asks for queues, an answer that does not make a worker known: never at every look.

    Whoever looked before was another process, as may be. It did not ask for queues if a worker answered it that has
    none. One that never tells them is asked at every second look, and with it all others.
    """
    answered = [
        life
        for life in view.lives
        if view.before is not None
        and life.engine_heartbeat_at is not None
        and view.before <= life.engine_heartbeat_at <= view.began_at
    ]
    if any(life.queues is None for life in answered):
        return True
    if view.before is None or not answered:
        return False
    return _comes_round(view.began_at, view.interval) and not _comes_round(view.before, view.interval)


def _comes_round(moment: datetime, interval: timedelta) -> bool:
    """Return whether a moment is in one of every :data:`QUEUES_EVERY` intervals.

    Those are strewn: looks that lie a multiple of intervals apart, as from cron, would meet all of them or none.
    """
    number = int(moment.timestamp() // interval.total_seconds())
    return crc32(str(number).encode()) % QUEUES_EVERY == 0


def require_remote_control(app: Any) -> None:
    """Refuse an application whose workers cannot be told anything.

    :raises SourceUnavailableError: with the reason
    """
    if not app.conf.worker_enable_remote_control:
        raise SourceUnavailableError("Celery's remote control is switched off: [celery] worker_enable_remote_control.")


def require_fanout(connection: Any) -> None:
    """Refuse a broker that cannot send to all workers.

    :raises SourceUnavailableError: with the reason
    """
    if "fanout" not in connection.transport.implements.exchange_type:
        raise SourceUnavailableError("Celery's remote control does not work with this broker.")


@contextmanager
def connected(app: Any) -> Iterator[Any]:
    """Yield a connection to the broker that waits for nothing longer than seconds."""
    driver = app.connection_for_write().transport.driver_type
    options = {
        "redis": {
            "socket_timeout": CONNECT_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            "retry_on_timeout": False,
        },
        "amqp": {"read_timeout": CONNECT_SECONDS, "write_timeout": CONNECT_SECONDS},
    }.get(driver, {})
    connection = app.connection_for_write(connect_timeout=CONNECT_SECONDS, transport_options=options)
    try:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_SECONDS)
        yield connection
    finally:
        connection.release()


# --- asking ----------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """One command of Celery's remote control, to all workers or to some."""

    command: str
    arguments: Mapping[str, str] = {}
    nodes: Sequence[str] | None = None


class Answers(Protocol):
    """Takes what workers answer; its length is how many there were, with those that make no sense."""

    ignored: int

    def __len__(self) -> int:
        """Return how many answers there were."""

    def take(self, body: object) -> None:
        """Take an answer, which anybody who reaches the broker may have written."""


class _Answers:
    """The answers that make sense, as sightings."""

    def __init__(self, read: Callable[[str, Any, PollContext], WorkerObservation | None], view: PollContext) -> None:
        self.sightings: list[WorkerObservation] = []
        self.ignored = 0
        self._names: Counter[str] = Counter()
        self._read = read
        self._view = view

    def __len__(self) -> int:
        return len(self.sightings) + self.ignored

    def take(self, body: object) -> None:
        """Take an answer: an object with the worker's name as its only key."""
        sighting = None
        if isinstance(body, dict) and len(body) == 1:
            (name, answer), *_ = body.items()
            sighting = self._read(clean(name, NAME_LENGTH), answer, self._view) if clean(name, NAME_LENGTH) else None
        if sighting is None or self._names[sighting.engine_name] >= MAX_SAME_NAME:
            self.ignored += 1
        else:
            self._names[sighting.engine_name] += 1
            self.sightings.append(sighting)


def broadcast(
    app: Any, connection: Any, calls: Sequence[Call], answers: Answers, *, expected: int = MAX_ANSWERS
) -> None:
    """Send commands to workers and take their answers until there are no more.

    Celery's own ``broadcast`` sends over a connection that waits for ever, raises on the first answer that it cannot
    decode, and goes on for as long as somebody answers.

    :param connection: of :func:`connected`
    :param expected: with so many answers nobody is waited for any longer
    """
    from kombu import Consumer, Producer

    mailbox = app.control.mailbox
    channel = connection.channel()
    ticket = str(uuid.uuid4())
    # Named after the thread. Not ``mailbox.reply_queue``: that is the one of the first thread that ever asked, while
    # ``mailbox.oid`` is of this one, and answers would go to an address that nobody listens at (kombu 5.6.2, pidbox).
    queue = mailbox.get_reply_queue()(channel)
    queue.declare()
    ends_at = time.monotonic() + COLLECT_SECONDS

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
                    # No "expires": it is compared with the worker's own clock.
                    headers={"clock": app.clock.forward(), "expires": 0},
                    serializer=mailbox.serializer,
                )
            while len(answers) < min(expected, MAX_ANSWERS) and (left := ends_at - time.monotonic()) > 0:
                try:
                    connection.drain_events(timeout=min(QUIET_SECONDS, left))
                except TimeoutError:
                    break
    finally:
        _try(queue.delete, "could not remove its queue of answers")


def _stats_sighting(name: str, answer: Any, view: PollContext) -> WorkerObservation | None:
    """Read an answer to ``stats``; ``None`` for one that makes no sense."""
    if not isinstance(answer, dict):
        return None
    pid, uptime = answer.get("pid"), answer.get("uptime")
    if not _is_whole(pid, 1, MAX_NUMBER) or not _is_whole(uptime, 0, MAX_UPTIME):
        return None
    pool = answer.get("pool")
    concurrency = pool.get("max-concurrency") if isinstance(pool, dict) else None
    now = view.clock()
    return WorkerObservation(
        kind="celery",
        engine_name=name,
        hostname=_host(name),
        pid=pid,
        started_at=now - timedelta(seconds=uptime),
        heartbeat_at=now,
        concurrency=concurrency if _is_whole(concurrency, 1, MAX_NUMBER) else None,
    )


def _queues_sighting(name: str, answer: Any, view: PollContext) -> WorkerObservation | None:
    """Read an answer to ``active_queues``, which does not tell the process."""
    names = queue_names(answer)
    if names is None:
        return None
    return WorkerObservation(
        kind="celery",
        engine_name=name,
        hostname=_host(name),
        heartbeat_at=view.clock(),
        # Those that our own executor makes are no news to anybody.
        queues=tuple(sorted(queue for queue in names if not queue.startswith(OWN_QUEUE_PREFIX))),
        is_partial=True,
    )


def queue_names(answer: Any) -> set[str] | None:
    """Return all queues of an answer to ``active_queues``; ``None`` for one that makes no sense."""
    if not isinstance(answer, list):
        return None
    found: set[str] = set()
    size = 0
    for queue in answer:
        # As it is: a name that is cut or mended would be another queue's.
        name = queue.get("name") if isinstance(queue, dict) else None
        if isinstance(name, str) and 0 < len(name) <= QUEUE_LENGTH and name == clean(name, QUEUE_LENGTH):
            found.add(name)
            size += len(name)
        if size > QUEUES_SIZE:
            return None
    return found


def _is_whole(value: object, least: int, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _host(name: str) -> str:
    """Return the host of a node: ``w1@host``."""
    return name.rpartition("@")[2][:HOSTNAME_LENGTH] or name[:HOSTNAME_LENGTH]


# --- who left in order -----------------------------------------------------------------------------------------------


def _mailboxes(app: Any, connection: Any) -> frozenset[str] | None:
    """Return the names of the workers with a mailbox on Redis; ``None`` for other brokers.

    A worker removes it when its remote control closes (``kombu.transport.redis.Channel.close``), which is the first
    thing it does when it is told to end.
    """
    if connection.transport.driver_type != "redis":
        return None
    exchange = app.control.mailbox.exchange.name
    bindings = _try(lambda: connection.channel().get_table(exchange), "could not read the workers' mailboxes")
    if bindings is None:
        return None
    suffix = f".{exchange}"
    return frozenset(clean(queue.removesuffix(suffix), NAME_LENGTH) for *_, queue in bindings)


def _goodbyes(app: Any, connection: Any) -> tuple[list[WorkerObservation], frozenset[bytes]]:
    """Return the workers that said goodbye, from a queue of ours on RabbitMQ, and what tells these messages again."""
    if connection.transport.driver_type != "amqp":
        return [], frozenset()
    nothing: tuple[list[WorkerObservation], frozenset[bytes]] = ([], frozenset())
    return _try(lambda: _read_goodbyes(app, connection), "could not read the workers' goodbyes") or nothing


def _read_goodbyes(app: Any, connection: Any) -> tuple[list[WorkerObservation], frozenset[bytes]]:
    """Read the goodbyes without taking them: who says goodbye says it once, and what was read may not get written."""
    found, read = [], set()
    for message in _goodbye_messages(app, connection):
        read.add(_digest(message))
        sighting = _goodbye(_try(message.decode, "could not read a goodbye"))
        if sighting is not None:
            found.append(sighting)
    return found, frozenset(read)


def _forget_goodbyes(app: Any, read: frozenset[bytes]) -> None:
    """Take the goodbyes that were read before, and leave those that came since."""
    with connected(app) as connection:
        for message in _goodbye_messages(app, connection):
            if _digest(message) in read:
                message.ack()


def _goodbye_messages(app: Any, connection: Any) -> Iterator[Any]:
    """Yield the messages of our queue; those that are not acknowledged by the end go back into it."""
    from celery.events.event import get_exchange
    from kombu import Queue

    # Deployments may share a broker, and what one has taken is gone.
    deployment = blake2b(session.database_name().encode(), digest_size=8).hexdigest()
    with connection.channel() as channel:
        queue = Queue(
            f"worker-insight.goodbyes.{deployment}",
            exchange=get_exchange(connection, name=app.conf.event_exchange),
            routing_key="worker.offline",
            durable=True,
            auto_delete=False,
            expires=GOODBYES_KEPT.total_seconds(),
            message_ttl=GOODBYES_KEPT.total_seconds(),
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


def _goodbye(event: Any) -> WorkerObservation | None:
    if not isinstance(event, dict) or event.get("type") != "worker-offline":
        return None
    name, pid = clean(event.get("hostname"), NAME_LENGTH), event.get("pid")
    if not name or not _is_whole(pid, 1, MAX_NUMBER):
        return None
    return WorkerObservation(kind="celery", engine_name=name, hostname=_host(name), pid=pid, has_left=True)


def _try(action: Callable[[], Any], what_fails: str) -> Any:
    """Do what a look can do without; ``None`` where it fails."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001
        warn_once(f"celery.{what_fails}", "Airflow Worker Insight %s: %s", what_fails, type(error).__name__)
        return None
