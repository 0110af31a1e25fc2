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

BEHIND_AFTER = timedelta(minutes=10)
"""Age of the stored cursor from which the analysis is behind: it is stored every few minutes only."""

STALE_AFTER = timedelta(minutes=10)
"""Age of the latest step from which the analysis counts as stopped."""

RUN_COMMAND = "airflow-worker-insight refresh --every 30"

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
class Analysis:
    """Whether and how the analysis runs here."""

    job: JobRow | None
    is_enabled: bool = True
    interval: timedelta = timedelta(seconds=30)
    runs_by_itself: bool = True
    """Whether Airflow's web server runs it, so that no command has to."""


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
    analysis: Analysis
    compared: Compared | None
    """``None`` if something was found, or the database is busy."""


def build_insight_page(
    params: InsightParams, listing: InsightListing, heat_map: HeatMap, *, now: datetime
) -> InsightPage:
    """Return the page of findings."""
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
        job_text=_job_text(listing.analysis.job, now),
        notice=_notice(listing.analysis, now),
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
    if job.read_until is not None and now - job.read_until > BEHIND_AFTER:
        lag = formatting.duration((now - job.read_until).total_seconds())
        text += f" and is behind: it has yet to read the tries of the last {lag}"
    return text + "."


def _notice(analysis: Analysis, now: datetime) -> Notice | None:
    """Say that the analysis does not run, and why."""
    job = analysis.job
    how, command = "On Airflow 3, API servers run it: make sure that one is running.", ""
    if not analysis.runs_by_itself:
        how, command = "On this version of Airflow, run this command as a service:", RUN_COMMAND
    if not analysis.is_enabled:
        text = "Findings and statistics stay as they are until it is switched on: [worker_insight] insight_enabled."
        return Notice("warning", "The analysis is switched off", text)
    if job is None or job.stepped_at is None:
        return Notice("warning", "The analysis has not run yet", how, command)
    if job.error is not None:
        return Notice("warning", f"The analysis failed {formatting.ago(job.stepped_at, now)}", job.error)
    if now - job.stepped_at > max(STALE_AFTER, 3 * analysis.interval):
        return Notice(
            "warning", f"The analysis does not run: last run {formatting.ago(job.stepped_at, now)}", how, command
        )
    return None
