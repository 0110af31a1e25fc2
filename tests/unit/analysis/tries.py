"""Tries as the analysis reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.tries import AnalyzedTry, TryOutcome, TryWorker
from tests.unit.database import at

if TYPE_CHECKING:
    from collections.abc import Callable


def a_worker(name: str = "w1", **others: Any) -> TryWorker:
    """Return a worker instance."""
    return TryWorker(**{"ref": 1, "worker_id": name, "name": name, "kind": "celery", "hostname": "host-1", **others})


def a_try(
    started: float,
    ended: float,
    *,
    worker: TryWorker | None = None,
    outcome: TryOutcome = TryOutcome.SUCCESS,
    queued: float | None = None,
    dag_id: str = "etl",
    task_id: str = "load",
    queue: str | None = "default",
) -> AnalyzedTry:
    """Return a try that has ended; times are seconds after noon."""
    key = TryKey(dag_id, "run-1", task_id, -1, 1)
    return AnalyzedTry(
        row_key=key.key_by_names,
        key=key,
        worker=worker or a_worker(),
        started_at=at(started),
        outcome=outcome,
        ended_at=at(ended),
        queue=queue,
        queued_at=None if queued is None else at(queued),
    )


@st.composite
def any_try(draw: Callable[..., Any], *, days: int = 3) -> AnalyzedTry:
    """Draw a try that ended within the days before noon, of one of a few workers, tasks and queues."""
    ended = draw(st.integers(-days * 86400, 0))
    started = ended - draw(st.integers(-60, 3 * 3600))
    return a_try(
        started,
        ended,
        worker=a_worker(draw(st.sampled_from(["w1", "w2", "w3"])), hostname=draw(st.sampled_from(["h1", "h2"]))),
        outcome=draw(st.sampled_from(list(TryOutcome))),
        queued=draw(st.none() | st.integers(started - 600, started + 10)),
        dag_id=draw(st.sampled_from(["etl", "sales"])),
        task_id=draw(st.sampled_from(["load", "extract"])),
        queue=draw(st.sampled_from(["default", "heavy", None])),
    )
