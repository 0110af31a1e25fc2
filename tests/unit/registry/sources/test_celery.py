"""Celery's workers, asked over a real broker; each worker here is a mailbox whose answers a test makes up."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.compat import celery as airflow_celery
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.registry.observations import PollContext, PollResult
from airflow_worker_insight.registry.sources import celery as module
from airflow_worker_insight.registry.sources.celery import CelerySource
from airflow_worker_insight.registry.timeouts import NoAnswerError
from airflow_worker_insight.store.leases import POLL_TIMEOUT
from tests.unit.database import NOON, Database, at
from tests.unit.registry.fleets import a_life

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from airflow_worker_insight.domain.workers import WorkerInstance
    from tests.support.services import Redis

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
def app(broker: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a Celery application as Airflow makes it, and have it looked at quickly."""
    made = celery.Celery("airflow.executors.celery_executor", broker=broker)
    made.conf.update(accept_content=["json"], event_serializer="json")
    monkeypatch.setattr(airflow_celery, "celery_app", lambda _team: made)
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(module, "CONNECT_SECONDS", 1.0)
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


def a_view(*lives: WorkerInstance, began_at: datetime = LATER, before: datetime | None = None) -> PollContext:
    return PollContext(lambda: NOON, began_at, before, INTERVAL, lives, metadata_database.engine().connect)


def look(*lives: WorkerInstance, before: datetime | None = None) -> PollResult:
    return CelerySource().look(a_view(*lives, before=before))


def names(found: PollResult) -> list[str]:
    return sorted(one.engine_name for one in found.sightings)


# --- asking ----------------------------------------------------------------------------------------------------------


def test_answers_arrive_whichever_thread_asks(nodes: Any) -> None:
    """Each look has a thread of its own, and an API server starts others that take the IDs of those that ended."""
    nodes("w1@host-1")
    assert names(look()) == ["w1@host-1"]
    over = threading.Event()
    others = [threading.Thread(target=over.wait, daemon=True) for _ in range(8)]
    try:
        for other in others:
            other.start()
            assert names(look()) == ["w1@host-1"]
    finally:
        over.set()


def test_each_worker_answers_with_its_process_start_and_size(nodes: Any) -> None:
    nodes("w1@host-1")
    nodes("w2@host-2", stats={**STATS, "pid": 200, "uptime": 5, "pool": {}})
    found = look()
    first, second = sorted(found.sightings, key=lambda one: one.engine_name)
    assert (first.hostname, first.pid, first.started_at, first.concurrency) == ("host-1", 100, at(-60), 4)
    assert (second.hostname, second.pid, second.started_at, second.concurrency) == ("host-2", 200, at(-5), None)
    assert first.heartbeat_at == NOON
    assert (found.error, found.ignored) == (None, 0)


def test_where_nobody_is_nobody_answers(app: Any) -> None:
    assert app.conf.broker_url
    assert look() == PollResult(mailboxes=frozenset())


def test_one_look_is_one_message(nodes: Any) -> None:
    node = nodes("w1@host-1")
    for number in range(1, 4):
        look()
        assert node.asked == ["stats"] * number


def test_queues_are_asked_for_instead_while_they_are_unknown(nodes: Any) -> None:
    node = nodes("w1@host-1")
    found = look(a_life(queues=None), before=NOON)
    assert node.asked == ["active_queues"]
    (sighting,) = found.sightings
    assert (sighting.queues, sighting.is_partial, sighting.heartbeat_at) == (("default", "large"), True, NOON)
    node.asked.clear()
    look(a_life(queues=("default",)), before=NOON)
    look(a_life(queues=None))
    assert node.asked == ["stats", "stats"]


