"""What the pages show, read and built for one reader; whether it may be shown is asked by those who call."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight import compat, config
from airflow_worker_insight.api import database
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.filters import AttemptFilter, PlacementFilter, WorkerFilter
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.attempts import by_worker
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import availability, freshness
from airflow_worker_insight.store.workers import counts as worker_counts
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.ui.query_params import SEEN, WINDOWS, InvalidUrlError
from airflow_worker_insight.ui.views import attempts as attempts_view
from airflow_worker_insight.ui.views import timeline, waiting, worker
from airflow_worker_insight.ui.views import workers as workers_view
from airflow_worker_insight.ui.views.panel import Panel, build_panel
from airflow_worker_insight.ui.views.parts import Notice

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import Group, WorkerRow
    from airflow_worker_insight.ui.query_params import (
        AttemptsAddress,
        PanelAddress,
        WaitingAddress,
        WorkerAddress,
        WorkersAddress,
        WrittenDecision,
    )

_WORKER_ID = re.compile(r"[A-Za-z0-9._@:-]{1,64}")

HEADERS = {
    # Everything a page needs comes from here; inside Airflow's own pages it may be framed, elsewhere not.
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
"""Of every answer."""

NO_SUCH_WORKER = (
    "No worker with this ID was recorded here. An ID that stands for all workers of a host is recorded when the Dag "
    "run of its first try has ended."
)
NOT_FROM_HERE = (
    "The browser does not say that a page of this server sent this change, so it was not made. Open the worker’s page "
    "and try again."
)

_NO_RIGHT = (
    "Airflow does not let you see or do this. Ask an administrator for the right to read this Dag’s task instances; "
    "for the pages of workers, to read Airflow’s jobs; to decide of a worker, to edit Airflow’s pools."
)
_TITLES = {
    403: "Not for you to see",
    404: "Not found",
    422: "This address cannot be right",
    503: "Not ready yet",
}


def panel(address: PanelAddress, *, sees_workers: bool) -> Panel:
    """Return the panel of a task instance.

    :param sees_workers: whether the reader may see how workers fare and how much runs on them
    """
    with database.reading() as connection:
        attempts = attempt_queries.task_instance_attempts(
            connection,
            dag_id=address.dag_id,
            run_id=address.run_id,
            task_id=address.task_id,
            map_index=address.map_index,
        )
        worker_ids = {worker.worker_id for one in attempts for worker in one.workers}
        lives = worker_queries.get_workers(connection, worker_ids) if sees_workers else {}
        # Of a task instance that nobody knows nothing was placed either.
        kept = {
            one.try_number: placements.Why(one.placement, one.placement_detail)
            for one in attempts
            if one.placement is not None
        }
        placed = placements.why(connection, attempt_queries.key_of(attempts[0]), kept) if attempts else {}
    if not sees_workers:
        attempts = [attempt_queries.without_neighbours(one) for one in attempts]
        # The line names workers that the try has nothing to do with.
        placed = {number: replace(one, detail=None) for number, one in placed.items()}
    return build_panel(address, attempts, lives, now=datetime.now(tz=timezone.utc), placed=placed)


def workers_page(address: WorkersAddress) -> workers_view.WorkersPage:
    """Return the list of workers."""
    with database.reading() as connection:
        now = database_now(connection)
        filters = worker_queries.narrowed(connection, _worker_filter(address, now))
        rows: list[WorkerRow] = []
        total = 0
        groups: list[Group] = []
        if address.group:
            groups, total = worker_counts.group_workers(
                connection, filters, by=address.group, limit=workers_view.GROUPS_PAGE_SIZE, offset=address.offset
            )
        else:
            rows, total = worker_queries.list_workers(
                connection, filters, order_by=address.order, limit=workers_view.PAGE_SIZE, offset=address.offset
            )
        listing = workers_view.Listing(
            rows=rows,
            total=total,
            groups=groups,
            counts=worker_counts.count_states(connection, filters),
            decisions=worker_queries.decisions(connection, [row for row in rows if row.availability != "available"]),
            label_keys=worker_counts.label_keys(connection),
            any_worker=bool(rows or groups) or _any_worker(connection),
            engines=freshness.list_engines(connection),
        )
    return workers_view.build_workers_page(address, listing, now=now, looks_by_itself=compat.is_airflow_3())


def _any_worker(connection: Connection) -> bool:
    return bool(worker_queries.list_workers(connection, WorkerFilter(), limit=1, offset=0)[0])


def _worker_filter(address: WorkersAddress, now: datetime) -> WorkerFilter:
    seen = SEEN[address.seen]
    key, _, value = address.label.partition("=")
    return WorkerFilter(
        states=workers_view.listed_states(address),
        kind=address.kind or None,
        hostname=address.hostname or None,
        label=(key.strip(), value.strip()) if address.label else None,
        queue=address.queue or None,
        availability=address.availability or None,
        search=address.search or None,
        seen_since=None if seen is None else now - seen,
    )


def worker_page(
    worker_id: str, address: WorkerAddress, *, dag_ids: Collection[str] | None, may_decide: bool
) -> worker.WorkerPage | None:
    """Return the page of a worker, or ``None`` for one that was never seen.

    :param dag_ids: the Dags whose tries the reader may see; ``None`` for one who may see no tries at all
    :param may_decide: whether the reader may change the worker's availability
    """
    may_read, dag_ids = dag_ids is not None, frozenset(dag_ids or ())
    # An ID that no worker can have need not be asked for.
    if not _WORKER_ID.fullmatch(worker_id):
        return None
    with database.reading() as connection:
        row = worker_queries.get_worker(connection, worker_id)
        if row is None:
            return None
        now = database_now(connection)
        since, until = timeline.window(address, row, now)
        first, last = timeline.chart_window(address, row, now)
        drawn = by_worker.stays_between(
            connection, row, dag_ids=dag_ids, since=since, until=until, limit=timeline.MAX_TRIES + 1
        )
        life = worker.WorkerInstance(
            row=row,
            is_whole=attempt_queries.are_all_dags(connection, dag_ids),
            changes=worker_queries.changes(connection, row, limit=worker.MAX_CHANGES),
            decision=worker_queries.decisions(connection, [row]).get(row.ref),
            others=[] if row.host_only else worker_queries.other_lives(connection, row, limit=worker.MAX_LIVES),
            running=by_worker.running_now(connection, row, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            placed=placements.placed_on(connection, row.ref, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            taken=placements.open_on(connection, row.ref),
            places=config.places_tasks(),
            struck=by_worker.lost_attempts(connection, row, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            drawn=drawn[: timeline.MAX_TRIES],
            is_cut=len(drawn) > timeline.MAX_TRIES,
            outcomes=by_worker.outcomes_per_hour(connection, row, dag_ids=dag_ids, since=first, until=last),
            attempts=attempt_queries.find_attempts(
                connection,
                AttemptFilter(worker_id=row.worker_id),
                dag_ids=dag_ids,
                limit=worker.PAGE_SIZE,
                offset=address.offset,
            ),
        )
    return worker.build_worker_page(life, address, may_read=may_read, may_decide=may_decide, now=now)


def decide(worker_id: str, decision: WrittenDecision, *, changed_by: str) -> bool:
    """Write what a person decided of a worker; ``False`` for a worker of which nothing can be decided.

    :param changed_by: the person's name
    :raises InvalidUrlError: when the worker's life is over and the decision would mean nothing
    """
    if not _WORKER_ID.fullmatch(worker_id):
        return False
    with database.writing() as connection:
        try:
            row = availability.set_availability(
                connection,
                worker_id,
                decision.availability,
                note=decision.note or None,
                changed_by=changed_by,
                now=database_now(connection),
            )
        except availability.HostOnlyWorkerError:
            return False
        except availability.WorkerEndedError as error:
            raise InvalidUrlError(str(error)) from None
    return row is not None


def attempts_page(
    address: AttemptsAddress, *, dag_ids: Collection[str], sees_workers: bool
) -> attempts_view.AttemptsPage:
    """Return the list of tries.

    :param dag_ids: the Dags whose tries the reader may see
    :param sees_workers: as for :func:`panel`
    """
    with database.reading() as connection:
        now = database_now(connection)
        found = attempt_queries.find_attempts(
            connection,
            _attempt_filter(connection, address, now),
            dag_ids=dag_ids,
            limit=attempts_view.PAGE_SIZE,
            offset=address.offset,
        )
    if not sees_workers:
        found = replace(found, attempts=[attempt_queries.without_neighbours(one) for one in found.attempts])
    return attempts_view.build_attempts_page(
        address, found, dag_ids=dag_ids, states=metadata_database.task_instance_states(), now=now
    )


def _attempt_filter(connection: Connection, address: AttemptsAddress, now: datetime) -> AttemptFilter:
    since, until = address.since, address.until
    length = WINDOWS[address.window]
    if since is None and until is None and length is not None:
        since = now - length
    named = worker_queries.get_worker(connection, address.worker) if _WORKER_ID.fullmatch(address.worker) else None
    return AttemptFilter(
        dag_id=address.dag_id or None,
        run_id=address.run_id or None,
        task_id=address.task_id or None,
        worker_id=None if named is None else named.worker_id,
        worker_name=(address.worker or None) if named is None else None,
        hostname=address.hostname or None,
        state=address.state or None,
        started_at_gte=since,
        started_at_lte=until,
    )


def waiting_page(address: WaitingAddress, *, dag_ids: Collection[str], sees_workers: bool) -> waiting.WaitingPage:
    """Return the list of tries that wait.

    :param dag_ids: the Dags whose tries the reader may see
    :param sees_workers: as for :func:`panel`
    """
    with database.reading() as connection:
        now = database_now(connection)
        named = worker_queries.get_worker(connection, address.worker) if _WORKER_ID.fullmatch(address.worker) else None
        filters = PlacementFilter(
            state=address.state or None,
            dag_id=address.dag_id or None,
            run_id=address.run_id or None,
            task_id=address.task_id or None,
            worker_id=None if named is None else named.worker_id,
            worker_name=(address.worker or None) if named is None else None,
            reason=address.reason or None,
            # What runs is on the pages of its worker and its task.
            try_state=QUEUED,
        )
        found = placements.find(connection, filters, dag_ids=dag_ids, limit=waiting.PAGE_SIZE, offset=address.offset)
        executor = waiting.Executor(
            places=config.places_tasks(),
            unavailable_reason=_cannot_be_seen(connection, now, sees_workers=sees_workers)
            if config.places_on_celery()
            else "",
            holds=config.when_workers_unseen() == "hold",
        )
    return waiting.build_waiting_page(address, found, executor, dag_ids=dag_ids, sees_workers=sees_workers, now=now)


def _cannot_be_seen(connection: Connection, now: datetime, *, sees_workers: bool) -> str:
    """Say why Celery's workers cannot be seen; local workers are their scheduler's own."""
    celery = next((one for one in freshness.list_engines(connection) if one.name == "celery"), None)
    if celery is not None and celery.is_current and celery.error is None:
        return ""
    return waiting.cannot_be_seen(
        "Celery",
        looked_at=None if celery is None else celery.looked_at,
        error=celery.error if celery is not None and sees_workers else None,
        now=now,
    )


def problem(status: int, text: str) -> Notice:
    """Return what a page says instead of what was asked for."""
    without_right = status == 403 and text != NOT_FROM_HERE  # noqa: PLR2004
    return Notice("warning", _TITLES.get(status, "That did not work"), _NO_RIGHT if without_right else text)
