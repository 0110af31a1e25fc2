"""Query the store and build the view model of each page for one user.

Callers check the user's permissions.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from airflow_worker_insight import config
from airflow_worker_insight.api import database, enforcement
from airflow_worker_insight.api.csrf import CROSS_ORIGIN_REFUSED
from airflow_worker_insight.api.errors import FindingNotFoundError, WorkerNotFoundError
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.compat import plugins as airflow_plugins
from airflow_worker_insight.domain.filters import AttemptFilter, FindingFilter, PlacementFilter, WorkerFilter, build
from airflow_worker_insight.domain.findings import FindingState
from airflow_worker_insight.domain.limits import MAX_INTEGER, MAX_TOTAL
from airflow_worker_insight.domain.parameters import Label, is_worker_id
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.domain.statistics import Bucket, Selection
from airflow_worker_insight.store import findings, job, placements, session, statistics
from airflow_worker_insight.store.attempts import by_worker, first_tries
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import counts as worker_counts
from airflow_worker_insight.store.workers import freshness
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.ui.query_params import SEEN, WINDOWS
from airflow_worker_insight.ui.views import attempts as attempts_view
from airflow_worker_insight.ui.views import comparison, heat_map, insight, timeline, waiting, worker
from airflow_worker_insight.ui.views import findings as findings_view
from airflow_worker_insight.ui.views import workers as workers_view
from airflow_worker_insight.ui.views.panel import Panel, build_panel
from airflow_worker_insight.ui.views.parts import Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import Attempt
    from airflow_worker_insight.domain.findings import StoredFinding
    from airflow_worker_insight.domain.workers import WorkerGroup, WorkerRow
    from airflow_worker_insight.store.attempts.first_tries import FirstTry
    from airflow_worker_insight.ui.query_params import (
        AttemptsParams,
        InsightParams,
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

    :param may_see_workers: whether the user may see worker states, how many tries run on each worker, and findings
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
        verdict = _verdict(connection, attempts, instances, now, may_see_workers=may_see_workers)
    if not may_see_workers:
        attempts = [attempt_queries.redact_other_dags(attempt) for attempt in attempts]
        # The detail names workers that are unrelated to the try.
        reasons = {try_number: replace(reason, detail=None) for try_number, reason in reasons.items()}
    return build_panel(params, attempts, instances, now=now, placed=reasons, verdict=verdict)


def _verdict(
    connection: Connection,
    attempts: Sequence[Attempt],
    instances: Mapping[str, WorkerRow],
    now: datetime,
    *,
    may_see_workers: bool,
) -> comparison.Verdict | None:
    """Return what can be said of the latest failed try of a task instance; no query may follow on the connection."""
    failure = comparison.latest_failure(attempts, instances)
    if failure is None:
        return None
    attempt = failure.attempt

    def read() -> tuple[list[FirstTry], list[int]]:
        tries = first_tries.of_tasks(
            connection,
            [(attempt.dag_id, attempt.task_id)],
            until=failure.until(now),
            limit=comparison.TASK_TRIES,
            is_mapped=attempt.map_index >= 0,
        )
        names = findings.open_worker_names(connection) if may_see_workers else {}
        return tries, names.get(failure.worker.name, [])

    tries, finding_ids = _unless_busy(connection, read) or (None, [])
    return comparison.build_verdict(failure, tries, now=now, findings=finding_ids)


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
            findings=findings.open_worker_names(connection) if rows else {},
            group_findings=findings.open_groups(connection, params.group) if groups else {},
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
            effect=enforcement.effect(row),
            enforcement=enforcement.statuses(connection, [row]).get(row.ref),
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
            findings=_cards(
                connection,
                findings.list_findings(
                    connection,
                    FindingFilter(worker_id=row.worker_id),
                    limit=worker.MAX_FINDINGS,
                    offset=0,
                    dag_ids=dag_ids,
                )[0],
                dag_ids=dag_ids,
                may_decide=may_decide,
            ),
        )
        if may_read and not row.host_only:
            instance = replace(instance, comparison=_comparison(connection, row, instance.others, dag_ids))
    return worker.build_worker_page(instance, params, may_read=may_read, may_decide=may_decide, now=now)


def insight_page(params: InsightParams, *, dag_ids: Collection[str], may_decide: bool) -> insight.InsightPage:
    """Return the page of findings.

    :param dag_ids: the Dags whose tasks the page may name
    :param may_decide: whether the user may change workers' availability and dismiss findings
    """
    with database.reading() as connection:
        now = database_now(connection)
        open_findings, open_total = findings.list_findings(
            connection, FindingFilter(state=_OPEN), limit=insight.MAX_OPEN, offset=0, dag_ids=dag_ids
        )
        closed, closed_total = findings.list_findings(
            connection,
            FindingFilter(state=frozenset({FindingState.CLOSED})),
            limit=insight.PAGE_SIZE,
            offset=params.offset,
            dag_ids=dag_ids,
        )
        listing = insight.InsightListing(
            open=_cards(connection, open_findings, dag_ids=dag_ids, may_decide=may_decide),
            open_total=open_total,
            closed=_cards(connection, closed, dag_ids=dag_ids, may_decide=False),
            closed_total=closed_total,
            analysis=insight.Analysis(
                job.read(connection),
                is_enabled=config.insight_enabled(),
                interval=timedelta(seconds=config.insight_interval()),
                # The lifespan of this package's FastAPI app runs it.
                runs_by_itself=airflow_plugins.serves_fastapi_apps(),
            ),
            compared=None if open_total else _compared(connection, now),
        )
        since = now - timedelta(hours=heat_map.HOURS - 1)
        by_name = params.measure != ""
        workers = statistics.heat_map(connection, since=since, until=now, limit=heat_map.MAX_WORKERS, by_name=by_name)
    return insight.build_insight_page(params, listing, heat_map.build_heat_map(params, workers, now=now), now=now)


_OPEN = frozenset({FindingState.OPEN, FindingState.RECOVERING})


def _compared(connection: Connection, now: datetime) -> insight.Compared:
    """Return what the analysis has compared."""
    selection = Selection("worker", Bucket.NONE, now - insight.WINDOW, now, AttemptFilter())
    workers = statistics.query(connection, selection, dag_ids=None, limit=MAX_TOTAL, offset=0)
    tasks = statistics.query(connection, replace(selection, group_by="task"), dag_ids=None, limit=1, offset=0)
    return insight.Compared([row.tries for row in workers.rows if row.group], workers.total, tasks.total)


def _cards(
    connection: Connection, stored: Sequence[StoredFinding], *, dag_ids: Collection[str], may_decide: bool
) -> list[findings_view.FindingCard]:
    concerned = {worker_id for each in stored for worker_id in each.data["worker_ids"][-findings_view.MAX_LOOKUPS :]}
    workers = worker_queries.get_workers(connection, concerned)
    events = findings.events(connection, [each.finding_id for each in stored])
    return [
        findings_view.build_card(
            each, dag_ids=dag_ids, workers=workers, may_decide=may_decide, events=events.get(each.finding_id, ())
        )
        for each in stored
    ]


def finding_page(
    finding_id: str, *, dag_ids: Collection[str], may_decide: bool
) -> tuple[findings_view.FindingCard, datetime]:
    """Return a finding with its history, and the current time.

    :param dag_ids: the Dags whose tasks the page may name
    :param may_decide: as for :func:`insight_page`
    :raises FindingNotFoundError: if there is none that the user may see
    """
    with database.reading() as connection:
        stored = _require_finding(connection, finding_id, dag_ids)
        (card,) = _cards(connection, [stored], dag_ids=dag_ids, may_decide=may_decide)
        return card, database_now(connection)


def dismiss_finding(finding_id: str, *, dag_ids: Collection[str], note: str, actor: str) -> int:
    """Dismiss a finding and return its ID; one that is closed stays as it is.

    :raises FindingNotFoundError: if there is none that the user may see
    """
    with database.writing() as connection:
        stored = _require_finding(connection, finding_id, dag_ids)
        findings.dismiss(connection, stored.finding_id, actor=actor, reason=note or None, now=database_now(connection))
    return stored.finding_id


def _require_finding(connection: Connection, finding_id: str, dag_ids: Collection[str]) -> StoredFinding:
    is_id = finding_id.isascii() and finding_id.isdigit() and int(finding_id[:20]) <= MAX_INTEGER
    stored = findings.get_finding(connection, int(finding_id)) if is_id else None
    if stored is None or not findings_view.may_see(stored, dag_ids):
        raise FindingNotFoundError
    return stored


def _comparison(
    connection: Connection, row: WorkerRow, others: Iterable[WorkerRow], dag_ids: Collection[str]
) -> comparison.Comparison:
    """Compare a worker with its peers, and with the instance before it; no query may follow on the connection.

    :param others: other instances of its name, the latest first
    """
    earlier = next((other for other in others if other.ref < row.ref), None)

    def read() -> tuple[list[FirstTry], list[FirstTry], list[FirstTry]]:
        before = []
        if earlier is not None:
            before = first_tries.of_worker(connection, earlier.ref, dag_ids=dag_ids, limit=comparison.RESTART_TRIES)
        own = first_tries.of_worker(connection, row.ref, dag_ids=dag_ids, limit=comparison.WORKER_TRIES)
        tasks = comparison.tasks_to_compare(own)
        if not tasks:
            return own, [], before
        peers = first_tries.of_tasks(
            connection,
            tasks,
            since=own[-1].started_at,
            until=own[0].started_at,
            limit=comparison.TASK_TRIES,
            is_mapped=any(each.key.map_index >= 0 for each in own if each.task in tasks),
        )
        return own, peers, before

    own, peers, before = _unless_busy(connection, read) or (None, [], [])
    compared = comparison.build_comparison(row.worker_id, own, peers)
    if earlier is None or own is None:
        return compared
    return replace(compared, restart=comparison.build_restart(row.started_at or row.registered_at, before, own))


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
