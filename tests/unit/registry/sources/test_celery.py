"""Celery's workers, asked over a real broker; each worker here is a mailbox whose answers a test makes up."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.registry.observations import PollContext, PollResult
from airflow_worker_insight.registry.sources import celery as module
from airflow_worker_insight.registry.sources.celery import CelerySource
from airflow_worker_insight.registry.sources.celery_control import BrokerTimeouts
from airflow_worker_insight.registry.timeouts import CallTimeoutError, TimeLimitedCaller
from airflow_worker_insight.store.leases import POLL_TIMEOUT
from tests.unit.database import NOON, Database, at
from tests.unit.registry.fleets import an_instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from pytest_mock import MockerFixture

    from airflow_worker_insight.domain.workers import WorkerInstance
    from tests.support.services import Redis

    Poll = Callable[..., PollResult]

celery = pytest.importorskip("celery")

STATS = {"pid": 100, "uptime": 60, "pool": {"max-concurrency": 4}, "total": {}, "clock": "1"}
QUEUES = [{"name": "large"}, {"name": "default"}]


@dataclass
class Node:
    """The mailbox of one worker."""

    app: Any
    name: str
    answers: dict[str, Any]
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._dies = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        assert self._ready.wait(120)

    def _work(self) -> None:
        connection = self.app.connection_for_read()
        mailbox = self.app.control.mailbox(connection)
        handlers = {command: self._handler(command) for command in ("stats", "active_queues")}
        channel = connection.channel()
        node = mailbox.Node(self.name, state=None, channel=channel, handlers=handlers)
        node.listen()
        # The subscription goes out with the first read.
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)
        self._ready.set()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
        if self._dies:
            channel.client.connection_pool.disconnect()
        else:
            channel.close()

    def _handler(self, command: str) -> Any:
        def handle(_state: Any) -> Any:
            self.asked.append(command)
            return self.answers[command]

        return handle

    def stop(self, *, dies: bool = False) -> None:
        """End as a worker does that is told to, or as one that is killed."""
        self._dies = dies
        self._stop.set()
        self._thread.join(30)


@pytest.fixture
def broker(redis: Redis) -> str:
    return redis.broker_url()


@pytest.fixture
def app(broker: str) -> Any:
    """Return a Celery application as Airflow makes it."""
    made = celery.Celery("airflow.executors.celery_executor", broker=broker)
    made.conf.update(accept_content=["json"], event_serializer="json")
    return made


@pytest.fixture
def nodes(app: Any) -> Iterator[Any]:
    """Return a function that starts a worker's mailbox."""
    started: list[Node] = []

    def start(name: str, **answers: Any) -> Node:
        started.append(Node(app, name, {"stats": STATS, "active_queues": QUEUES, **answers}))
        return started[-1]

    yield start
    for node in started:
        node.stop()


INTERVAL = timedelta(seconds=30)
LATER = at(30)


QUICK = BrokerTimeouts(connect=1.0, idle=1.0)


def a_context(
    *instances: WorkerInstance, started_at: datetime = LATER, previous_started_at: datetime | None = None
) -> PollContext:
    return PollContext(
        lambda: NOON, started_at, previous_started_at, INTERVAL, instances, metadata_database.engine().connect
    )


def poll_app(app: Any, *instances: WorkerInstance, before: datetime | None = None, **settings: Any) -> PollResult:
    """Poll the workers of an application.

    :param before: when the previous poll started
    """
    source = CelerySource(celery_app=lambda _team: app, **{"timeouts": QUICK, **settings})
    return source.poll(a_context(*instances, previous_started_at=before))


@pytest.fixture
def poll(app: Any) -> Poll:
    """Return a function that polls the workers of the application."""
    return partial(poll_app, app)


def names(found: PollResult) -> list[str]:
    return sorted(one.engine_name for one in found.observations)


# --- remote control --------------------------------------------------------------------------------------------------


def test_answers_arrive_whichever_thread_asks(nodes: Any, poll: Poll) -> None:
    """Each poll has a thread of its own, and an API server starts others that take the IDs of those that ended."""
    nodes("w1@host-1")
    assert names(poll()) == ["w1@host-1"]
    over = threading.Event()
    others = [threading.Thread(target=over.wait, daemon=True) for _ in range(8)]
    try:
        for other in others:
            other.start()
            assert names(poll()) == ["w1@host-1"]
    finally:
        over.set()


