"""Take back what waits at a Celery worker that will not run it, and place it again.

A message is read from the worker's own queue, placed by the same rules as any task, and published as it is, with the
same task ID, to another worker's: so it does not matter which scheduler sent it. On Redis a worker also keeps what it
has fetched and not acknowledged in a hash; what is there of a worker that is gone is put back into its queue first.
RabbitMQ does that by itself.

Airflow refuses to start a try twice, so a message that exists twice for a moment is run once.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

# Imported with this module and not in the thread: a process forked meanwhile would inherit the import's lock for ever.
from kombu import Producer

from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.executors.celery.queues import as_declared, own_queue
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementResult
from airflow_worker_insight.registry.sources.celery import connected
from airflow_worker_insight.store import placements, session
from airflow_worker_insight.store.clock import database_now

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot
    from airflow_worker_insight.store.placements import Placement

log = logging.getLogger(__name__)

BATCH = 100
"""Messages that are read, placed and sent at once."""

MAX_MOVED = 10_000
"""Messages that are moved from one worker at once."""

MOVE_SECONDS = 10.0
"""How long messages are moved from one worker at once; what is left is there for the next time."""

SCAN = 500
"""Entries of Redis's hash that are read at once."""

KEPT_PROPERTIES = ("correlation_id", "reply_to", "priority")
"""What Celery has written beside a message, its headers and its kind."""


def reclaim_tasks(
    app: Any,
    queue: str,
    desk: PlacementService,
    snapshot: Snapshot,
    *,
    came_from: str,
    is_gone: bool = False,
    most: int = MAX_MOVED,
) -> int:
    """Move the messages of a worker's own queue to other workers; what nobody else has room for stays there.

    :param came_from: the worker's name, for the reader
    :param is_gone: whether the worker is no more: then also what it had fetched is taken
    :param most: how many to move at most
    :return: how many were moved
    """
    moved = 0
    ends_at = time.monotonic() + MOVE_SECONDS
    with connected(app) as connection:
        channel = connection.channel()
        source = as_declared(app, queue)(channel)
        source.declare()
        known = _known(queue)
        if is_gone and connection.transport.driver_type == "redis":
            _restore(channel, queue, known)
        left = 0
        while not left and moved < most and time.monotonic() < ends_at:
            # More than are moved: the first may be such as nobody else may have.
            messages = list(_read(source, app.conf.accept_content, BATCH))
            if not messages:
                break
            note = f"taken back from {came_from}: "
            done, left = _place_again(source, messages, known, desk, snapshot, most=most - moved, note=note)
            moved += done
    if moved:
        count("placement.moved", moved)
        log.info("Airflow Worker Insight took %d tasks back from %s and placed them again", moved, came_from)
    return moved


def remove_queues(app: Any, queues: Iterable[str]) -> None:
    """Remove the own queues of workers that have been gone for long, but for those in which something is left."""
    with connected(app) as connection:
        for name in queues:
            # RabbitMQ refuses to remove one in which something is left or that is consumed, and closes the channel.
            with connection.channel() as channel, suppress(*connection.channel_errors):
                _remove(as_declared(app, name)(channel))
            # Celery remembers each queue that it has ever sent to.
            app.amqp.queues.pop(name, None)


def _remove(queue: Any) -> None:
    # One that is not there cannot be removed on every broker.
    queue.declare()
    if queue.queue_arguments:
        # RabbitMQ's quorum queues know no conditions: it ends the connection of whoever makes some.
        _, waiting, consumers = queue.queue_declare()
        if waiting or consumers:
            return
        queue.delete()
    else:
        queue.delete(if_empty=True, if_unused=True)
    # Celery has made one for each queue. RabbitMQ would keep it for ever.
    queue.exchange.delete(if_unused=True)


def _known(queue: str) -> dict[tuple[str, str, str, int], Placement]:
    """Return what is placed on a queue, by the names of the task instance."""
    with session.reading(session.BACKGROUND) as connection:
        found = placements.open_placements(connection, own_queues=[queue])
    return {one.key.task_instance.as_tuple(): one for one in found}


def _read(source: Any, accept: Any, most: int) -> Iterator[Any]:
    for _ in range(most):
        message = source.get(no_ack=False, accept=accept)
        if message is None:
            return
        yield message


