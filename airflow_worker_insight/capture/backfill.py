"""Backfill: build attempts from the tries that ran before the installation.

It goes through the finished Dag runs in the order of their rows and reconciles them in batches, each in its own
transaction. It can be stopped at any time and run again; a second run changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight.capture.reconcile import Outcome, reconcile_runs, split_into_batches
from airflow_worker_insight.store import airflow_history, session
from airflow_worker_insight.store.attempts import close

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS_PER_READ = 100
"""Number of Dag runs read at once."""

TASKS_PER_TRANSACTION = 5_000
"""Maximum number of task instances per transaction; a single Dag run may have more."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which finished Dag runs to reconcile; ``after`` is the row ID of the last one done."""

    dag_id: str | None = None
    ended_since: datetime | None = None
    after: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Result of one batch: its number of Dag runs, its outcome, and the row ID to go on after."""

    runs: int
    outcome: Outcome
    last_row_id: int


def count_runs(selection: Selection) -> int:
    """Return the number of Dag runs in the selection."""
    with session.reading(session.COMMAND) as connection:
        return airflow_history.count_finished_runs(
            connection,
            dag_id=selection.dag_id,
            ended_since=selection.ended_since,
            after_row_id=selection.after,
        )


def installed_at() -> datetime:
    """Return when the first worker reported, or now without any report.

    What started before is history.
    """
    with session.reading(session.COMMAND) as connection:
        return close.first_report_at(connection) or datetime.now(timezone.utc)


def reconcile_selected(
    selection: Selection, *, installed_at: datetime | None, runs_per_read: int = RUNS_PER_READ
) -> Iterator[Progress]:
    """Reconcile all selected Dag runs, yielding the progress after each batch.

    :param installed_at: tries that started before it become ``backfilled`` instead of ``inferred``
    """
    after = selection.after
    while True:
        with session.reading(session.COMMAND) as connection:
            runs = airflow_history.finished_runs(
                connection,
                dag_id=selection.dag_id,
                ended_since=selection.ended_since,
                after_row_id=after,
                limit=runs_per_read,
            )
            if not runs:
                return
            batches = list(
                split_into_batches(airflow_history.count_task_instances(connection, runs), TASKS_PER_TRANSACTION)
            )
        for batch in batches:
            with session.writing(session.COMMAND) as connection:
                outcome = reconcile_runs(connection, batch, installed_at=installed_at)
            after = batch[-1].row_id
            yield Progress(runs=len(batch), outcome=outcome, last_row_id=after)
