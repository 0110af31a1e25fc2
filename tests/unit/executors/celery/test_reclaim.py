"""Messages at a worker that will not run them, on a real Redis: each goes to another worker once, as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors.celery import reclaim
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.celery.reclaim import Reclaimer, ReclaimSettings
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.executors.placement.rules import Rules
from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.placements import Placement
from tests.unit.database import NOON, Database, add_run, add_try, change_try, on_both

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_mock import MockerFixture

    from airflow_worker_insight.domain.keys import TryKey
    from tests.support.services import Redis

celery = pytest.importorskip("celery")

DEAD, ALIVE = dedicated_queue("dead"), dedicated_queue("alive")


def a_candidate(**others: Any) -> Candidate:
    known: dict[str, Any] = {"queues": frozenset({"default"}), "concurrency": 4, "capacity": 100}
    return Candidate(ref=2, worker_id="alive", name="w2@host", **{**known, **others})


class Broker:
    """The queues of workers, on Redis."""

    def __init__(self, redis: Redis) -> None:
        self.url = redis.broker_url()
        self.app = celery.Celery("airflow.executors.celery_executor", broker=self.url)
        self.app.conf.update(accept_content=["json"], task_serializer="json")
        self.client = redis.client(int(self.url.rpartition("/")[2]))
        self.client.flushdb()

    def send(self, key: TryKey, queue: str = DEAD, *, command: bool = False, task_id: str | None = None) -> str:
        if command:
            argument: Any = ["airflow", "tasks", "run", key.dag_id, key.task_id, key.run_id, "--local"]
            argument += ["--map-index", str(key.map_index)] if key.map_index >= 0 else []
        else:
            names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
            argument = json.dumps({"ti": {name: getattr(key, name) for name in names}, "token": "secret"})
        task_id = task_id or f"id-{key.map_index}"
        result = self.app.send_task("execute_workload", args=[argument], queue=queue, task_id=task_id)
        return str(result.id)

    def fetch(self, queue: str = DEAD) -> None:
        """Have the worker fetch a message and die."""
        from kombu import Queue

        connection = self.app.connection_for_read()
        channel = connection.channel()
        assert Queue(queue)(channel).get(no_ack=False) is not None
        # It is killed, so it does not restore its messages.
        channel.qos._on_collect.cancel()
        channel.qos._delivered.clear()
        channel.client.connection_pool.disconnect()

    def held(self, queue: str) -> list[dict[str, Any]]:
        return [json.loads(raw) for raw in reversed(self.client.lrange(queue, 0, -1))]

    def ids(self, queue: str) -> list[str]:
        return sorted(message["headers"]["id"] for message in self.held(queue))

    def unacked(self) -> int:
        return int(self.client.hlen("unacked"))


@pytest.fixture
def broker(redis: Redis) -> Broker:
    return Broker(redis)


def store(database: Database, number: int, *, state: str = "queued") -> list[TryKey]:
    """Store mapped tries that are placed on the worker that is gone."""
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        keys = [
            add_try(connection, run, map_index=index, state=state, ended_at=None, hostname=None, queue="default")
            for index in range(number)
        ]
        placements.write(
            connection,
            [Placement(key, PlacementReason.LEAST_LOADED, "w1", worker_ref=1, dedicated_queue=DEAD) for key in keys],
            now=NOON,
        )
    return keys


def make_reclaimer(app: Any, fallback: str = "wait", **options: Any) -> Reclaimer:
    return Reclaimer(app, PlacementService(Rules("least_loaded", 4, fallback)), **options)


def move(
    broker: Broker,
    *candidates: Candidate,
    is_gone: bool = True,
    fallback: str = "wait",
    limit: int | None = None,
    **options: Any,
) -> int:
    """Reclaim the messages of the worker that is gone."""
    reclaimer = make_reclaimer(broker.app, fallback, **options)
    return reclaimer.reclaim_tasks(DEAD, Snapshot(candidates, 0.0), worker_name="w1@host", is_gone=is_gone, limit=limit)


def remove_queues(app: Any, queues: list[str]) -> None:
    make_reclaimer(app).remove_queues(queues)


def use_quorum_queues(app: Any, mocker: MockerFixture) -> None:
    """Have Celery declare quorum queues, as it can from 5.6 on."""
    from kombu import Exchange, Queue

    arguments = {"x-queue-type": "quorum"}
    mocker.patch.object(
        app.amqp.queues, "new_missing", lambda name: Queue(name, Exchange(name), name, queue_arguments=arguments)
    )


@on_both
def test_waiting_and_fetched_messages_move_unchanged(database: Database, broker: Broker) -> None:
    keys = store(database, 5)
    ids = sorted(broker.send(key) for key in keys)
    before = {message["headers"]["id"]: (message["body"], message["headers"]) for message in broker.held(DEAD)}
    broker.fetch()
    broker.fetch()
    assert (len(broker.held(DEAD)), broker.unacked()) == (3, 2)
    assert move(broker, a_candidate()) == 5
    assert broker.ids(ALIVE) == ids
    for message in broker.held(ALIVE):
        body, headers = before[message["headers"]["id"]]
        assert message["body"] == body
        assert {name: message["headers"][name] for name in headers} == headers
        # Whoever fetches it next gives it back to where it is now.
        assert message["properties"]["delivery_info"]["routing_key"] == ALIVE
        assert message["properties"]["correlation_id"] == message["headers"]["id"]
    assert (broker.held(DEAD), broker.unacked()) == ([], 0)
    with database.engine.connect() as connection:
        found = placements.open_placements(connection)
        assert {(record.worker_ref, record.dedicated_queue) for record in found} == {(2, ALIVE)}
        assert all(record.detail.startswith("reclaimed from w1@host: w2@host: least loaded") for record in found)
        # By this time its scheduler knows the placement whose slot it frees.
        assert {record.placed_at for record in found} == {NOON}


def test_empty_queues_are_removed(database: Database, broker: Broker) -> None:
    (key,) = store(database, 1)
    broker.send(key)
    remove_queues(broker.app, [DEAD, ALIVE, "never-there"])
    assert broker.held(DEAD)
    assert move(broker, a_candidate()) == 1
    assert broker.app.amqp.queues[DEAD], "as Celery declares it when it sends"
    remove_queues(broker.app, [DEAD, ALIVE])
    assert [broker.client.exists(f"_kombu.binding.{name}") for name in (DEAD, ALIVE)] == [0, 1]
    assert DEAD not in broker.app.amqp.queues


def test_refused_removal_does_not_keep_other_queues_from_being_removed(mocker: MockerFixture) -> None:
    """It refuses with an error, and the channel is closed then."""
    from amqp.exceptions import PreconditionFailed
    from kombu.transport import memory

    remove = memory.Channel.queue_delete

    def queue_delete(channel: Any, queue: str, *, if_empty: bool = False, **others: Any) -> None:
        if if_empty and channel._size(queue):
            channel.close()
            raise PreconditionFailed(f"queue '{queue}' in vhost '/' not empty")
        remove(channel, queue, if_empty=if_empty, **others)

    mocker.patch.object(memory.Channel, "queue_delete", queue_delete)
    app = celery.Celery("airflow.executors.celery_executor", broker="memory://")
    app.send_task("something", queue=DEAD)
    remove_queues(app, [DEAD, ALIVE])
    state = memory.Transport.global_state
    # Each has an exchange of its own, which RabbitMQ would keep.
    assert {name for name in (DEAD, ALIVE) if name in state.exchanges} == {DEAD}
    assert {name for name in (DEAD, ALIVE) if list(state.queue_bindings(name))} == {DEAD}


def test_quorum_queues_are_removed_without_conditions(mocker: MockerFixture) -> None:
    """RabbitMQ has none for them, and ends the connection."""
    from kombu.transport import memory

    removed: list[tuple[Any, ...]] = []
    mocker.patch.object(
        memory.Channel, "queue_delete", lambda _channel, queue, **conditions: removed.append((queue, conditions))
    )
    app = celery.Celery("airflow.executors.celery_executor", broker="memory://")
    use_quorum_queues(app, mocker)
    app.send_task("something", queue=f"{DEAD}-quorum")
    remove_queues(app, [f"{DEAD}-quorum", f"{ALIVE}-quorum"])
    # (Removing an exchange is more than that on this broker.)
    (queue, conditions), *_ = removed
    assert (queue, any(conditions.values())) == (f"{ALIVE}-quorum", False)
    assert {queue for queue, _ in removed} == {f"{ALIVE}-quorum"}


def test_fetched_messages_are_found_below_a_global_key_prefix(database: Database, broker: Broker) -> None:
    broker.app.conf.broker_transport_options = {"global_keyprefix": "pre:"}
    (key,) = store(database, 1)
    broker.send(key)
    broker.fetch()
    assert broker.client.hlen("pre:unacked") == 1
    assert move(broker, a_candidate()) == 1
    assert (broker.client.hlen("pre:unacked"), broker.client.llen(f"pre:{ALIVE}")) == (0, 1)


def test_messages_that_a_live_worker_has_fetched_stay(database: Database, broker: Broker) -> None:
    for key in store(database, 3):
        broker.send(key)
    broker.fetch()
    assert move(broker, a_candidate(), is_gone=False) == 2
    assert broker.unacked() == 1


def test_message_of_a_try_that_ran_is_not_sent_again(database: Database, broker: Broker) -> None:
    running, waiting = store(database, 2)
    with database.engine.begin() as connection:
        change_try(connection, running, state="running")
    broker.send(running)
    broker.fetch()
    waiting_id = broker.send(waiting)
    assert move(broker, a_candidate()) == 1
    assert broker.ids(ALIVE) == [waiting_id]
    assert broker.unacked() == 0


def test_messages_stay_until_a_worker_has_room(database: Database, broker: Broker) -> None:
    ids = sorted(broker.send(key) for key in store(database, 5))
    assert move(broker, a_candidate(capacity=2)) == 2
    assert len(broker.ids(DEAD)) == 3
    assert broker.unacked() == 0
    assert move(broker) == 0
    assert move(broker, a_candidate()) == 3
    assert broker.ids(ALIVE) == ids


def test_message_that_no_other_worker_may_run_hides_none_behind_it(database: Database, broker: Broker) -> None:
    keys = store(database, 6)
    with database.engine.begin() as connection:
        table = metadata_database.task_instance_table()
        pinned = {"worker_insight": {"labels": {"zone": "moon"}}}
        connection.execute(update(table).where(table.c.map_index < 2).values(executor_config=pinned))
    ids = [broker.send(key) for key in keys]
    assert move(broker, a_candidate(), is_gone=False, limit=2) == 2
    assert broker.ids(ALIVE) == sorted(ids[2:4])
    assert [message["headers"]["id"] for message in broker.held(DEAD)] == [*ids[:2], *ids[4:]]


def test_message_that_stays_in_a_quorum_queue_is_published_anew(
    database: Database, broker: Broker, mocker: MockerFixture
) -> None:
    """RabbitMQ drops a message that returns to it too often."""
    use_quorum_queues(broker.app, mocker)
    ids = sorted(broker.send(key) for key in store(database, 3))
    before = [(message["body"], message["headers"]) for message in broker.held(DEAD)]
    assert move(broker) == 0
    # A message that returned would have another header.
    assert [(message["body"], message["headers"]) for message in broker.held(DEAD)] == before
    assert broker.unacked() == 0
    assert move(broker, a_candidate()) == 3
    assert broker.ids(ALIVE) == ids


def test_message_placed_on_the_same_worker_again_stays(database: Database, broker: Broker) -> None:
    """The worker was there a moment ago, and what is known of it is older than that."""
    ids = [broker.send(key) for key in store(database, 4)]
    with database.engine.connect() as connection:
        before = placements.open_placements(connection)
    source = replace(a_candidate(), ref=1, worker_id="dead", name="w1@host")
    assert move(broker, source, is_gone=False) == 0
    assert [message["headers"]["id"] for message in broker.held(DEAD)] == ids
    with database.engine.connect() as connection:
        assert placements.open_placements(connection) == before
    assert move(broker, source, a_candidate(capacity=1000), is_gone=False) == 4
    assert broker.ids(ALIVE) == ids


@pytest.mark.parametrize("waits", [False, True])
def test_message_that_airflow_has_given_up_is_not_sent_again(database: Database, broker: Broker, waits: bool) -> None:
    """The try was stuck here, and Airflow has queued it again: what is written of it is of the later message."""
    (key,) = store(database, 1)
    later = (
        Placement(key, PlacementReason.FULL, "waits")
        if waits
        else Placement(key, PlacementReason.LEAST_LOADED, "w3", worker_ref=3, dedicated_queue=dedicated_queue("third"))
    )
    with database.engine.begin() as connection:
        placements.write(connection, [later], now=NOON)
        before = placements.open_placements(connection)
    broker.send(key)
    assert move(broker, a_candidate(), is_gone=False) == 0
    # Where a scheduler died before it had written where it moved it, it is the only message.
    assert (len(broker.ids(DEAD)), broker.unacked()) == (0 if waits else 1, 0)
    assert broker.ids(ALIVE) == []
    with database.engine.connect() as connection:
        assert placements.open_placements(connection) == before


def test_reclaiming_ends_in_time_and_the_rest_stays(database: Database, broker: Broker) -> None:
    ids = sorted(broker.send(key) for key in store(database, 4))
    settings = ReclaimSettings(batch_size=2)
    clock = count(step=settings.timeout - 1)
    limited: dict[str, Any] = {"settings": settings, "clock": lambda: next(clock)}
    assert move(broker, a_candidate(), **limited) == 2
    assert len(broker.ids(DEAD)) == 2
    assert move(broker, a_candidate(), **limited) == 2
    assert broker.ids(ALIVE) == ids


def test_fallback_may_be_the_shared_queue(database: Database, broker: Broker) -> None:
    ids = [broker.send(key) for key in store(database, 2)]
    assert move(broker, fallback="shared_queue") == 2
    assert broker.ids("default") == sorted(ids)


def test_more_messages_than_a_batch_are_moved(database: Database, broker: Broker) -> None:
    for key in store(database, 250):
        broker.send(key)
    assert move(broker, a_candidate(capacity=1000)) == 250
    assert len(broker.held(ALIVE)) == 250


def test_commands_of_airflow_2_are_moved(database: Database, broker: Broker) -> None:
    ids = [broker.send(key, command=True) for key in store(database, 3)]
    assert move(broker, a_candidate()) == 3
    assert broker.ids(ALIVE) == sorted(ids)


def test_foreign_messages_stay(database: Database, broker: Broker) -> None:
    (key,) = store(database, 1)
    broker.app.send_task("something", args=[{"a": 1}], queue=DEAD)
    broker.app.send_task("something", args=['{"ti": {"dag_id": 1}}'], queue=DEAD)
    ours = broker.send(key)
    assert move(broker, a_candidate()) == 1
    assert (len(broker.held(DEAD)), broker.ids(ALIVE)) == (2, [ours])


def test_message_from_rabbitmq_keeps_its_properties(broker: Broker) -> None:
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "application_headers": {"id": "id-1"},
        "delivery_mode": 2,
        "priority": 0,
        "correlation_id": "id-1",
        "reply_to": "somebody",
        "expiration": "60000",
    }
    message = SimpleNamespace(
        body=b"[]",
        headers={"id": "id-1"},
        content_type="application/json",
        content_encoding="utf-8",
        properties=properties,
    )
    with broker.app.connection_for_write() as connection:
        reclaim._publish(connection.channel(), message, ALIVE)
    (sent,) = broker.held(ALIVE)
    assert (sent["headers"], sent["content-type"]) == ({"id": "id-1"}, "application/json")
    kept = ("priority", "correlation_id", "reply_to")
    assert {name: sent["properties"][name] for name in kept} == {name: properties[name] for name in kept}


def test_later_of_two_messages_of_one_try_is_sent(database: Database, broker: Broker) -> None:
    (key,) = store(database, 1)
    broker.send(key, task_id="revoked")
    broker.send(key, task_id="again")
    assert move(broker, a_candidate()) == 1
    assert (broker.held(DEAD), broker.ids(ALIVE)) == ([], ["again"])


def failing_after(number: int, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that works so many times, and fails from then on."""
    calls = count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) > number:
            raise ConnectionError("the broker is gone")
        return func(*args, **kwargs)

    return call


def test_message_that_cannot_be_sent_stays_and_is_recorded_there(
    database: Database, broker: Broker, mocker: MockerFixture
) -> None:
    ids = sorted(broker.send(key) for key in store(database, 3))
    publish = mocker.patch.object(
        reclaim.Producer, "publish", autospec=True, side_effect=failing_after(1, reclaim.Producer.publish)
    )
    with pytest.raises(ConnectionError):
        move(broker, a_candidate())
    mocker.stop(publish)
    assert (len(broker.held(ALIVE)), len(broker.held(DEAD)), broker.unacked()) == (1, 2, 0)
    with database.engine.connect() as connection:
        assert len(placements.open_placements(connection, dedicated_queues=[DEAD])) == 2
    assert move(broker, a_candidate()) == 2
    assert broker.ids(ALIVE) == ids
