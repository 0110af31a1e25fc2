"""List of tries, filtered by Dag, run, task, worker, host, state and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.limits import MAX_SCANNED, MAX_TOTAL
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import ANY, AttemptsParams
from airflow_worker_insight.ui.views.attribution import UNFINISHED
from airflow_worker_insight.ui.views.parts import (
    MAX_DAG_SUGGESTIONS,
    Count,
    Filter,
    Notice,
    Option,
    Pages,
    filters,
    options,
    pages,
)
from airflow_worker_insight.ui.views.tries import Row, build_row

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import AttemptPage

PAGE_SIZE = 50

REFRESH_SECONDS, REFRESH_IDLE_SECONDS = 5, 15
"""Refresh intervals in seconds: while a listed try runs or waits, and while none does."""

_WINDOWS = (
    ("1h", "1 h", "the last hour"),
    ("6h", "6 h", "the last 6 hours"),
    ("", "24 h", "the last 24 hours"),
    ("7d", "7 d", "the last 7 days"),
    ("30d", "30 d", "the last 30 days"),
    (ANY, "Any time", ""),
)

_FILTERS = {
    "dag_id": "Dag {}",
    "run_id": "Run {}",
    "task_id": "Task {}",
    "worker": "Worker {}",
    "hostname": "Host {}",
    "state": "State {}",
}

_NOT_ALL = (
    f"Only the latest {MAX_SCANNED:,} tries of this period were searched. To find older ones, choose another period "
    "or filter by Dag run or worker."
)


@dataclass(frozen=True, slots=True)
class AttemptsPage:
    """Page with the list of tries."""

    params: AttemptsParams
    filters: tuple[Filter, ...]
    rows: tuple[Row, ...]
    pages: Pages
    note: str
    """Remark that not all tries were searched; empty otherwise."""
    state_options: tuple[Option, ...]
    windows: tuple[tuple[Option, AttemptsParams], ...]
    since: str
    until: str
    """Ends of the time window in the format of their form fields, in UTC."""
    dag_ids: tuple[str, ...]
    """Suggestions for the Dag field."""
    notice: Notice | None
    refresh_seconds: int


def build_attempts_page(
    params: AttemptsParams,
    page: AttemptPage,
    *,
    dag_ids: Collection[str],
    states: Collection[str],
    now: datetime,
) -> AttemptsPage:
    """Return the list of tries.

    :param page: the tries that the user may see, the latest start first
    :param dag_ids: the Dags that the user may read
    :param states: the states that a task instance may have
    """
    attempts = page.attempts
    has_unfinished = any(attempt.state is not None and attempt.state in UNFINISHED for attempt in attempts)
    is_custom = params.since is not None or params.until is not None
    return AttemptsPage(
        params=params,
        filters=tuple(_filters(params)),
        rows=tuple(build_row(attempt, {}, now=now) for attempt in attempts),
        pages=pages(
            params,
            Count(len(attempts), page.total, page.total_is_exact),
            size=PAGE_SIZE,
            singular="try",
            plural="tries",
        ),
        note="" if page.total_is_exact or page.total >= MAX_TOTAL else _NOT_ALL,
        state_options=options(
            params.state, ("", "Any"), *((state, formatting.state(state)) for state in sorted(states))
        ),
        windows=tuple(
            (
                Option(value, text, is_chosen=value == params.window and not is_custom),
                params.changed(window=value, since=None, until=None),
            )
            for value, text, _ in _WINDOWS
        ),
        since=_field(params.since),
        until=_field(params.until),
        dag_ids=tuple(sorted(dag_ids))[:MAX_DAG_SUGGESTIONS],
        notice=None if attempts else _notice(params, page.total, dag_ids),
        refresh_seconds=_refresh(params, has_unfinished=has_unfinished, now=now),
    )


def _refresh(params: AttemptsParams, *, has_unfinished: bool, now: datetime) -> int:
    """Return the refresh interval in seconds; 0 for none.

    Pages after the first do not refresh, nor do windows in the past without unfinished tries.
    """
    if params.offset:
        return 0
    if has_unfinished:
        return REFRESH_SECONDS
    return REFRESH_IDLE_SECONDS if params.until is None or params.until > now else 0


def _field(value: datetime | None) -> str:
    return "" if value is None else f"{value:%Y-%m-%dT%H:%M}"


def _filters(params: AttemptsParams) -> Iterable[Filter]:
    """Return the filters in force, including the time window, which is limited by default."""
    if params.since is not None or params.until is not None:
        since_text = f"from {params.since:%Y-%m-%d %H:%M} " if params.since else ""
        until_text = f"until {params.until:%Y-%m-%d %H:%M} " if params.until else ""
        yield Filter(f"Started {since_text}{until_text}UTC", params.changed(since=None, until=None, window=ANY))
    elif params.window != ANY:
        window_texts = {value: long_text for value, _, long_text in _WINDOWS}
        yield Filter(f"Started in {window_texts[params.window]}", params.changed(window=ANY))
    yield from filters(params, _FILTERS, {"state": formatting.state})


def _notice(params: AttemptsParams, total: int, dag_ids: Collection[str]) -> Notice:
    if total:
        return Notice("info", "", "No more tries.")
    if not dag_ids or params.changed() == AttemptsParams(window=ANY):
        return Notice(
            "info",
            "No tries yet",
            "A try of a Dag that you can read is listed here as soon as it starts. An administrator can backfill tries "
            "from before the installation of Worker Insight:",
            "airflow-worker-insight backfill",
        )
    return Notice(
        "info", "No tries found", "No try that you can see matches these filters. Remove a filter to see more."
    )
