"""Reclaim and redelivery of messages that wait at a Celery worker which will not run them.

A message is read from the worker's dedicated queue, placed by the same rules as any task, and published unchanged, with
the same task ID, to another worker's queue. It does not matter which scheduler sent it. On Redis a worker also keeps
messages that it has fetched and not acknowledged in a hash; those of a worker that is gone are first put back into its
queue. RabbitMQ does that by itself.

Airflow refuses to start a try twice, so a message that briefly exists twice is run once.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

# Not imported in the thread: a process forked meanwhile would inherit the import's lock, held for ever.
from kombu import Producer

from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementResult
from airflow_worker_insight.registry.sources.celery_consumers import declared_queue
from airflow_worker_insight.registry.sources.celery_control import connected
from airflow_worker_insight.store import placements, session
from airflow_worker_insight.store.clock import database_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot
    from airflow_worker_insight.store.placements import Placement

log = logging.getLogger(__name__)

FORWARDED_PROPERTIES = ("correlation_id", "reply_to", "priority")
"""Properties set by Celery to keep on redelivery, besides headers and content type."""


@dataclass(frozen=True, slots=True)
class ReclaimSettings:
    """Limits per call."""

    batch_size: int = 100
    """How many messages to read, place and send per batch."""
    max_moved: int = 10_000
    """How many messages to move from a worker at most."""
    timeout: float = 10.0
    """Seconds after which to start no further batch; the rest is left for the next call."""
    scan_count: int = 500
    """How many entries of Redis's hash to read at once."""


DEFAULTS = ReclaimSettings()