def _place_again(
    source: Any,
    messages: Sequence[Any],
    known: dict[tuple[str, str, str, int], Placement],
    desk: PlacementService,
    snapshot: Snapshot,
    *,
    most: int,
    note: str,
) -> tuple[int, int]:
    """Send messages on to whoever they are placed on now; return how many went, and how many went back."""
    by_key: dict[TryKey, Any] = {}
    left = 0
    for message in messages:
        key = _key(message, known)
        if key is None:
            warn_once("placing.unread", "Airflow Worker Insight leaves messages alone that it cannot read")
            _put_back(source, message)
            left += 1
        else:
            if key in by_key:
                # Airflow has revoked the earlier one as stuck and queued the try again, or a scheduler died while it
                # moved it.
                by_key[key].ack()
            by_key[key] = message
    with session.writing(session.BACKGROUND) as connection:
        wanted = placements.wanted(connection, list(by_key))
        queued = {key: one for key, one in wanted.items() if one.state == QUEUED}
        # Airflow has revoked the message as stuck and queued the try again: what is written of it is of the later one.
        later = {
            key: one for key, one in placements.open_of(connection, queued).items() if one.own_queue != source.name
        }
        asked = [
            PlacementRequest(key, one.queue, one.executor_config, one.pool)
            for key, one in queued.items()
            if key not in later
        ]
        decided = desk.decide(connection, asked, snapshot, most=most)
        # What would come back to where it is stays, or this would go on and on with it.
        placed = [one for one in decided if not one.waits and _target(one)[1] != source.name]
    sent: list[PlacementResult] = []
    try:
        for one in placed:
            message = by_key[one.asked.key]
            _publish(source.channel, message, _target(one)[1])
            message.ack()
            sent.append(one)
            del by_key[one.asked.key]
    finally:
        # Only now: what is not sent, because this scheduler dies or the broker does, is to be found where it was.
        with session.writing(session.BACKGROUND) as connection:
            written = [_moved(one, known, note) for one in sent]
            placements.write(connection, written, now=database_now(connection))
    for key, message in by_key.items():
        if key in queued and not (key in later and later[key].waits):
            # Also an earlier message: where a scheduler died before it wrote to whom it moved it, it is the only one.
            _put_back(source, message)
            left += 1
        else:
            # It has ended meanwhile, or runs already, so that Airflow would refuse to start it; or it is with its
            # scheduler, which will send it again.
            message.ack()
    return len(placed), left


def _moved(one: PlacementResult, known: dict[tuple[str, str, str, int], Placement], note: str) -> Placement:
    """Return what is written of it: it goes on from where it was placed first, by which its scheduler knows it."""
    before = known.get(one.asked.key.task_instance.as_tuple())
    placed_at = before.placed_at if before is not None and before.key == one.asked.key else None
    return replace(one.placement(_target(one)[0], note=note), placed_at=placed_at)


def _put_back(source: Any, message: Any) -> None:
    if source.queue_arguments:
        # A quorum queue counts how often a message comes back, and drops it when that is too often for it.
        _publish(source.channel, message, source.name)
        message.ack()
    else:
        message.reject(requeue=True)


def _target(one: PlacementResult) -> tuple[str | None, str]:
    """Return the own queue of the worker, if there is one, and the queue to send to."""
    worker = one.decision.worker
    return (None, one.asked.queue) if worker is None else (own_queue(worker.worker_id),) * 2


def _publish(channel: Any, message: Any, queue: str) -> None:
    # All else is given here, or the broker's own, and each broker has others.
    properties = {name: message.properties[name] for name in KEPT_PROPERTIES if name in message.properties}
    Producer(channel, auto_declare=False).publish(
        message.body,
        exchange="",
        routing_key=queue,
        headers=message.headers,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        delivery_mode=2,
        **properties,
    )


def _key(message: Any, known: dict[tuple[str, str, str, int], Placement]) -> TryKey | None:
    """Return whose message it is: Airflow 3's holds the workload, 2.11's a command without the try's number."""
    try:
        argument = message.payload[0][0]
        if isinstance(argument, str):
            ti = json.loads(argument)["ti"]
            dag_id, run_id, task_id = (str(ti[name]) for name in ("dag_id", "run_id", "task_id"))
            return TryKey(dag_id, run_id, task_id, int(ti["map_index"]), int(ti["try_number"]))
        dag_id, task_id, run_id = argument[3:6]
        map_index = int(argument[argument.index("--map-index") + 1]) if "--map-index" in argument else -1
        return known[dag_id, run_id, task_id, map_index].key
    except Exception:
        log.debug("Airflow Worker Insight cannot read a message", exc_info=True)
        return None


# --- what a worker on Redis had fetched ------------------------------------------------------------------------------


def _restore(channel: Any, queue: str, known: dict[tuple[str, str, str, int], Placement]) -> None:
    """Put what a worker that is gone had fetched from its own queue back into it, if it has not begun to run."""
    found = {tag: key for tag, key in _fetched(channel, queue, known) if key is not None}
    if not found:
        return
    with session.reading(session.BACKGROUND) as connection:
        wanted = placements.wanted(connection, list(set(found.values())))
    for tag, key in found.items():
        one = wanted.get(key)
        if one is not None and one.state == QUEUED:
            channel.qos.restore_by_tag(tag)
        else:
            # It ran there, or has ended: only Airflow's own heartbeat of the try may say what becomes of it.
            channel.qos.ack(tag)


def _fetched(
    channel: Any, queue: str, known: dict[tuple[str, str, str, int], Placement]
) -> Iterator[tuple[str, TryKey | None]]:
    with channel.conn_or_acquire() as client:
        # kombu puts the prefix of its keys before those of some commands only, and not of this one
        # (kombu.transport.redis.GlobalKeyPrefixMixin).
        key = f"{getattr(client, 'global_keyprefix', '')}{channel.unacked_key}"
        entries: Iterable[tuple[bytes, bytes]] = list(client.hscan_iter(key, count=SCAN))
    for tag, entry in entries:
        if queue.encode() not in entry:
            continue
        raw, _exchange, routing_key = json.loads(entry)
        if routing_key == queue:
            yield tag.decode(), _key(channel.message_to_python(raw), known)