def test_each_worker_answers_with_its_process_start_and_size(nodes: Any, poll: Poll) -> None:
    nodes("w1@host-1")
    nodes("w2@host-2", stats={**STATS, "pid": 200, "uptime": 5, "pool": {}})
    found = poll()
    first, second = sorted(found.observations, key=lambda one: one.engine_name)
    assert (first.hostname, first.pid, first.started_at, first.concurrency) == ("host-1", 100, at(-60), 4)
    assert (second.hostname, second.pid, second.started_at, second.concurrency) == ("host-2", 200, at(-5), None)
    assert first.heartbeat_at == NOON
    assert (found.error, found.ignored) == (None, 0)


def test_without_workers_the_result_is_empty(app: Any, poll: Poll) -> None:
    assert app.conf.broker_url
    assert poll() == PollResult(mailboxes=frozenset())


def test_one_poll_is_one_message(nodes: Any, poll: Poll) -> None:
    node = nodes("w1@host-1")
    for number in range(1, 4):
        poll()
        assert node.asked == ["stats"] * number


def test_queues_are_asked_for_instead_while_they_are_unknown(nodes: Any, poll: Poll) -> None:
    node = nodes("w1@host-1")
    found = poll(an_instance(queues=None), before=NOON)
    assert node.asked == ["active_queues"]
    (observation,) = found.observations
    assert (observation.queues, observation.is_partial, observation.heartbeat_at) == (("default", "large"), True, NOON)
    node.asked.clear()
    poll(an_instance(queues=("default",)), before=NOON)
    poll(an_instance(queues=None))
    assert node.asked == ["stats", "stats"]


def asked_for_queues(
    minutes: float, *, knows: bool = True, tells: bool = True, began: datetime = NOON, polls: int = 200
) -> list[bool]:
    """Return which of many polls ask for queues, by processes that know nothing of each other.

    :param minutes: how far the polls lie apart
    :param knows: whether the worker's queues are known at first
    :param tells: whether the worker tells its queues when it is asked
    """
    found: list[bool] = []
    instance, before = an_instance(queues=("default",) if knows else None, engine_heartbeat_at=began), began
    for number in range(1, polls + 1):
        now = began + number * timedelta(minutes=minutes)
        asks = module._wants_queues(a_context(instance, started_at=now, previous_started_at=before))
        if tells or not asks:
            instance = replace(instance, engine_heartbeat_at=now, queues=("default",) if asks else instance.queues)
        found.append(asks)
        before = now
    return found


@pytest.mark.parametrize("minutes", [0.5, 1, 2, 5, 10, 15, 60])
def test_at_any_interval_most_polls_find_new_workers_and_some_queues(minutes: float) -> None:
    asked = asked_for_queues(minutes)
    assert 0 < sum(asked) < 40
    assert not any(one and other for one, other in itertools.pairwise(asked)), "twice in a row"
    first, second, *_ = asked_for_queues(minutes, knows=False)
    assert first
    assert not second
    silent = asked_for_queues(minutes, knows=False, tells=False)
    assert silent == [number % 2 == 0 for number in range(len(silent))]


def test_queues_are_not_asked_of_workers_that_did_not_answer_the_previous_poll() -> None:
    for beat in (None, at(-1), at(600)):
        instance = an_instance(queues=None, engine_heartbeat_at=beat)
        assert not module._wants_queues(a_context(instance, previous_started_at=NOON))
    assert not module._wants_queues(a_context(previous_started_at=NOON))


NONSENSE: list[Any] = [
    None,
    "pong",
    7,
    [],
    {},
    {"error": "boom"},
    {**STATS, "pid": "100"},
    {**STATS, "pid": -1},
    {**STATS, "pid": 2**40},
    {**STATS, "pid": True},
    {**STATS, "uptime": "long"},
    {**STATS, "uptime": -5},
    {**STATS, "uptime": 1e300},
    {**STATS, "uptime": None},
]