class Reclaimer:
    """Reclaims messages from dedicated queues, and removes unused ones."""

    def __init__(
        self,
        app: Any,
        service: PlacementService,
        *,
        settings: ReclaimSettings = DEFAULTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._service = service
        self._settings = settings
        self._clock = clock

    def reclaim_tasks(
        self, queue: str, snapshot: Snapshot, *, worker_name: str, is_gone: bool = False, limit: int | None = None
    ) -> int:
        """Move the messages of a worker's dedicated queue to other workers.

        Messages that no other worker has room for stay there.

        :param queue: the name of the dedicated queue
        :param worker_name: the worker's name, for logs and pages
        :param is_gone: whether the worker is gone; if so, messages that it had fetched are reclaimed, too
        :param limit: how many messages to move at most
        :return: how many messages were moved
        """
        limit = self._settings.max_moved if limit is None else limit
        moved = 0
        ends_at = self._clock() + self._settings.timeout
        with connected(self._app) as connection:
            channel = connection.channel()
            source = declared_queue(self._app, queue)(channel)
            source.declare()
            placed = _placements_on(queue)
            if is_gone and connection.transport.driver_type == "redis":
                _restore(channel, queue, placed, scan_count=self._settings.scan_count)
            put_back = 0
            while not put_back and moved < limit and self._clock() < ends_at:
                # Read more than will be moved: perhaps no other worker may run the first messages.
                messages = list(_read_messages(source, self._app.conf.accept_content, self._settings.batch_size))
                if not messages:
                    break
                note = f"reclaimed from {worker_name}: "
                sent, put_back = _redeliver(
                    source, messages, placed, self._service, snapshot, limit=limit - moved, note=note
                )
                moved += sent
        if moved:
            count("placement.moved", moved)
            log.info("Airflow Worker Insight reclaimed %d tasks from %s and placed them again", moved, worker_name)
        return moved

    def remove_queues(self, queues: Iterable[str]) -> None:
        """Remove dedicated queues of workers that are long gone, except those with messages left."""
        with connected(self._app) as connection:
            for name in queues:
                # RabbitMQ refuses to remove a queue that has messages or consumers, and closes the channel.
                with connection.channel() as channel, suppress(*connection.channel_errors):
                    _remove(declared_queue(self._app, name)(channel))
                # Celery keeps every queue that it has ever sent to.
                self._app.amqp.queues.pop(name, None)


def _remove(queue: Any) -> None:
    # Not every broker can remove a queue that does not exist.
    queue.declare()
    if queue.queue_arguments:
        # RabbitMQ closes the connection on a conditional removal of a quorum queue.
        _, waiting, consumers = queue.queue_declare()
        if waiting or consumers:
            return
        queue.delete()
    else:
        queue.delete(if_empty=True, if_unused=True)
    # Celery has declared an exchange for each queue; RabbitMQ would keep it for ever.
    queue.exchange.delete(if_unused=True)


def _placements_on(queue: str) -> dict[tuple[str, str, str, int], Placement]:
    """Return the open placements on a queue, by task instance."""
    with session.reading(session.BACKGROUND) as connection:
        rows = placements.open_placements(connection, dedicated_queues=[queue])
    return {placement.key.task_instance.as_tuple(): placement for placement in rows}


def _read_messages(source: Any, accept: Any, limit: int) -> Iterator[Any]:
    for _ in range(limit):
        message = source.get(no_ack=False, accept=accept)
        if message is None:
            return
        yield message


def _redeliver(
    source: Any,
    messages: Sequence[Any],
    placed_before: dict[tuple[str, str, str, int], Placement],
    service: PlacementService,
    snapshot: Snapshot,
    *,
    limit: int,
    note: str,
) -> tuple[int, int]:
    """Place messages again and send them; return how many were sent, and how many put back."""
    by_key: dict[TryKey, Any] = {}
    put_back = 0
    for message in messages:
        key = _parse_key(message, placed_before)
        if key is None:
            warn_once("placing.unread", "Airflow Worker Insight leaves messages in place that it cannot read")
            _put_back(source, message)
            put_back += 1
        else:
            if key in by_key:
                # Drop the duplicate: Airflow has revoked it as stuck and queued the try again, or a scheduler died
                # while moving it.
                by_key[key].ack()
            by_key[key] = message
    with session.writing(session.BACKGROUND) as connection:
        wanted = placements.try_details(connection, list(by_key))
        queued = {key: task for key, task in wanted.items() if task.state == QUEUED}
        # Tries placed again since: Airflow has revoked the message as stuck and queued the try again.
        later = {
            key: placement
            for key, placement in placements.open_placements_of(connection, queued).items()
            if placement.dedicated_queue != source.name
        }
        requests = [
            PlacementRequest(key, task.queue, task.executor_config, task.pool)
            for key, task in queued.items()
            if key not in later
        ]
        results = service.decide(connection, requests, snapshot, limit=limit)
        # A message placed on the same queue again stays, or this would never end.
        to_send = [result for result in results if not result.waits and _target(result)[1] != source.name]
    sent: list[PlacementResult] = []
    try:
        for result in to_send:
            message = by_key[result.request.key]
            _publish(source.channel, message, _target(result)[1])
            message.ack()
            sent.append(result)
            del by_key[result.request.key]
    finally:
        # Recorded after sending: if this scheduler or the broker dies, unsent messages are recorded where they are.
        with session.writing(session.BACKGROUND) as connection:
            written = [_redelivered_placement(result, placed_before, note) for result in sent]
            placements.write(connection, written, now=database_now(connection))
    for key, message in by_key.items():
        if key in queued and not (key in later and later[key].waits):
            # Also an earlier message: it is the only one if a scheduler died before it recorded the move.
            _put_back(source, message)
            put_back += 1
        else:
            # The try has ended or is running, so that Airflow would refuse to start it; or it waits in its scheduler,
            # which will send it again.
            message.ack()
    return len(to_send), put_back


def _redelivered_placement(
    result: PlacementResult, placed_before: dict[tuple[str, str, str, int], Placement], note: str
) -> Placement:
    """Return the record of a redelivery; it keeps the time of the first placement.

    The try's scheduler knows the placement by that time.
    """
    previous = placed_before.get(result.request.key.task_instance.as_tuple())
    placed_at = previous.placed_at if previous is not None and previous.key == result.request.key else None
    return replace(result.placement(_target(result)[0], note=note), placed_at=placed_at)


def _put_back(source: Any, message: Any) -> None:
    if source.queue_arguments:
        # A quorum queue counts redeliveries of a message, and drops the message at its limit.
        _publish(source.channel, message, source.name)
        message.ack()
    else:
        message.reject(requeue=True)


def _target(result: PlacementResult) -> tuple[str | None, str]:
    """Return the dedicated queue of the chosen worker, if any, and the queue to send to."""
    worker = result.decision.worker
    return (None, result.request.queue) if worker is None else (dedicated_queue(worker.worker_id),) * 2


def _publish(channel: Any, message: Any, queue: str) -> None:
    # All other properties are set below, or are specific to a broker.
    properties = {name: message.properties[name] for name in FORWARDED_PROPERTIES if name in message.properties}
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


def _parse_key(message: Any, placed_before: dict[tuple[str, str, str, int], Placement]) -> TryKey | None:
    """Return the try that a message belongs to, or ``None`` if the message cannot be read.

    Airflow 3's messages hold the workload, 2.11's a command without the number of the try.
    """
    try:
        argument = message.payload[0][0]
        if isinstance(argument, str):
            ti = json.loads(argument)["ti"]
            dag_id, run_id, task_id = (str(ti[name]) for name in ("dag_id", "run_id", "task_id"))
            return TryKey(dag_id, run_id, task_id, int(ti["map_index"]), int(ti["try_number"]))
        dag_id, task_id, run_id = argument[3:6]
        map_index = int(argument[argument.index("--map-index") + 1]) if "--map-index" in argument else -1
        return placed_before[dag_id, run_id, task_id, map_index].key
    except Exception:
        log.debug("Airflow Worker Insight cannot read a message", exc_info=True)
        return None


# --- messages that a worker on Redis had fetched ---------------------------------------------------------------------


def _restore(
    channel: Any, queue: str, placed_before: dict[tuple[str, str, str, int], Placement], *, scan_count: int
) -> None:
    """Put messages that a gone worker had fetched back into its queue, unless they started."""
    keys_by_tag = {tag: key for tag, key in _fetched(channel, queue, placed_before, scan_count) if key is not None}
    if not keys_by_tag:
        return
    with session.reading(session.BACKGROUND) as connection:
        wanted = placements.try_details(connection, list(set(keys_by_tag.values())))
    for tag, key in keys_by_tag.items():
        task = wanted.get(key)
        if task is not None and task.state == QUEUED:
            channel.qos.restore_by_tag(tag)
        else:
            # The try ran there, or has ended: only Airflow's own task heartbeat may decide what happens to it.
            channel.qos.ack(tag)


def _fetched(
    channel: Any, queue: str, placed_before: dict[tuple[str, str, str, int], Placement], scan_count: int
) -> Iterator[tuple[str, TryKey | None]]:
    with channel.conn_or_acquire() as client:
        # kombu prefixes keys in some commands only, and not in this one (kombu.transport.redis.GlobalKeyPrefixMixin).
        hash_key = f"{getattr(client, 'global_keyprefix', '')}{channel.unacked_key}"
        entries: Iterable[tuple[bytes, bytes]] = list(client.hscan_iter(hash_key, count=scan_count))
    for tag, entry in entries:
        if queue.encode() not in entry:
            continue
        raw, _exchange, routing_key = json.loads(entry)
        if routing_key == queue:
            yield tag.decode(), _parse_key(channel.message_to_python(raw), placed_before)
