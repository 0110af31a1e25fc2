"""EdgeExecutor: read its workers from the Edge provider's table.

The workers write their heartbeats there through the API server.
"""

from __future__ import annotations

import ast
import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.clock import STORABLE_YEARS, utc
from airflow_worker_insight.domain.enforcement import Answer
from airflow_worker_insight.domain.names import NAME_LENGTH, clean
from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry.observations import PollResult, SourceUnavailableError, WorkerObservation
from airflow_worker_insight.store import session
from airflow_worker_insight.store.edge_workers import edge_workers, exit_maintenance, request_maintenance

if TYPE_CHECKING:
    from sqlalchemy.engine import Row

    from airflow_worker_insight.domain.enforcement import Request
    from airflow_worker_insight.registry.observations import PollContext, Remember

QUEUE_LENGTH = 256
"""Maximum characters of a queue's name, as in ``.celery``."""

QUEUES_SIZE = 2**20
"""Maximum characters of a list of queues; a worker's command line takes an eighth of that."""

MAX_CONCURRENCY = 1_000_000

COMMENT = "Drained or quarantined in Airflow Worker Insight: release it there."
"""What the page of the Edge workers says of a maintenance that this package has requested."""

_REQUESTED, _EXIT_REQUESTED = "maintenance request", "maintenance exit"
_HOLDS = ("maintenance pending", "maintenance mode")
"""States in which a live worker takes no new tasks (``EdgeWorkerState``)."""

_TAKES_WORK = ("starting", "running", "idle", "unknown")

_STATES_AFTER_EXIT = ("offline", "offline maintenance")
_VERSIONS = {"airflow": "airflow_version", "edge_provider": "edge_provider_version", "python": "python_version"}


class EdgeSource:
    """Source of the workers in the ``edge_worker`` table."""

    name = SourceName.EDGE
    keeps_requests = True

    def poll(self, context: PollContext) -> PollResult:
        """Return every worker of the table, with those that have been gone for long."""
        with context.database() as connection:
            rows = edge_workers(connection)
        if rows is None:
            raise SourceUnavailableError("The Edge provider's tables do not exist yet: run `airflow db migrate`.")
        observations = [_observation(row) for row in rows]
        return PollResult(
            tuple(observation for observation in observations if observation is not None),
            ignored=observations.count(None),
        )

    def enforce(self, request: Request, _remember: Remember) -> dict[str, Answer]:
        """Put workers into the Edge provider's maintenance mode, or end that; return what each does now.

        A worker takes a request over with its next heartbeat. The provider keeps the maintenance of a worker that is
        restarted, so each one of ours ends whose worker is not to be held any more, also if it ended in between.
        """
        answers = {}
        with session.writing(session.BACKGROUND) as connection:
            for row in edge_workers(connection) or ():
                name, state = row.worker_name, _state(row)
                if name in request.hold:
                    if state in _TAKES_WORK:
                        request_maintenance(connection, name, COMMENT)
                    answers[name] = Answer(takes_work=state not in _HOLDS)
                else:
                    # A maintenance that was requested on the provider's own page is not ours to end.
                    is_ours = state in (*_HOLDS, _REQUESTED) and row.maintenance_comment == COMMENT
                    if is_ours:
                        exit_maintenance(connection, name)
                    answers[name] = Answer(takes_work=not is_ours and state != _EXIT_REQUESTED)
        return answers


def _state(row: Row[Any]) -> str:
    """Return a worker's state as text: an enum in some versions of the provider."""
    return str(getattr(row.state, "value", row.state))


def _observation(row: Row[Any]) -> WorkerObservation | None:
    name = clean(row.worker_name, NAME_LENGTH)
    if not name:
        return None
    state = _state(row)
    sysinfo = _json_object(getattr(row, "sysinfo", None))
    # Naive, in the worker's time zone: it tells one start from another, but not when a start was.
    started_at = _time(sysinfo.get("worker_start_time"))
    concurrency = getattr(row, "concurrency", None) or sysinfo.get("concurrency")
    return WorkerObservation(
        kind="edge",
        engine_name=name,
        # Airflow records the Edge worker's name as the host of its tries.
        hostname=name,
        started_at=started_at,
        heartbeat_at=utc(row.last_update),
        has_left=state in _STATES_AFTER_EXIT,
        queues=_queues(row.queues),
        concurrency=concurrency if _is_count(concurrency) else None,
        versions={key: version for key, version in _versions(sysinfo) if version},
        unavailable_reason=_unavailable_reason(state, sysinfo),
    )


def _unavailable_reason(state: str, sysinfo: dict[str, Any]) -> str | None:
    if "maintenance" in state:
        return f"Its source reports: {state}."
    return clean(sysinfo.get("status_text"), 200) or None


def _versions(sysinfo: dict[str, Any]) -> list[tuple[str, str]]:
    # Python's version is followed by its build.
    return [(key, clean(sysinfo.get(name), 100).partition(" ")[0][:32]) for key, name in _VERSIONS.items()]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_CONCURRENCY


def _queues(value: object) -> tuple[str, ...] | None:
    """Read the queues, stored as Python prints a list; ``None`` stands for all queues there."""
    if not isinstance(value, str) or len(value) > QUEUES_SIZE:
        return None
    try:
        queues = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(queues, list):
        return None
    names = {clean(queue, QUEUE_LENGTH) for queue in queues}
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
    return moment if moment.year in STORABLE_YEARS else None