def asked_for_queues(
    minutes: float, *, knows: bool = True, tells: bool = True, began: datetime = NOON, looks: int = 200
) -> list[bool]:
    """Return which of many looks ask for queues, by processes that know nothing of each other.

    :param minutes: how far the looks lie apart
    :param knows: whether the worker's queues are known at first
    :param tells: whether the worker tells its queues when it is asked
    """
    found: list[bool] = []
    life, before = a_life(queues=("default",) if knows else None, engine_heartbeat_at=began), began
    for number in range(1, looks + 1):
        now = began + number * timedelta(minutes=minutes)
        asks = module._wants_queues(a_view(life, began_at=now, before=before))
        if tells or not asks:
            life = replace(life, engine_heartbeat_at=now, queues=("default",) if asks else life.queues)
        found.append(asks)
        before = now
    return found


@pytest.mark.parametrize("minutes", [0.5, 1, 2, 5, 10, 15, 60])
def test_however_far_looks_lie_apart_most_tell_of_new_workers_and_some_of_queues(minutes: float) -> None:
    asked = asked_for_queues(minutes)
    assert 0 < sum(asked) < 40
    assert not any(one and other for one, other in itertools.pairwise(asked)), "twice in a row"
    first, second, *_ = asked_for_queues(minutes, knows=False)
    assert first
    assert not second
    silent = asked_for_queues(minutes, knows=False, tells=False)
    assert silent == [number % 2 == 0 for number in range(len(silent))]


def test_for_workers_that_did_not_answer_the_look_before_queues_are_not_asked() -> None:
    for beat in (None, at(-1), at(600)):
        life = a_life(queues=None, engine_heartbeat_at=beat)
        assert not module._wants_queues(a_view(life, before=NOON))
    assert not module._wants_queues(a_view(before=NOON))


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


def test_answers_that_make_no_sense_are_ignored_and_counted(nodes: Any) -> None:
    for number, answer in enumerate(NONSENSE):
        nodes(f"bad{number}@host-1", stats=answer)
    nodes("good@host-1")
    found = look()
    assert names(found) == ["good@host-1"]
    assert (found.ignored, found.error) == (len(NONSENSE), None)


def test_what_is_wrong_with_the_size_does_not_cost_the_worker(nodes: Any) -> None:
    pools = [None, [], "prefork", {"max-concurrency": "many"}, {"max-concurrency": -4}]
    for number, pool in enumerate(pools):
        nodes(f"w{number}@host-1", stats={**STATS, "pool": pool})
    assert [one.concurrency for one in look().sightings] == [None] * len(pools)


def test_queues_that_make_no_sense_are_ignored(nodes: Any) -> None:
    answers: list[Any] = [None, {}, "default", {"error": "boom"}]
    for number, answer in enumerate(answers):
        nodes(f"w{number}@host-1", active_queues=answer)
    found = look(a_life(queues=None), before=NOON)
    assert (found.sightings, found.ignored) == ((), len(answers))


def test_of_queues_only_names_are_kept(nodes: Any) -> None:
    nodes(
        "w1@host-1",
        active_queues=[
            "default",
            *({"name": name} for name in ("<b>\x00", 7, "x" * 300, "", "<i>", "x" * 256)),
            {},
        ],
    )
    (sighting,) = look(a_life(queues=None), before=NOON).sightings
    # What is no name as Airflow keeps them is no task's queue, and mended it would be another one's.
    assert sighting.queues == ("<i>", "x" * 256)


@pytest.mark.parametrize("number", [121, 2_000])
def test_of_many_queues_all_are_known(nodes: Any, number: int) -> None:
    nodes("w1@host-1", active_queues=[{"name": f"queue-{each}"} for each in range(number)])
    (sighting,) = look(a_life(queues=None), before=NOON).sightings
    assert set(sighting.queues) == {f"queue-{each}" for each in range(number)}


def test_an_answer_with_more_queues_than_any_worker_has_is_ignored_as_a_whole(nodes: Any) -> None:
    nodes("w1@host-1", active_queues=[{"name": f"{each:0>200}"} for each in range(6_000)])
    found = look(a_life(queues=None), before=NOON)
    assert (found.sightings, found.ignored) == ((), 1)


