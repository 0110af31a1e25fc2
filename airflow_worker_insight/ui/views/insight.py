"""Page of findings: the open ones, what was compared, the heat map, and the latest closed ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.views.parts import Count, Notice, Pages, pages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from airflow_worker_insight.store.job import JobRow
    from airflow_worker_insight.ui.query_params import InsightParams
    from airflow_worker_insight.ui.views.findings import FindingCard
    from airflow_worker_insight.ui.views.heat_map import HeatMap

MAX_OPEN = 50
"""Open findings that the page shows."""

PAGE_SIZE = 10
"""Closed findings on a page."""

WINDOW = timedelta(days=30)
"""How long tries are compared."""

REFRESH_SECONDS = 30

STALE_AFTER = timedelta(minutes=10)
"""Age of the latest step from which the analysis counts as stopped."""

RUN_COMMAND = "airflow-worker-insight insight run"

# First tries of a worker, 20 workers and 100 tasks: medians of the method's own benchmark, rounded up.
_FAULTS = (
    (12, "every try fails"),
    (20, "every second try fails"),
    (60, "one try in five fails beyond the usual"),
    (400, "one try in twenty fails beyond the usual"),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """What the analysis has counted in the last 30 days."""

    tries_by_worker: Sequence[int]
    """Number of tries of each worker by name."""
    workers: int
    tasks: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, how many tries it takes to find it, and on how many workers it could be found by now."""

    text: str
    tries: str
    workers: str


@dataclass(frozen=True, slots=True)
class InsightPage:
    """Page of findings."""

    params: InsightParams
    open: tuple[FindingCard, ...]
    more_open: str
    closed: tuple[FindingCard, ...]
    pages: Pages
    summary: str
    compared: str
    """What was compared; empty if nothing was."""
    faults: tuple[Fault, ...]
    """What could be found by now; only if nothing was found."""
    job_text: str
    job_stepped_at: datetime | None
    notice: Notice | None
    """That the analysis does not run, and why."""
    heat_map: HeatMap
    refresh_seconds: int
    now: datetime


@dataclass(frozen=True, slots=True)
class InsightListing:
    """Query results for the page."""

    open: Sequence[FindingCard]
    open_total: int
    closed: Sequence[FindingCard]
    closed_total: int
    job: JobRow | None
    compared: Compared | None
    """``None`` if something was found, or the database is busy."""


def build_insight_page(
    params: InsightParams, listing: InsightListing, heat_map: HeatMap, *, now: datetime, runs_by_itself: bool
) -> InsightPage:
    """Return the page of findings.

    :param runs_by_itself: whether Airflow's web server runs the analysis by itself, so that no command has to
    """
    more = listing.open_total - len(listing.open)
    compared = listing.compared
    return InsightPage(
        params=params,
        open=tuple(listing.open),
        more_open=f"And {formatting.count(more, 'open finding', 'open findings')} more." if more > 0 else "",
        closed=tuple(listing.closed),
        pages=pages(
            params,
            Count(len(listing.closed), listing.closed_total),
            size=PAGE_SIZE,
            singular="closed finding",
            plural="closed findings",
        ),
        summary=_summary(listing),
        compared="" if compared is None else _compared_text(compared),
        faults=() if compared is None or not compared.workers else tuple(_faults(compared)),
        job_text=_job_text(listing.job, now),
        job_stepped_at=None if listing.job is None else listing.job.stepped_at,
        notice=_notice(listing.job, now, runs_by_itself=runs_by_itself),
        heat_map=heat_map,
        refresh_seconds=REFRESH_SECONDS,
        now=now,
    )


def _summary(listing: InsightListing) -> str:
    if listing.open_total:
        return f"{formatting.count(listing.open_total, 'open finding', 'open findings')}"
    return "Nothing found"


def _compared_text(compared: Compared) -> str:
    if not compared.workers:
        return "No try has been compared in the last 30 days."
    return (
        f"In the last 30 days {formatting.count(sum(compared.tries_by_worker), 'try', 'tries')} of "
        f"{formatting.count(compared.tasks, 'task', 'tasks')} on "
        f"{formatting.count(compared.workers, 'worker', 'workers')} were compared."
    )


def _faults(compared: Compared) -> list[Fault]:
    return [
        Fault(
            text=f"{text[0].upper()}{text[1:]}",
            tries=f"about {tries:,}",
            workers=f"{sum(each >= tries for each in compared.tries_by_worker):,} of {compared.workers:,}",
        )
        for tries, text in _FAULTS
    ]


def _job_text(job: JobRow | None, now: datetime) -> str:
    if job is None or job.stepped_at is None:
        return ""
    text = f"The analysis last ran {formatting.ago(job.stepped_at, now)}"
    if job.read_until is not None:
        lag = formatting.duration((now - job.read_until).total_seconds())
        text += f" and has read all tries but those of the last {lag}"
    return text + "."


def _notice(job: JobRow | None, now: datetime, *, runs_by_itself: bool) -> Notice | None:
    how = (
        "On Airflow 3, API servers run it: make sure that one is running."
        if runs_by_itself
        else "On this version of Airflow, run this command, or `refresh` every minute:"
    )
    command = "" if runs_by_itself else RUN_COMMAND
    if job is None or job.stepped_at is None:
        return Notice("warning", "The analysis has not run yet", how, command)
    if job.error is not None:
        return Notice("warning", f"The analysis failed {formatting.ago(job.stepped_at, now)}", job.error)
    if now - job.stepped_at > STALE_AFTER:
        return Notice(
            "warning", f"The analysis does not run: last run {formatting.ago(job.stepped_at, now)}", how, command
        )
    return None