def test_answers_that_make_no_sense_are_ignored_and_counted(nodes: Any, poll: Poll) -> None:
    for number, answer in enumerate(NONSENSE):
        nodes(f"bad{number}@host-1", stats=answer)
    nodes("good@host-1")
    found = poll()
    assert names(found) == ["good@host-1"]
    assert (found.ignored, found.error) == (len(NONSENSE), None)


def test_what_is_wrong_with_the_size_does_not_cost_the_worker(nodes: Any, poll: Poll) -> None:
    pools = [None, [], "prefork", {"max-concurrency": "many"}, {"max-concurrency": -4}]
    for number, pool in enumerate(pools):
        nodes(f"w{number}@host-1", stats={**STATS, "pool": pool})
    assert [one.concurrency for one in poll().observations] == [None] * len(pools)


def test_queues_that_make_no_sense_are_ignored(nodes: Any, poll: Poll) -> None:
    answers: list[Any] = [None, {}, "default", {"error": "boom"}]
    for number, answer in enumerate(answers):
        nodes(f"w{number}@host-1", active_queues=answer)
    found = poll(an_instance(queues=None), before=NOON)
    assert (found.observations, found.ignored) == ((), len(answers))


def test_of_queues_only_names_are_kept(nodes: Any, poll: Poll) -> None:
    nodes(
        "w1@host-1",
        active_queues=[
            "default",
            *({"name": name} for name in ("<b>\x00", 7, "x" * 300, "", "<i>", "x" * 256)),
            {},
        ],
    )
    (observation,) = poll(an_instance(queues=None), before=NOON).observations
    # What is no name as Airflow keeps them is no task's queue, and mended it would be another one's.
    assert observation.queues == ("<i>", "x" * 256)


@pytest.mark.parametrize("number", [121, 2_000])
def test_of_many_queues_all_are_known(nodes: Any, number: int, poll: Poll) -> None:
    nodes("w1@host-1", active_queues=[{"name": f"queue-{each}"} for each in range(number)])
    (observation,) = poll(an_instance(queues=None), before=NOON).observations
    assert set(observation.queues) == {f"queue-{each}" for each in range(number)}


def test_an_answer_with_more_queues_than_any_worker_has_is_ignored_as_a_whole(nodes: Any, poll: Poll) -> None:
    nodes("w1@host-1", active_queues=[{"name": f"{each:0>200}"} for each in range(6_000)])
    found = poll(an_instance(queues=None), before=NOON)
    assert (found.observations, found.ignored) == ((), 1)


def test_a_name_is_cleaned_and_bounded(nodes: Any, poll: Poll) -> None:
    nodes("a\nb" + "x" * 300 + "@host")
    (observation,) = poll().observations
    assert len(observation.engine_name) == 250
    assert observation.engine_name.startswith("a bx")
    assert len(observation.hostname) <= 255


def test_what_cannot_be_decoded_is_ignored(nodes: Any, broker: str, redis: Redis, poll: Poll) -> None:
    """Somebody answers with something that is not JSON, or not to our question."""
    client = redis.client(int(broker.rpartition("/")[2]))
    listener = client.pubsub()
    listener.psubscribe("*celery.pidbox*")

    def answer_garbage() -> None:
        for message in listener.listen():
            if message["type"] != "pmessage":
                continue
            asked = _body(message["data"])
            key = f"{asked['reply_to']['routing_key']}.{asked['reply_to']['exchange']}"
            properties = {"delivery_tag": "1", "delivery_info": {"exchange": "", "routing_key": key}}
            for content_type, body, ticket in (
                ("application/json", "{not json", asked["ticket"]),
                ("application/x-python-serialize", "cos\nsystem\n(S'true'\ntR.", asked["ticket"]),
                ("application/json", json.dumps({"w9@host": STATS}), "another poll's"),
                ("application/json", json.dumps([{"w9@host": STATS}]), asked["ticket"]),
                ("application/json", json.dumps({"w8@host": STATS, "w9@host": STATS}), asked["ticket"]),
            ):
                answer = {
                    "body": body,
                    "content-type": content_type,
                    "content-encoding": "utf-8",
                    "headers": {"ticket": ticket},
                    "properties": properties,
                }
                client.lpush(key, json.dumps(answer))
            return

    spoiler = threading.Thread(target=answer_garbage, daemon=True)
    spoiler.start()
    nodes("good@host-1")
    found = poll()
    spoiler.join(30)
    assert names(found) == ["good@host-1"]
    assert (found.ignored, found.error) == (4, None)


