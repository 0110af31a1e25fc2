"""Query the store and build the view model of each page for one user.

Callers check the user's permissions.
"""

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

    from airflow_worker_insight.domain.workers import WorkerGroup, WorkerRow
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
    # Pages load everything from this server. Airflow's own pages may frame them, other sites may not.
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
"""Security headers of every response."""

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

    :param sees_workers: whether the user may see worker states and how many tries run on each worker
    """
    with database.reading() as connection:
        attempts = attempt_queries.task_instance_attempts(
            connection,
            dag_id=address.dag_id,
            run_id=address.run_id,
            task_id=address.task_id,
            map_index=address.map_index,
        )
        worker_ids = {worker.worker_id for attempt in attempts for worker in attempt.workers}
        instances = worker_queries.get_workers(connection, worker_ids) if sees_workers else {}
        # A task instance without attempts has no placements either.
        recorded = {
            attempt.try_number: placements.Explanation(attempt.placement, attempt.placement_detail)
            for attempt in attempts
            if attempt.placement is not None
        }
        reasons = (
            placements.task_instance_explanations(connection, attempt_queries.try_key(attempts[0]), recorded)
            if attempts
            else {}
        )
    if not sees_workers:
        attempts = [attempt_queries.redact_other_dags(attempt) for attempt in attempts]
        # The detail names workers that are unrelated to the try.
        reasons = {try_number: replace(reason, detail=None) for try_number, reason in reasons.items()}
    return build_panel(address, attempts, instances, now=datetime.now(tz=timezone.utc), placed=reasons)


def workers_page(address: WorkersAddress) -> workers_view.WorkersPage:
    """Return the list of workers."""
    with database.reading() as connection:
        now = database_now(connection)
        filters = worker_queries.with_matching_refs(connection, _worker_filter(address, now))
        rows: list[WorkerRow] = []
        total = 0
        groups: list[WorkerGroup] = []
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
            engines=freshness.list_sources(connection),
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
    """Return the page of a worker, or ``None`` if no worker with this ID was recorded.

    :param dag_ids: the Dags whose tries the user may see; ``None`` if the user may see no tries at all
    :param may_decide: whether the user may change the worker's availability
    """
    may_read, dag_ids = dag_ids is not None, frozenset(dag_ids or ())
    # Skip the query for an ID that no worker can have.
    if not _WORKER_ID.fullmatch(worker_id):
        return None
    with database.reading() as connection:
        row = worker_queries.get_worker(connection, worker_id)
        if row is None:
            return None
        now = database_now(connection)
        since, until = timeline.window(address, row, now)
        chart_start, chart_end = timeline.chart_window(address, row, now)
        stays = by_worker.stays_between(
            connection, row, dag_ids=dag_ids, since=since, until=until, limit=timeline.MAX_TRIES + 1
        )
        instance = worker.WorkerInstance(
            row=row,
            is_whole=attempt_queries.are_all_dags(connection, dag_ids),
            changes=worker_queries.changes(connection, row, limit=worker.MAX_CHANGES),
            decision=worker_queries.decisions(connection, [row]).get(row.ref),
            others=[] if row.host_only else worker_queries.other_instances(connection, row, limit=worker.MAX_INSTANCES),
            running=by_worker.running_now(connection, row, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            placed=placements.placed_on(connection, row.ref, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            taken=placements.count_open_on(connection, row.ref),
            places=config.places_tasks(),
            struck=by_worker.lost_attempts(connection, row, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            drawn=stays[: timeline.MAX_TRIES],
            is_cut=len(stays) > timeline.MAX_TRIES,
            outcomes=by_worker.outcomes_per_hour(connection, row, dag_ids=dag_ids, since=chart_start, until=chart_end),
            attempts=attempt_queries.find_attempts(
                connection,
                AttemptFilter(worker_id=row.worker_id),
                dag_ids=dag_ids,
                limit=worker.PAGE_SIZE,
                offset=address.offset,
            ),
        )
    return worker.build_worker_page(instance, address, may_read=may_read, may_decide=may_decide, now=now)


def decide(worker_id: str, decision: WrittenDecision, *, changed_by: str) -> bool:
    """Record a user's decision on a worker's availability.

    :param changed_by: the user's name
    :returns: ``False`` if the worker is unknown, or is known by its host only and so has no availability
    :raises InvalidUrlError: if the worker instance has ended, so that the decision would have no effect
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

    :param dag_ids: the Dags whose tries the user may see
    :param sees_workers: as for :func:`panel`
    """
    with database.reading() as connection:
        now = database_now(connection)
        page = attempt_queries.find_attempts(
            connection,
            _attempt_filter(connection, address, now),
            dag_ids=dag_ids,
            limit=attempts_view.PAGE_SIZE,
            offset=address.offset,
        )
    if not sees_workers:
        page = replace(page, attempts=[attempt_queries.redact_other_dags(attempt) for attempt in page.attempts])
    return attempts_view.build_attempts_page(
        address, page, dag_ids=dag_ids, states=metadata_database.task_instance_states(), now=now
    )


def _attempt_filter(connection: Connection, address: AttemptsAddress, now: datetime) -> AttemptFilter:
    since, until = address.since, address.until
    window = WINDOWS[address.window]
    if since is None and until is None and window is not None:
        since = now - window
    by_id = worker_queries.get_worker(connection, address.worker) if _WORKER_ID.fullmatch(address.worker) else None
    return AttemptFilter(
        dag_id=address.dag_id or None,
        run_id=address.run_id or None,
        task_id=address.task_id or None,
        worker_id=None if by_id is None else by_id.worker_id,
        worker_name=(address.worker or None) if by_id is None else None,
        hostname=address.hostname or None,
        state=address.state or None,
        started_at_gte=since,
        started_at_lte=until,
    )


def waiting_page(address: WaitingAddress, *, dag_ids: Collection[str], sees_workers: bool) -> waiting.WaitingPage:
    """Return the list of waiting tries.

    :param dag_ids: the Dags whose tries the user may see
    :param sees_workers: as for :func:`panel`
    """
    with database.reading() as connection:
        now = database_now(connection)
        by_id = worker_queries.get_worker(connection, address.worker) if _WORKER_ID.fullmatch(address.worker) else None
        filters = PlacementFilter(
            state=address.state or None,
            dag_id=address.dag_id or None,
            run_id=address.run_id or None,
            task_id=address.task_id or None,
            worker_id=None if by_id is None else by_id.worker_id,
            worker_name=(address.worker or None) if by_id is None else None,
            reason=address.reason or None,
            # Running tries are on the pages of their worker and task.
            try_state=QUEUED,
        )
        listed = placements.find(connection, filters, dag_ids=dag_ids, limit=waiting.PAGE_SIZE, offset=address.offset)
        executor = waiting.Executor(
            places=config.places_tasks(),
            unavailable_reason=_celery_unavailable_reason(connection, now, sees_workers=sees_workers)
            if config.places_on_celery()
            else "",
            holds=config.when_workers_unseen() == "hold",
        )
    return waiting.build_waiting_page(address, listed, executor, dag_ids=dag_ids, sees_workers=sees_workers, now=now)


def _celery_unavailable_reason(connection: Connection, now: datetime, *, sees_workers: bool) -> str:
    """Return why Celery's workers are unavailable, or an empty string if they are available.

    Local workers belong to their scheduler and need no such check.
    """
    celery = next((source for source in freshness.list_sources(connection) if source.name == "celery"), None)
    if celery is not None and celery.is_current and celery.error is None:
        return ""
    return waiting.cannot_be_seen(
        "Celery",
        polled_at=None if celery is None else celery.polled_at,
        error=celery.error if celery is not None and sees_workers else None,
        now=now,
    )


def problem(status: int, text: str) -> Notice:
    """Return the notice that a page shows in place of its content."""
    is_denied = status == 403 and text != NOT_FROM_HERE  # noqa: PLR2004
    return Notice("warning", _TITLES.get(status, "That did not work"), _NO_RIGHT if is_denied else text)
