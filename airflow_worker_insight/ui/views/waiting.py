"""The list of tries that wait: for a worker, or at one for a free slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.filters import PLACED, WAITS
from airflow_worker_insight.domain.reasons import REASONS
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
"""How often the list asks again: while something waits, and while something may come to wait."""

_STATES = (("", "All"), (WAITS, "Waiting for a worker"), (PLACED, "Placed"))


@dataclass(frozen=True, slots=True)
class Executor:
    """What the executors of this deployment do with tasks, as far as the configuration and the registry tell."""

    places: bool
    """Whether an executor of this package is configured."""
    unavailable_reason: str = ""
    """Why the workers cannot be seen now."""
    holds: bool = False
    """Whether tasks wait while they cannot."""


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """A try that waits."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    worker_id: str
    """Empty where it is placed on no worker."""
    worker: str
    why: str
    queue: str
    since: Ago | None


@dataclass(frozen=True, slots=True)
class WaitingPage:
    """The list of tries that wait."""

    address: WaitingAddress
    states: tuple[tuple[Option, WaitingAddress], ...]
    filters: tuple[Filter, ...]
    reason_options: tuple[Option, ...]
    dag_ids: tuple[str, ...]
    """What is offered for the field of the Dag."""
    rows: tuple[WaitingRow, ...]
    pages: Pages
    notices: tuple[Notice, ...]
    has_filters: bool
    """Whether the fields to filter by are shown: not where nothing is ever listed."""
    refresh_seconds: int


MAX_OFFERED = 500
"""Dags that the field of the Dag offers: more would make the page heavy."""


def build_waiting_page(
    address: WaitingAddress,
    found: tuple[Sequence[ListedPlacement], int],
    executor: Executor,
    *,
    dag_ids: Collection[str],
    sees_workers: bool,
    now: datetime,
) -> WaitingPage:
    """Return the list of tries that wait.

    :param found: those that the reader may see, the longest wait first, and how many there are
    :param dag_ids: the Dags that the reader may read
    :param sees_workers: whether the reader may see workers that a try has nothing to do with
    """
    listed, total = found
    return WaitingPage(
        address=address,
        states=tuple(
            (Option(value, text, is_chosen=value == address.state), address.changed(state=value))
            for value, text in _STATES
        ),
        filters=tuple(_filters(address)),
        reason_options=options(
            address.reason, ("", "Any"), *((reason, _short(reason)) for reason in sorted(REASONS, key=_short))
        ),
        dag_ids=tuple(sorted(dag_ids))[:MAX_OFFERED],
        rows=tuple(_row(one, sees_workers=sees_workers, now=now) for one in listed),
        pages=pages(address, Count(len(listed), total), size=PAGE_SIZE, singular="try", plural="tries"),
        notices=tuple(_notices(address, executor, shown=len(listed), total=total)),
        has_filters=executor.places or bool(listed) or address != WaitingAddress(),
        refresh_seconds=0 if address.offset else REFRESH_SECONDS if listed else REFRESH_IDLE_SECONDS,
    )


def _row(one: ListedPlacement, *, sees_workers: bool, now: datetime) -> WaitingRow:
    key, placed = one.placement.key, one.placement
    text = placed.sentence if sees_workers else reason_text(placed.reason)
    shared = "Shared queue" if one.state == PLACED else "Not placed yet"
    return WaitingRow(
        dag_id=key.dag_id,
        run_id=key.run_id,
        task_id=key.task_id,
        map_index=key.map_index,
        try_number=key.try_number,
        worker_id=one.worker_id or "",
        worker=one.worker_name or shared,
        # A worker's name stands at the beginning of what was written of a try that is placed.
        why=text if one.state == PLACED and sees_workers else f"{text[:1].upper()}{text[1:]}",
        queue=one.queue,
        since=None if placed.placed_at is None else ago(placed.placed_at, now),
    )


def _short(reason: str) -> str:
    """Return a reason for a choice: the word, as the API has it, in plain letters."""
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
        then = (
            "Until they can, the executor holds tasks, and they are listed here."
            if executor.holds
            else "Until they can, the executor behaves as Airflow’s own: it sends tasks without choosing a worker, and "
            "they are not listed here."
        )
        yield Notice("warning", "The workers cannot be seen", f"{executor.unavailable_reason} {then}")
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


def cannot_be_seen(name: str, *, looked_at: datetime | None, error: str | None, now: datetime) -> str:
    """Say why the workers of a source cannot be seen.

    :param error: what went wrong, for a reader who may know
    """
    if looked_at is None:
        return f"Nobody has checked the {name} workers so far."
    if error is not None:
        return f"The last check of the {name} workers failed: {error.rstrip('.')}."
    return f"The {name} workers were last checked {formatting.ago(looked_at, now)}."
