"""EdgeExecutor: its workers write their heartbeats into a table of the Edge provider, through the API server."""

from __future__ import annotations

import ast
import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.names import NAME_LENGTH, clean
from airflow_worker_insight.domain.states import EDGE
from airflow_worker_insight.registry.observations import PollResult, SourceUnavailableError, WorkerObservation
from airflow_worker_insight.store.edge_workers import edge_workers

if TYPE_CHECKING:
    from sqlalchemy.engine import Row

    from airflow_worker_insight.registry.observations import PollContext

QUEUE_LENGTH = 256
"""Characters of a queue's name, as in ``.celery``."""

QUEUES_SIZE = 2**20
"""Characters of a list of queues that is read: a worker's command line takes an eighth of that."""

MAX_CONCURRENCY = 1_000_000

_LEFT = ("offline", "offline maintenance")
_VERSIONS = {"airflow": "airflow_version", "edge_provider": "edge_provider_version", "python": "python_version"}


class EdgeSource:
    """Looks at the ``edge_worker`` table."""

    name = EDGE

    def look(self, view: PollContext) -> PollResult:
        """Return every worker that the table names, those that are long gone too."""
        with view.database() as connection:
            rows = edge_workers(connection)
        if rows is None:
            raise SourceUnavailableError("The Edge provider's tables do not exist yet: run `airflow db migrate`.")
        sightings = [_sighting(row) for row in rows]
        return PollResult(tuple(one for one in sightings if one is not None), ignored=sightings.count(None))


def _sighting(row: Row[Any]) -> WorkerObservation | None:
    name = clean(row.worker_name, NAME_LENGTH)
    if not name:
        return None
    state = str(getattr(row.state, "value", row.state))
    told = _json_object(getattr(row, "sysinfo", None))
    # Naive, in the time zone of the worker: good to tell that it is another start, not when that was.
    started_at = _time(told.get("worker_start_time"))
    concurrency = getattr(row, "concurrency", None) or told.get("concurrency")
    return WorkerObservation(
        kind="edge",
        engine_name=name,
        # The Edge worker's name is also what Airflow records as the host of its tries.
        hostname=name,
        started_at=started_at,
        heartbeat_at=utc(row.last_update),
        has_left=state in _LEFT,
        queues=_queues(row.queues),
        concurrency=concurrency if _is_count(concurrency) else None,
        versions={key: text for key, text in _versions(told) if text},
        unavailable_reason=_unavailable_reason(state, told),
    )


def _unavailable_reason(state: str, told: dict[str, Any]) -> str | None:
    if "maintenance" in state:
        return f"Its engine says: {state}."
    return clean(told.get("status_text"), 200) or None


def _versions(told: dict[str, Any]) -> list[tuple[str, str]]:
    # Python's is followed by how it was built.
    return [(key, clean(told.get(name), 100).partition(" ")[0][:32]) for key, name in _VERSIONS.items()]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_CONCURRENCY


def _queues(value: object) -> tuple[str, ...] | None:
    """Read the queues, which the provider stores as Python would print a list; ``None`` is "all queues" there."""
    if not isinstance(value, str) or len(value) > QUEUES_SIZE:
        return None
    try:
        listed = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(listed, list):
        return None
    names = {clean(queue, QUEUE_LENGTH) for queue in listed}
    return tuple(sorted(name for name in names if name))


def _json_object(value: object) -> dict[str, Any]:
    """Read the worker's description: text in early versions, JSON in later ones."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment if 2000 <= moment.year <= 9000 else None  # noqa: PLR2004
