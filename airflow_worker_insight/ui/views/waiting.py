"""List of waiting tries: without a worker, or placed on one that has no free slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.filters import PlacementState
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import WaitingParams
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
from airflow_worker_insight.ui.views.placement import reason_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from airflow_worker_insight.store.placements import ListedPlacement

PAGE_SIZE = 50

REFRESH_SECONDS, REFRESH_IDLE_SECONDS = 5, 15
"""Refresh intervals in seconds: while tries wait, and while none does."""

_FILTERS = {
    "dag_id": "Dag {}",
    "run_id": "Run {}",
    "task_id": "Task {}",
    "worker": "Worker {}",
    "reason": "Reason: {}",
}
_STATES = (("", "All"), (PlacementState.WAITING, "Waiting for a worker"), (PlacementState.PLACED, "Placed"))


@dataclass(frozen=True, slots=True)
class Executor:
    """Behaviour of this deployment's executors, from the configuration and the registry."""

    places: bool
    """Whether an executor of this package is configured."""
    unavailable_reason: str = ""
    """Why the workers are unavailable now; empty if they are not."""
    holds: bool = False
    """Whether the executor holds tasks while the workers are unavailable."""


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """Row of the list: a waiting try."""

    listed: ListedPlacement
    worker: str
    """Name of the worker, or what stands for it if the try is not placed on one."""
    why: str


@dataclass(frozen=True, slots=True)
class WaitingPage:
    """Page with the list of waiting tries."""

    params: WaitingParams
    states: tuple[tuple[Option, WaitingParams], ...]
    filters: tuple[Filter, ...]
    reason_options: tuple[Option, ...]
    dag_ids: tuple[str, ...]
    """Suggestions for the Dag field."""
    rows: tuple[WaitingRow, ...]
    pages: Pages
    notices: tuple[Notice, ...]
    has_filters: bool
    """Whether to show the filters; ``False`` where no try is ever listed."""
    refresh_seconds: int
    now: datetime


def build_waiting_page(
    params: WaitingParams,
    listing: tuple[Sequence[ListedPlacement], int],
    executor: Executor,
    *,
    dag_ids: Collection[str],
    may_see_workers: bool,
    now: datetime,
) -> WaitingPage:
    """Return the list of waiting tries.

    :param listing: the tries that the user may see, the longest wait first, and their total number
    :param dag_ids: the Dags that the user may read
    :param may_see_workers: whether the user may see workers that are unrelated to a try
    """
    placements, total = listing
    return WaitingPage(
        params=params,
        states=tuple(
            (Option(value, text, is_chosen=value == params.state), params.changed(state=value))
            for value, text in _STATES
        ),
        filters=tuple(_filters(params)),
        reason_options=options(
            params.reason,
            ("", "Any"),
            *((reason, _label(reason)) for reason in sorted(PlacementReason.values(), key=_label)),
        ),
        dag_ids=tuple(sorted(dag_ids))[:MAX_DAG_SUGGESTIONS],
        rows=tuple(_row(placement, may_see_workers=may_see_workers) for placement in placements),
        pages=pages(params, Count(len(placements), total), size=PAGE_SIZE, singular="try", plural="tries"),
        notices=tuple(_notices(params, executor, shown=len(placements), total=total)),
        has_filters=executor.places or bool(placements) or params != WaitingParams(),
        refresh_seconds=0 if params.offset else REFRESH_SECONDS if placements else REFRESH_IDLE_SECONDS,
        now=now,
    )


def _row(listed: ListedPlacement, *, may_see_workers: bool) -> WaitingRow:
    placement = listed.placement
    text = placement.sentence if may_see_workers else reason_text(placement.reason)
    shared = "Shared queue" if listed.state == PlacementState.PLACED else "Not placed yet"
    return WaitingRow(
        listed=listed,
        worker=listed.worker_name or shared,
        # The text of a placed try begins with a worker's name, which keeps its case.
        why=text if listed.state == PlacementState.PLACED and may_see_workers else _capitalize(text),
    )


def _label(reason: str) -> str:
    """Return the text of a reason as a choice of the filter."""
    return _capitalize(reason_text(reason))


def _capitalize(text: str) -> str:
    """Return a text with a capital letter; unlike ``str.capitalize``, keep the case of names in it."""
    return f"{text[:1].upper()}{text[1:]}"


def _filters(params: WaitingParams) -> Iterable[Filter]:
    if params.state:
        yield Filter(dict(_STATES)[params.state], params.changed(state=""))
    yield from filters(params, _FILTERS, {"reason": _label})


def _notices(params: WaitingParams, executor: Executor, *, shown: int, total: int) -> Iterable[Notice]:
    if executor.unavailable_reason and executor.places:
        consequence = (
            "The executor holds tasks until then, and they are listed here."
            if executor.holds
            else "The executor is in fallback mode until then: it sends tasks without choosing a worker, and they are "
            "not listed here."
        )
        yield Notice("warning", "Workers cannot be reached", f"{executor.unavailable_reason} {consequence}")
    if shown:
        return
    if total:
        yield Notice("info", "", "No more tries.")
    elif params.changed() != WaitingParams():
        yield Notice("info", "No tries found", "No waiting try that you can see matches these filters.")
    elif not executor.places:
        yield Notice(
            "info",
            "No executor of Worker Insight is configured",
            "Airflow’s own executors do not place tasks on workers, so no try waits for a worker here. An "
            "administrator can set [core] executor to one that does:",
            "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor",
        )
    elif not executor.unavailable_reason:
        yield Notice(
            "info",
            "No waiting tries",
            "Workers have started every queued try that you can see. A try that waits for a worker is listed here "
            "with the reason.",
        )


def unreachable_reason(name: str, *, polled_at: datetime | None, error: str | None, now: datetime) -> str:
    """Say why the workers of a worker source are unavailable.

    :param polled_at: when the source was last polled; ``None`` if never
    :param error: the error of the last poll; ``None`` if there was none or the user may not see it
    """
    if polled_at is None:
        return f"{name} workers have never been checked."
    if error is not None:
        return f"The last check of {name} workers failed: {error.rstrip('.')}."
    return f"{name} workers were last checked {formatting.ago(polled_at, now)}."
