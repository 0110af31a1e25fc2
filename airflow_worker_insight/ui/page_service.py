"""Query the store and build the view model of each page for one user.

Callers check the user's permissions.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from airflow_worker_insight import config
from airflow_worker_insight.api import database
from airflow_worker_insight.api.csrf import CROSS_ORIGIN_REFUSED
from airflow_worker_insight.api.errors import WorkerNotFoundError
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.compat import plugins as airflow_plugins
from airflow_worker_insight.domain.filters import AttemptFilter, PlacementFilter, WorkerFilter, build
from airflow_worker_insight.domain.parameters import Label, is_worker_id
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.store import placements, session
from airflow_worker_insight.store.attempts import by_worker, first_tries
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import counts as worker_counts
from airflow_worker_insight.store.workers import freshness
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.ui.query_params import SEEN, WINDOWS
from airflow_worker_insight.ui.views import attempts as attempts_view
from airflow_worker_insight.ui.views import comparison, timeline, waiting, worker
from airflow_worker_insight.ui.views import workers as workers_view
from airflow_worker_insight.ui.views.panel import Panel, build_panel
from airflow_worker_insight.ui.views.parts import Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import Attempt
    from airflow_worker_insight.domain.workers import WorkerGroup, WorkerRow
    from airflow_worker_insight.store.attempts.first_tries import FirstTry
    from airflow_worker_insight.ui.query_params import (
        AttemptsParams,
        PanelParams,
        WaitingParams,
        WorkerParams,
        WorkersParams,
    )

T = TypeVar("T")

HEADERS = {
    # Pages load everything from this server. Airflow's own pages may frame them, other sites may not.
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
"""Security headers of every response."""

_NO_RIGHT = (
    "You do not have permission for this. Ask an administrator for permission to read this Dag’s task instances. Pages "
    "of workers need permission to read Airflow’s jobs; a worker’s availability, to edit Airflow’s pools."
)
_TITLES = {
    403: "Access denied",
    404: "Not found",
    422: "Invalid request",
    503: "Unavailable",
}


def panel(params: PanelParams, *, may_see_workers: bool) -> Panel:
    """Return the panel of a task instance.

    :param may_see_workers: whether the user may see worker states and how many tries run on each worker
    """
    with database.reading() as connection:
        attempts = attempt_queries.task_instance_attempts(
            connection,
            dag_id=params.dag_id,
            run_id=params.run_id,
            task_id=params.task_id,
            map_index=params.map_index,
        )
        worker_ids = {worker.worker_id for attempt in attempts for worker in attempt.workers}
        instances = worker_queries.get_workers(connection, worker_ids) if may_see_workers else {}
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
        now = datetime.now(tz=timezone.utc)
        verdict = _verdict(connection, attempts, instances, now)
    if not may_see_workers:
        attempts = [attempt_queries.redact_other_dags(attempt) for attempt in attempts]
        # The detail names workers that are unrelated to the try.
        reasons = {try_number: replace(reason, detail=None) for try_number, reason in reasons.items()}
    return build_panel(params, attempts, instances, now=now, placed=reasons, verdict=verdict)


def _verdict(
    connection: Connection, attempts: Sequence[Attempt], instances: Mapping[str, WorkerRow], now: datetime
) -> comparison.Verdict | None:
    """Return what can be said of the latest failed try of a task instance; no query may follow on the connection."""
    failure = comparison.latest_failure(attempts, instances)
    if failure is None:
        return None
    attempt = failure.attempt
    tries = _unless_busy(
        connection,
        lambda: first_tries.of_tasks(
            connection,
            [(attempt.dag_id, attempt.task_id)],
            until=failure.until(now),
            limit=comparison.TASK_TRIES,
            is_mapped=attempt.map_index >= 0,
        ),
    )
    return comparison.build_verdict(failure, tries, now=now)


def _unless_busy(connection: Connection, read: Callable[[], T]) -> T | None:
    """Return what a page can do without, or ``None`` if reading it takes too long.

    After a time-out PostgreSQL refuses further statements, so this must be the last read of a connection.
    """
    try:
        session.limit(connection, session.EXTRA)
        return read()
    except Exception as error:
        if not session.is_timeout(error):
            raise
        return None


def workers_page(params: WorkersParams) -> workers_view.WorkersPage:
    """Return the list of workers."""
    with database.reading() as connection:
        now = database_now(connection)
        filters = worker_queries.with_matching_refs(connection, _worker_filter(params, now))
        rows: list[WorkerRow] = []
        total = 0
        groups: list[WorkerGroup] = []
        if params.group:
            groups, total = worker_counts.group_workers(
                connection, filters, by=params.group, limit=workers_view.GROUPS_PAGE_SIZE, offset=params.offset
            )
        else:
            rows, total = worker_queries.list_workers(
                connection, filters, order_by=params.order, limit=workers_view.PAGE_SIZE, offset=params.offset
            )
        listing = workers_view.Listing(
            rows=rows,
            total=total,
            groups=groups,
            counts=worker_counts.count_states(connection, filters),
            decisions=worker_queries.decisions(connection, [row for row in rows if row.availability != "available"]),
            label_keys=worker_counts.label_keys(connection),
            any_worker=bool(rows or groups) or _any_worker(connection),
            sources=freshness.list_sources(connection),
        )
    # The lifespan of this package's FastAPI app polls the workers.
    polls = airflow_plugins.serves_fastapi_apps()
    return workers_view.build_workers_page(params, listing, now=now, polls_by_itself=polls)


def _any_worker(connection: Connection) -> bool:
    return bool(worker_queries.list_workers(connection, WorkerFilter(), limit=1, offset=0)[0])


def _worker_filter(params: WorkersParams, now: datetime) -> WorkerFilter:
    seen = SEEN[params.seen]
    return replace(
        build(WorkerFilter, params),
        states=workers_view.listed_states(params),
        label=Label().parse(params.label) if params.label else None,
        seen_since=None if seen is None else now - seen,
    )


def worker_page(
    worker_id: str, params: WorkerParams, *, dag_ids: Collection[str] | None, may_decide: bool
) -> worker.WorkerPage:
    """Return the page of a worker.

    :param dag_ids: the Dags whose tries the user may see; ``None`` if the user may see no tries at all
    :param may_decide: whether the user may change the worker's availability
    :raises WorkerNotFoundError: if no worker with this ID was recorded
    """
    may_read, dag_ids = dag_ids is not None, frozenset(dag_ids or ())
    # Skip the query for an ID that no worker can have.
    if not is_worker_id(worker_id):
        raise WorkerNotFoundError
    with database.reading() as connection:
        row = worker_queries.get_worker(connection, worker_id)
        if row is None:
            raise WorkerNotFoundError
        now = database_now(connection)
        since, until = timeline.window(params, row, now)
        chart_start, chart_end = timeline.chart_window(params, row, now)
        stays = by_worker.stays_between(
            connection, row, dag_ids=dag_ids, since=since, until=until, limit=timeline.MAX_TRIES + 1
        )
        instance = worker.WorkerInstance(
            row=row,
            sees_all_dags=attempt_queries.are_all_dags(connection, dag_ids),
            changes=worker_queries.changes(connection, row, limit=worker.MAX_CHANGES),
            decision=worker_queries.decisions(connection, [row]).get(row.ref),
            others=[] if row.host_only else worker_queries.other_instances(connection, row, limit=worker.MAX_INSTANCES),
            running=by_worker.running_now(connection, row, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            placed=placements.placed_on(connection, row.ref, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            open_tries=placements.count_open_on(connection, row.ref),
            places=config.places_tasks(),
            lost_tries=by_worker.lost_attempts(connection, row, dag_ids=dag_ids, limit=worker.MAX_TRIES_NOW),
            stays=stays[: timeline.MAX_TRIES],
            is_truncated=len(stays) > timeline.MAX_TRIES,
            outcomes=by_worker.outcomes_per_hour(connection, row, dag_ids=dag_ids, since=chart_start, until=chart_end),
            attempts=attempt_queries.find_attempts(
                connection,
                AttemptFilter(worker_id=row.worker_id),
                dag_ids=dag_ids,
                limit=worker.PAGE_SIZE,
                offset=params.offset,
            ),
            comparison=_comparison(connection, row, dag_ids) if may_read and not row.host_only else None,
        )
    return worker.build_worker_page(instance, params, may_read=may_read, may_decide=may_decide, now=now)


def _comparison(connection: Connection, row: WorkerRow, dag_ids: Collection[str]) -> comparison.Comparison:
    """Compare a worker with its peers; no query may follow on the connection."""

    def read() -> tuple[list[FirstTry], list[FirstTry]]:
        own = first_tries.of_worker(connection, row.ref, dag_ids=dag_ids, limit=comparison.WORKER_TRIES)
        tasks = comparison.tasks_to_compare(own)
        if not tasks:
            return own, []
        peers = first_tries.of_tasks(
            connection,
            tasks,
            since=own[-1].started_at,
            until=own[0].started_at,
            limit=comparison.TASK_TRIES,
            is_mapped=any(each.key.map_index >= 0 for each in own if each.task in tasks),
        )
        return own, peers

    own, peers = _unless_busy(connection, read) or (None, [])
    return comparison.build_comparison(row.worker_id, own, peers)


def attempts_page(
    params: AttemptsParams, *, dag_ids: Collection[str], may_see_workers: bool
) -> attempts_view.AttemptsPage:
    """Return the list of tries.

    :param dag_ids: the Dags whose tries the user may see
    :param may_see_workers: as for :func:`panel`
    """
    with database.reading() as connection:
        now = database_now(connection)
        page = attempt_queries.find_attempts(
            connection,
            _attempt_filter(connection, params, now),
            dag_ids=dag_ids,
            limit=attempts_view.PAGE_SIZE,
            offset=params.offset,
        )
    if not may_see_workers:
        page = replace(page, attempts=[attempt_queries.redact_other_dags(attempt) for attempt in page.attempts])
    return attempts_view.build_attempts_page(
        params, page, dag_ids=dag_ids, states=metadata_database.task_instance_states(), now=now
    )


def _attempt_filter(connection: Connection, params: AttemptsParams, now: datetime) -> AttemptFilter:
    since, until = params.since, params.until
    window = WINDOWS[params.window]
    if since is None and until is None and window is not None:
        since = now - window
    worker_id, worker_name = _worker_id_and_name(connection, params.worker)
    return replace(
        build(AttemptFilter, params),
        worker_id=worker_id,
        worker_name=worker_name,
        started_at_gte=since,
        started_at_lte=until,
    )


def _worker_id_and_name(connection: Connection, worker: str) -> tuple[str | None, str | None]:
    """Return the ID of a worker that is named by its ID, or else its name; neither for empty text."""
    row = worker_queries.get_worker(connection, worker) if is_worker_id(worker) else None
    return (None, worker or None) if row is None else (row.worker_id, None)


def waiting_page(params: WaitingParams, *, dag_ids: Collection[str], may_see_workers: bool) -> waiting.WaitingPage:
    """Return the list of waiting tries.

    :param dag_ids: the Dags whose tries the user may see
    :param may_see_workers: as for :func:`panel`
    """
    with database.reading() as connection:
        now = database_now(connection)
        worker_id, worker_name = _worker_id_and_name(connection, params.worker)
        filters = replace(
            build(PlacementFilter, params),
            worker_id=worker_id,
            worker_name=worker_name,
            # Running tries are on the pages of their worker and task.
            try_state=QUEUED,
        )
        listed = placements.find(connection, filters, dag_ids=dag_ids, limit=waiting.PAGE_SIZE, offset=params.offset)
        executor = waiting.Executor(
            places=config.places_tasks(),
            unavailable_reason=_celery_unavailable_reason(connection, now, may_see_workers=may_see_workers)
            if config.places_on_celery()
            else "",
            holds=config.when_workers_unseen() == "hold",
        )
    return waiting.build_waiting_page(
        params, listed, executor, dag_ids=dag_ids, may_see_workers=may_see_workers, now=now
    )


def _celery_unavailable_reason(connection: Connection, now: datetime, *, may_see_workers: bool) -> str:
    """Return why Celery's workers are unavailable, or an empty string if they are available.

    Local workers belong to their scheduler and need no such check.
    """
    celery = next((source for source in freshness.list_sources(connection) if source.name == "celery"), None)
    if celery is not None and celery.is_current and celery.error is None:
        return ""
    return waiting.unreachable_reason(
        "Celery",
        polled_at=None if celery is None else celery.polled_at,
        error=celery.error if celery is not None and may_see_workers else None,
        now=now,
    )


def error_notice(status: int, text: str) -> Notice:
    """Return the notice that a page shows in place of its content."""
    is_denied = status == HTTPStatus.FORBIDDEN and text != CROSS_ORIGIN_REFUSED
    return Notice("warning", _TITLES.get(status, "Error"), _NO_RIGHT if is_denied else text)
