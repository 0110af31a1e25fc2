"""List of waiting tries: without a worker, or placed on one that has no free slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.filters import PlacementState
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import WaitingAddress
from airflow_worker_insight.ui.views.parts import Ago, Count, Filter, Notice, Option, Pages, ago, options, pages
from airflow_worker_insight.ui.views.placement import reason_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from airflow_worker_insight.store.placements import ListedPlacement

PAGE_SIZE = 50

REFRESH_SECONDS, REFRESH_IDLE_SECONDS = 5, 15
"""Refresh intervals in seconds: while tries wait, and while none does."""

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

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    worker_id: str
    """Empty if the try is not placed on a worker."""
    worker: str
    why: str
    queue: str
    since: Ago | None


@dataclass(frozen=True, slots=True)
class WaitingPage:
    """Page with the list of waiting tries."""

    address: WaitingAddress
    states: tuple[tuple[Option, WaitingAddress], ...]
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


MAX_OFFERED = 500
"""Maximum number of suggestions for the Dag field; more would make the page heavy."""


def build_waiting_page(
    address: WaitingAddress,
    listing: tuple[Sequence[ListedPlacement], int],
    executor: Executor,
    *,
    dag_ids: Collection[str],
    sees_workers: bool,
    now: datetime,
) -> WaitingPage:
    """Return the list of waiting tries.

    :param listing: the tries that the user may see, the longest wait first, and their total number
    :param dag_ids: the Dags that the user may read
    :param sees_workers: whether the user may see workers that are unrelated to a try
    """
    placements, total = listing
    return WaitingPage(
        address=address,
        states=tuple(
            (Option(value, text, is_chosen=value == address.state), address.changed(state=value))
            for value, text in _STATES
        ),
        filters=tuple(_filters(address)),
        reason_options=options(
            address.reason,
            ("", "Any"),
            *((reason, _short(reason)) for reason in sorted(PlacementReason.values(), key=_short)),
        ),
        dag_ids=tuple(sorted(dag_ids))[:MAX_OFFERED],
        rows=tuple(_row(placement, sees_workers=sees_workers, now=now) for placement in placements),
        pages=pages(address, Count(len(placements), total), size=PAGE_SIZE, singular="try", plural="tries"),
        notices=tuple(_notices(address, executor, shown=len(placements), total=total)),
        has_filters=executor.places or bool(placements) or address != WaitingAddress(),
        refresh_seconds=0 if address.offset else REFRESH_SECONDS if placements else REFRESH_IDLE_SECONDS,
    )


def _row(listed: ListedPlacement, *, sees_workers: bool, now: datetime) -> WaitingRow:
    key, placement = listed.placement.key, listed.placement
    text = placement.sentence if sees_workers else reason_text(placement.reason)
    shared = "Shared queue" if listed.state == PlacementState.PLACED else "Not placed yet"
    return WaitingRow(
        dag_id=key.dag_id,
        run_id=key.run_id,
        task_id=key.task_id,
        map_index=key.map_index,
        try_number=key.try_number,
        worker_id=listed.worker_id or "",
        worker=listed.worker_name or shared,
        # The text of a placed try begins with a worker's name, which keeps its case.
        why=text if listed.state == PlacementState.PLACED and sees_workers else f"{text[:1].upper()}{text[1:]}",
        queue=listed.queue,
        since=None if placement.placed_at is None else ago(placement.placed_at, now),
    )


def _short(reason: str) -> str:
    """Return the label of a reason: the API's key with spaces and a capital."""
    return reason.replace("_", " ").capitalize()


def _filters(address: WaitingAddress) -> Iterable[Filter]:
    if address.state:
        yield Filter(dict(_STATES)[address.state], address.changed(state=""))
    for name, text in (("dag_id", "Dag"), ("run_id", "Run"), ("task_id", "Task"), ("worker", "Worker")):
        value = getattr(address, name)
        if value:
            yield Filter(f"{text} {value}", address.changed(**{name: ""}))
    if address.reason:
        yield Filter(f"Reason: {_short(address.reason)}", address.changed(reason=""))


def _notices(address: WaitingAddress, executor: Executor, *, shown: int, total: int) -> Iterable[Notice]:
    if executor.unavailable_reason and executor.places:
        consequence = (
            "Until they can, the executor holds tasks, and they are listed here."
            if executor.holds
            else "Until they can, the executor behaves as Airflow’s own: it sends tasks without choosing a worker, and "
            "they are not listed here."
        )
        yield Notice("warning", "The workers cannot be seen", f"{executor.unavailable_reason} {consequence}")
    if shown:
        return
    if total:
        yield Notice("info", "", "There are no more tries here.")
    elif address.changed() != WaitingAddress():
        yield Notice("info", "No try fits", "No waiting try that you may see fits all of these filters.")
    elif not executor.places:
        yield Notice(
            "info",
            "No executor of Worker Insight is configured",
            "Airflow’s own executors send each task to its queue at once, so no task waits here for a worker. An "
            "administrator can set [core] executor to one that chooses the worker of each task:",
            "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor",
        )
    elif not executor.unavailable_reason:
        yield Notice(
            "info",
            "Nothing waits",
            "Workers have started every queued try that you may see. A try that finds no worker is listed here with "
            "the reason.",
        )


def cannot_be_seen(name: str, *, polled_at: datetime | None, error: str | None, now: datetime) -> str:
    """Say why the workers of a worker source are unavailable.

    :param looked_at: when the source was last polled; ``None`` if never
    :param error: the error of the last poll; ``None`` if there was none or the user may not see it
    """
    if polled_at is None:
        return f"Nobody has checked the {name} workers so far."
    if error is not None:
        return f"The last check of the {name} workers failed: {error.rstrip('.')}."
    return f"The {name} workers were last checked {formatting.ago(polled_at, now)}."
