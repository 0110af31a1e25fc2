"""Keep work off workers with executors that know no decisions: by what their worker source can do.

It runs after each poll of a source in the process that polled, and shortly after a decision in the process that wrote
it. Two processes may do so at the same time: each asks the worker, and neither forgets what the other has written.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from airflow_worker_insight import config
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.domain.enforcement import after, request_for, with_queues
from airflow_worker_insight.domain.limits import REASON_LENGTH
from airflow_worker_insight.domain.names import clean
from airflow_worker_insight.domain.states import WorkerAvailability
from airflow_worker_insight.registry.sources import configured_sources
from airflow_worker_insight.store import enforcement as store
from airflow_worker_insight.store import session
from airflow_worker_insight.store.clock import database_now

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime

    from airflow_worker_insight.domain.enforcement import Answer, Request
    from airflow_worker_insight.registry.observations import Remember

log = logging.getLogger(__name__)


@runtime_checkable
class EnforcingSource(Protocol):
    """A worker source that can keep work off its workers. Its name is the kind of its workers."""

    keeps_requests: bool
    """Whether the source itself keeps what was asked, also of workers that this package no longer knows to be alive."""

    @property
    def name(self) -> str:
        """Return the source's name."""

    def enforce(self, request: Request, remember: Remember) -> Mapping[str, Answer]:
        """Do what is asked; return what each worker does now, by the source's names of workers.

        Any exception says why it could not be done.

        :param remember: stores what each worker consumes; the source calls it before it tells any worker to stop
        """


_is_due = Event()


def enforce_soon() -> None:
    """Have this process enforce decisions within seconds, if it has a poll thread: a user has just decided."""
    _is_due.set()


def enforce_if_due() -> None:
    """Enforce decisions if :func:`enforce_soon` was called; the poll thread calls this."""
    if not _is_due.is_set():
        return
    _is_due.clear()
    for source in configured_sources(config.executor()):
        if isinstance(source, EnforcingSource):
            enforce(source, poll_error=None, clock=_database_now)


def _database_now() -> datetime:
    with session.reading(session.BACKGROUND) as connection:
        return database_now(connection)


def enforce(source: object, *, poll_error: str | None, clock: Callable[[], datetime]) -> None:
    """Have a source's workers do what was decided about them, and store what they do; never raise.

    :param source: a worker source; one that cannot keep work off its workers is passed over
    :param poll_error: why the poll before failed: then no worker can be reached now
    :param clock: returns the time by the database's clock
    """
    if not isinstance(source, EnforcingSource):
        return
    try:
        _enforce(source, poll_error, clock)
    except Exception:
        # An error of the database: the next poll tries again.
        count(f"enforcement.failed.{source.name}")
        log.debug("Enforcing decisions on the workers of %s failed", source.name, exc_info=True)


def _enforce(source: EnforcingSource, poll_error: str | None, clock: Callable[[], datetime]) -> None:
    with session.reading(session.BACKGROUND) as connection:
        workers = store.enforced_workers(connection, source.name)
    if not config.enforce_availability():
        # What was done before it was switched off is undone.
        workers = [replace(each, availability=WorkerAvailability.AVAILABLE) for each in workers if each.enforcement]
    if not workers and not source.keeps_requests:
        return

    def remember(consumed: Mapping[str, Collection[str]]) -> None:
        # Written before anything is cancelled: whatever happens then, the queues can be given back.
        with session.writing(session.BACKGROUND) as connection:
            store.change(
                connection,
                {
                    each.ref: partial(with_queues, queues=consumed[each.engine_name], now=clock())
                    for each in workers
                    if each.is_held and consumed.get(each.engine_name)
                },
            )

    answers: Mapping[str, Answer] = {}
    error = poll_error
    if error is None:
        try:
            answers = source.enforce(request_for(workers), remember)
        except Exception as failure:
            count(f"enforcement.failed.{source.name}")
            log.debug("Enforcing decisions on the workers of %s failed", source.name, exc_info=True)
            error = clean(str(failure), REASON_LENGTH) or type(failure).__name__
    if error is not None and workers:
        warn_once(
            f"enforcement.{source.name}",
            "Airflow Worker Insight cannot keep work off the workers of %s that are drained or quarantined: %s",
            source.name,
            error,
        )
    now = clock()
    changes = {}
    for each in workers:
        known_after = partial(after, each, answer=answers.get(each.engine_name), error=error, now=now)
        if known_after(each.enforcement) != each.enforcement:
            changes[each.ref] = known_after
    again = {
        each.ref: answers[each.engine_name].queues
        for each in workers
        if each.ref in changes and not each.is_held and each.engine_name in answers
    }
    if changes:
        with session.writing(session.BACKGROUND) as connection:
            store.change(connection, changes)
            store.set_queues(connection, {ref: queues for ref, queues in again.items() if queues})