def _body(data: bytes) -> dict[str, Any]:
    """Return the body of a message as kombu keeps it on Redis."""
    import base64

    body = json.loads(data)["body"]
    decoded: dict[str, Any] = json.loads(base64.b64decode(body))
    return decoded


def test_who_never_stops_answering_does_not_keep_the_poll(nodes: Any, poll: Poll) -> None:
    for number in range(6):
        nodes(f"w{number}@host")
    assert len(poll(max_answers=3).observations) == 3


def test_of_many_answers_under_one_name_some_are_taken() -> None:
    """Each is compared with all instances of its name."""
    answers = module._Answers(module._stats_observation, a_context())
    for pid in range(1, 301):
        answers.take({"w1@host-1": {**STATS, "pid": pid}})
    answers.take({"w2@host-1": STATS})
    assert [one.engine_name for one in answers.observations] == ["w1@host-1"] * module.MAX_SAME_NAME + ["w2@host-1"]
    assert answers.ignored == 200


def test_nothing_is_left_in_the_broker(nodes: Any, broker: str, redis: Redis, poll: Poll) -> None:
    client = redis.client(int(broker.rpartition("/")[2]))
    nodes("w1@host-1")
    before = set(client.keys())
    for _ in range(3):
        poll()
    assert set(client.keys()) == before


# --- graceful shutdowns ----------------------------------------------------------------------------------------------


def test_on_redis_a_mailbox_goes_with_an_orderly_end_and_stays_after_a_death(nodes: Any, poll: Poll) -> None:
    stopped, killed = nodes("stopped@host-1"), nodes("killed@host-1")
    assert poll().mailboxes == {"stopped@host-1", "killed@host-1"}
    stopped.stop()
    killed.stop(dies=True)
    found = poll()
    assert (found.observations, found.mailboxes) == ((), {"killed@host-1"})


@pytest.mark.usefixtures("database")
def test_elsewhere_a_queue_of_ours_keeps_offline_events(database: Database) -> None:
    """As on RabbitMQ: events go to whoever is bound, and a queue is even while nobody reads it."""
    assert database.url
    app = celery.Celery("airflow", broker="memory://")
    source = CelerySource()
    with app.connection_for_write() as connection:
        assert module._read_offline_events(app, connection) == ([], frozenset())
        events = app.events.Dispatcher(connection, hostname="w1@host-1")
        events.send("worker-heartbeat")
        events.send("worker-offline")
        other = app.events.Dispatcher(connection, hostname="w2@host-1")
        other.send("worker-online")
        for nonsense in ({"pid": "x"}, {"hostname": 7}, {"hostname": ""}):
            events.send("worker-offline", Event=lambda _type, n=nonsense, **_: {"type": "worker-offline", **n})
        (departed,), read = module._read_offline_events(app, connection)
        assert (departed.engine_name, departed.pid, departed.has_left) == ("w1@host-1", events.pid, True)
        assert module._read_offline_events(app, connection) == ([departed], read), "it may not have been written"
        other.send("worker-offline")
        source._remove_offline_events(app, read)
        (later,), _ = module._read_offline_events(app, connection)
        assert later.engine_name == "w2@host-1", "what came since stays"


@pytest.mark.usefixtures("database")
def test_offline_events_are_removed_when_they_are_written(database: Database) -> None:
    assert database.url
    app = celery.Celery("airflow", broker="memory://")
    timeouts = BrokerTimeouts(idle=0.1)
    poll = partial(poll_app, app, timeouts=timeouts, event_transports=frozenset({"memory"}))
    poll()
    with app.connection_for_write() as connection:
        app.events.Dispatcher(connection, hostname="w1@host-1").send("worker-offline")
    for _ in range(2):
        found = poll()
        assert names(found) == ["w1@host-1"]
    assert found.on_written is not None
    found.on_written()
    assert poll() == PollResult()