def test_a_name_is_cleaned_and_bounded(nodes: Any) -> None:
    nodes("a\nb" + "x" * 300 + "@host")
    (sighting,) = look().sightings
    assert len(sighting.engine_name) == 250
    assert sighting.engine_name.startswith("a bx")
    assert len(sighting.hostname) <= 255


def test_what_cannot_be_decoded_is_ignored(nodes: Any, broker: str, redis: Redis) -> None:
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
                ("application/json", json.dumps({"w9@host": STATS}), "another look's"),
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
    found = look()
    spoiler.join(30)
    assert names(found) == ["good@host-1"]
    assert (found.ignored, found.error) == (4, None)


def _body(data: bytes) -> dict[str, Any]:
    """Return the body of a message as kombu keeps it on Redis."""
    import base64

    body = json.loads(data)["body"]
    decoded: dict[str, Any] = json.loads(base64.b64decode(body))
    return decoded


def test_who_never_stops_answering_does_not_keep_the_look(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWERS", 3)
    for number in range(6):
        nodes(f"w{number}@host")
    assert len(look().sightings) == 3


def test_of_many_answers_under_one_name_some_are_taken() -> None:
    """Each is compared with all lives of its name."""
    answers = module._Answers(module._stats_sighting, a_view())
    for pid in range(1, 301):
        answers.take({"w1@host-1": {**STATS, "pid": pid}})
    answers.take({"w2@host-1": STATS})
    assert [one.engine_name for one in answers.sightings] == ["w1@host-1"] * module.MAX_SAME_NAME + ["w2@host-1"]
    assert answers.ignored == 200


def test_nothing_is_left_in_the_broker(nodes: Any, broker: str, redis: Redis) -> None:
    client = redis.client(int(broker.rpartition("/")[2]))
    nodes("w1@host-1")
    before = set(client.keys())
    for _ in range(3):
        look()
    assert set(client.keys()) == before


# --- who left in order -----------------------------------------------------------------------------------------------


def test_on_redis_a_mailbox_goes_with_an_orderly_end_and_stays_after_a_death(nodes: Any) -> None:
    stopped, killed = nodes("stopped@host-1"), nodes("killed@host-1")
    assert look().mailboxes == {"stopped@host-1", "killed@host-1"}
    stopped.stop()
    killed.stop(dies=True)
    found = look()
    assert (found.sightings, found.mailboxes) == ((), {"killed@host-1"})


@pytest.mark.usefixtures("database")
def test_elsewhere_a_queue_of_ours_keeps_the_goodbyes(database: Database) -> None:
    """As on RabbitMQ: events go to whoever is bound, and a queue is even while nobody reads it."""
    assert database.url
    app = celery.Celery("airflow", broker="memory://")
    with app.connection_for_write() as connection:
        assert module._read_goodbyes(app, connection) == ([], frozenset())
        events = app.events.Dispatcher(connection, hostname="w1@host-1")
        events.send("worker-heartbeat")
        events.send("worker-offline")
        other = app.events.Dispatcher(connection, hostname="w2@host-1")
        other.send("worker-online")
        for nonsense in ({"pid": "x"}, {"hostname": 7}, {"hostname": ""}):
            events.send("worker-offline", Event=lambda _type, n=nonsense, **_: {"type": "worker-offline", **n})
        (goodbye,), read = module._read_goodbyes(app, connection)
        assert (goodbye.engine_name, goodbye.pid, goodbye.has_left) == ("w1@host-1", events.pid, True)
        assert module._read_goodbyes(app, connection) == ([goodbye], read), "it may not have been written"
        other.send("worker-offline")
        module._forget_goodbyes(app, read)
        (later,), _ = module._read_goodbyes(app, connection)
        assert later.engine_name == "w2@host-1", "what came since stays"


@pytest.mark.usefixtures("database")
def test_goodbyes_are_forgotten_when_they_are_written(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert database.url
    app = celery.Celery("airflow", broker="memory://")
    monkeypatch.setattr(airflow_celery, "celery_app", lambda _team: app)
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(module, "_goodbyes", module._read_goodbyes)
    look()
    with app.connection_for_write() as connection:
        app.events.Dispatcher(connection, hostname="w1@host-1").send("worker-offline")
    for _ in range(2):
        found = look()
        assert names(found) == ["w1@host-1"]
    assert found.on_written is not None
    found.on_written()
    assert look() == PollResult()


def test_one_that_said_goodbye_and_answers_has_not_left(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery says goodbye when a worker loses its connection, too."""
    nodes("w1@host-1")
    left = [module._goodbye({"type": "worker-offline", "hostname": f"w{n}@host-1", "pid": 100}) for n in (1, 2)]
    monkeypatch.setattr(module, "_goodbyes", lambda _app, _connection: (left, frozenset()))
    found = look()
    assert sorted((one.engine_name, one.has_left) for one in found.sightings) == [
        ("w1@host-1", False),
        ("w2@host-1", True),
    ]


# --- unavailable -----------------------------------------------------------------------------------------------------


def test_a_broker_that_is_down_is_said_without_its_password(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.broker_url = "redis://:s3cr%2Ft@127.0.0.1:1/0"
    found = look()
    assert "Celery's broker cannot be reached" in (found.error or "")
    assert "refused" in (found.error or "")
    assert (found.sightings, found.mailboxes) == ((), None)

    def leak(*_: Any) -> None:
        raise OSError("redis://:s3cr%2Ft@127.0.0.1:1/0 and s3cr/t")

    monkeypatch.setattr(module, "_look", leak)
    error = look().error or ""
    assert "***" in error
    assert "s3cr" not in error


def test_a_broker_that_hangs_is_given_up(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and never says anything."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        app.conf.broker_url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert "cannot be reached" in (look().error or "")
        monkeypatch.setattr(module, "CONNECT_SECONDS", 30.0)
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)
        assert "did not answer" in (look().error or "")
        assert "still waits" in (look().error or "")


def test_many_brokers_that_hang_are_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its share of the time that all have, and one that answers at once leaves its own to the others."""
    given: list[float] = []

    class Waits:
        def ask(self, _question: object, *, seconds: float) -> None:
            given.append(round(seconds))
            time.passed += 0.0 if len(given) == 1 else seconds
            raise NoAnswerError("It did not answer.")

    class Clock:
        passed = 0.0

        def monotonic(self) -> float:
            return self.passed

    time = Clock()
    apps = {name: celery.Celery("team", broker=f"redis://{name}:1/0") for name in "abcdef"}
    monkeypatch.setattr(airflow_celery, "celery_app", apps.__getitem__)
    monkeypatch.setattr(module, "_bounded", {})
    monkeypatch.setattr(module, "Bounded", lambda _name: Waits())
    monkeypatch.setattr(module, "time", time)
    assert CelerySource(tuple(apps)).look(a_view()).error == "It did not answer."
    assert given == [8, 10, 10, 10, 10, 10]
    assert timedelta(seconds=time.passed) < POLL_TIMEOUT


def test_where_remote_control_is_switched_off_that_is_the_reason(app: Any) -> None:
    app.conf.worker_enable_remote_control = False
    assert "worker_enable_remote_control" in (look().error or "")


def test_a_broker_without_broadcasts_is_the_reason(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQS is one."""
    from kombu.transport.memory import Transport

    monkeypatch.setattr(Transport, "implements", Transport.implements.extend(exchange_type=frozenset({"direct"})))
    app.conf.broker_url = "memory://"
    assert "does not work with this broker" in (look().error or "")


def test_teams_that_share_a_broker_are_asked_once_and_one_that_is_down_keeps_nobody(
    app: Any, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes("w1@host-1")
    down = celery.Celery("team", broker="redis://127.0.0.1:1/0")
    monkeypatch.setattr(airflow_celery, "celery_app", {None: app, "same": app, "down": down}.__getitem__)
    engine = CelerySource((None, "same", "down"))
    found = engine.look(a_view())
    assert node.asked == ["stats"]
    assert names(found) == ["w1@host-1"]
    assert "cannot be reached" in (found.error or "")
    assert found.mailboxes is not None