@pytest.mark.usefixtures("database")
def test_one_that_sent_the_event_and_answers_has_not_left() -> None:
    """Celery sends it when a worker loses its connection, too."""
    app = celery.Celery("airflow", broker="memory://")
    poll = partial(poll_app, app, timeouts=BrokerTimeouts(idle=0.5), event_transports=frozenset({"memory"}))
    poll()
    node = Node(app, "w1@host-1", {"stats": {**STATS, "pid": os.getpid()}, "active_queues": QUEUES})
    with app.connection_for_write() as connection:
        for name in ("w1@host-1", "w2@host-1"):
            app.events.Dispatcher(connection, hostname=name).send("worker-offline")
    found = poll()
    node.stop()
    assert sorted((one.engine_name, one.has_left) for one in found.observations) == [
        ("w1@host-1", False),
        ("w2@host-1", True),
    ]


# --- unavailable -----------------------------------------------------------------------------------------------------


def test_a_broker_that_is_down_is_reported_without_its_password(app: Any, poll: Poll, mocker: MockerFixture) -> None:
    app.conf.broker_url = "redis://:s3cr%2Ft@127.0.0.1:1/0"
    found = poll()
    assert "Celery's broker cannot be reached" in (found.error or "")
    assert "refused" in (found.error or "")
    assert (found.observations, found.mailboxes) == ((), None)
    mocker.patch(
        "kombu.Connection.ensure_connection", side_effect=OSError("redis://:s3cr%2Ft@127.0.0.1:1/0 and s3cr/t")
    )
    error = poll().error or ""
    assert "***" in error
    assert "s3cr" not in error


def test_a_broker_that_hangs_is_given_up(app: Any, poll: Poll) -> None:
    """It takes the connection and never says anything."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        app.conf.broker_url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert "cannot be reached" in (poll().error or "")
        hanging = BrokerTimeouts(connect=30.0, poll=0.1)
        assert "did not answer" in (poll(timeouts=hanging).error or "")
        assert "still not answered" in (poll(timeouts=hanging).error or "")


def test_many_brokers_that_hang_are_given_up_in_time() -> None:
    """Each takes its share of the time that all have, and one that answers at once leaves its own to the others."""
    given: list[float] = []
    passed = 0.0

    class Hangs(TimeLimitedCaller[Any]):
        def call(self, func: object, *, seconds: float) -> Any:  # noqa: ARG002
            nonlocal passed
            given.append(round(seconds))
            passed += 0.0 if len(given) == 1 else seconds
            raise CallTimeoutError("It did not answer.")

    apps: dict[str | None, Any] = {
        name: celery.Celery("team", broker=f"redis://{name}:1/0") for name in ("a", "b", "c", "d", "e", "f")
    }
    source = CelerySource(tuple(apps), celery_app=apps.__getitem__, caller_of=Hangs, clock=lambda: passed)
    assert source.poll(a_context()).error == "It did not answer."
    assert given == [8, 10, 10, 10, 10, 10]
    assert timedelta(seconds=passed) < POLL_TIMEOUT


def test_where_remote_control_is_switched_off_that_is_the_reason(app: Any, poll: Poll) -> None:
    app.conf.worker_enable_remote_control = False
    assert "worker_enable_remote_control" in (poll().error or "")


def test_a_broker_without_broadcasts_is_the_reason(app: Any, poll: Poll, mocker: MockerFixture) -> None:
    """SQS is one."""
    from kombu.transport.memory import Transport

    mocker.patch.object(Transport, "implements", Transport.implements.extend(exchange_type=frozenset({"direct"})))
    app.conf.broker_url = "memory://"
    assert "does not work with this broker" in (poll().error or "")


def test_teams_that_share_a_broker_are_polled_once_and_one_that_is_down_delays_none(app: Any, nodes: Any) -> None:
    node = nodes("w1@host-1")
    down = celery.Celery("team", broker="redis://127.0.0.1:1/0")
    apps = {None: app, "same": app, "down": down}
    source = CelerySource(tuple(apps), celery_app=apps.__getitem__, timeouts=QUICK)
    found = source.poll(a_context())
    assert node.asked == ["stats"]
    assert names(found) == ["w1@host-1"]
    assert "cannot be reached" in (found.error or "")
    assert found.mailboxes is not None
