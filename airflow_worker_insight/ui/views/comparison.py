"""Comparison of a worker with the other workers of the same tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.insight.findings import Share
from airflow_worker_insight.insight.sentences import task_text
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import ANY, AttemptsParams

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import Attempt, AttemptWorker
    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.store.attempts.first_tries import FirstTry

TASK_TRIES = 64
"""Latest first tries of a task by which a failed try is judged, or with which a worker's tries are compared."""

WORKER_TRIES = 500
"""Latest first tries of a worker that are compared with its peers'."""

RESTART_TRIES = 100
"""Latest first tries of the instance before and of this one, by which a restart is judged."""

MAX_TASKS = 20
"""Tasks that are compared on a worker's page."""

HINDSIGHT = timedelta(days=1)
"""First tries that started up to this long after a failed try count for it."""

BUSY = "Cannot be told now: the database is busy."

_FAILED = ("failed", "up_for_retry")


# --- a failed try ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """The latest failed try of a task instance, and the worker on which it ended."""

    attempt: Attempt
    worker: AttemptWorker

    def until(self, now: datetime) -> datetime:
        """Return until when first tries started that it is compared with."""
        return now if self.attempt.started_at is None else min(now, self.attempt.started_at + HINDSIGHT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of a failed try: whether its task or its worker fails."""

    heading: str
    text: str
    """A sentence, with names of tasks in backticks."""
    basis: str
    """What was compared; empty if nothing was."""
    findings: tuple[int, ...] = ()
    """IDs of the open findings about the worker."""


def latest_failure(attempts: Iterable[Attempt], instances: Mapping[str, WorkerRow]) -> Failure | None:
    """Return the latest try that failed or was lost, if its worker is known by name.

    :param instances: the workers whose state the user may see, by worker ID
    """
    for attempt in sorted(attempts, key=lambda attempt: -attempt.try_number):
        worker = attempt.workers[-1] if attempt.workers else None
        instance = instances.get(worker.worker_id) if worker is not None else None
        is_lost = attempt.state == "running" and instance is not None and instance.state == WorkerState.LOST
        if attempt.state in _FAILED or is_lost:
            return None if worker is None or worker.host_only else Failure(attempt, worker)
    return None


def build_verdict(
    failure: Failure, tries: Sequence[FirstTry] | None, *, now: datetime, findings: Iterable[int] = ()
) -> Verdict:
    """Return what can be said of a failed try.

    :param tries: first tries of its task on all workers; ``None`` if the database was too busy
    :param findings: IDs of the open findings about its worker
    """
    attempt, worker = failure.attempt, failure.worker.name
    ended = "failed" if attempt.state in _FAILED else "was lost"
    heading = f"Is it the worker? Try {attempt.try_number} {ended} on {worker}"
    if tries is None:
        return Verdict(heading, BUSY, "", tuple(findings))
    share = share_of(worker, (attempt.dag_id, attempt.task_id), tries)
    number = formatting.count(len(tries), "first try", "first tries")
    latest = "the latest" if failure.until(now) == now else "the last, up to a day after it,"
    basis = f"Compared: {latest} {number} of the task." if tries else ""
    return Verdict(heading, task_text(worker, attempt.task_id, share), basis, tuple(findings))


def share_of(worker_name: str, task: tuple[str, str], tries: Iterable[FirstTry]) -> Share:
    """Return a worker's part of a task's tries; all instances of its name count."""
    tries = list(tries)
    return _share(
        task,
        [each for each in tries if each.worker_name == worker_name],
        [each for each in tries if each.worker_name != worker_name],
    )


def _share(task: tuple[str, str], own: Sequence[FirstTry], others: Sequence[FirstTry]) -> Share:
    failures, peer_failures = (sum(each.has_failed for each in tries) for tries in (own, others))
    excess = failures - len(own) * peer_failures / len(others) if others else 0.0
    return Share(task, len(own), failures, len(others), peer_failures, excess)


# --- all tasks of a worker -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskLine:
    """Row of one task: its tries on the worker and on the others."""

    dag_id: str
    task_id: str
    own: str
    own_rate: str
    peers: str
    peer_rate: str
    text: str
    """A sentence, with the name of the task in backticks."""
    params: AttemptsParams
    """Lists the tries of the task on the worker."""


@dataclass(frozen=True, slots=True)
class Restart:
    """A worker before and after its latest restart; the texts are clauses."""

    at: datetime
    before: str
    since: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A worker against its peers, and against itself before it was restarted."""

    text: str
    lines: tuple[TaskLine, ...]
    rest: str
    restart: Restart | None = None


def tasks_to_compare(tries: Iterable[FirstTry]) -> list[tuple[str, str]]:
    """Return the tasks that failed on a worker, the most failures first: of others it can have no excess.

    :param tries: first tries of the worker
    """
    failures = Counter(each.task for each in tries if each.has_failed)
    return [task for task, _ in failures.most_common(MAX_TASKS)]


def build_comparison(worker_id: str, tries: Sequence[FirstTry] | None, peers: Iterable[FirstTry]) -> Comparison:
    """Compare a worker instance with the other workers of the same tasks, the largest excess of failures first.

    :param tries: its own latest first tries; ``None`` if the database was too busy
    :param peers: tries of the tasks of :func:`tasks_to_compare` in the same time; those on the same name do not count
    """
    if tries is None:
        return Comparison(BUSY, (), "")
    own: dict[tuple[str, str], list[FirstTry]] = defaultdict(list)
    others: dict[tuple[str, str], list[FirstTry]] = defaultdict(list)
    for each in tries:
        own[each.task].append(each)
    name = tries[0].worker_name if tries else ""
    for each in peers:
        if each.worker_name != name:
            others[each.task].append(each)
    shares = [_share(task, own[task], others[task]) for task in tasks_to_compare(tries)]
    shares.sort(key=lambda share: (-share.excess, share.stratum))
    failed = len({each.task for each in tries if each.has_failed})
    rest = f"And {formatting.count(failed - len(shares), 'task', 'tasks')} more." if failed > len(shares) else ""
    return Comparison(_comparison_text(tries), tuple(_line(name, worker_id, share) for share in shares), rest)


def build_restart(at: datetime, before: Sequence[FirstTry], since: Sequence[FirstTry]) -> Restart:
    """Compare an instance with the one before it.

    :param at: when it started
    :param before: latest first tries of the instance before, of any length
    :param since: its own
    """
    return Restart(at, _failed_text(before[:RESTART_TRIES]), _failed_text(since[:RESTART_TRIES]))


def _failed_text(tries: Sequence[FirstTry]) -> str:
    if not tries:
        return "no first try that you may see"
    failures = sum(each.has_failed for each in tries)
    number = formatting.count(len(tries), "first try", "first tries")
    return f"{failures:,} of {number} failed ({formatting.percent(failures, len(tries))})"


def _comparison_text(tries: Sequence[FirstTry]) -> str:
    if not tries:
        return "No first try to compare."
    failures = sum(each.has_failed for each in tries)
    number = formatting.count(len(tries), "first try", "first tries")
    of_tasks = formatting.count(len({each.task for each in tries}), "task", "tasks")
    if not failures:
        return f"Its latest {number}, of {of_tasks}: none failed."
    return f"{failures:,} of its latest {number} of {of_tasks} failed. Only tasks that failed here are compared."


def _line(name: str, worker_id: str, share: Share) -> TaskLine:
    dag_id, task_id = share.stratum
    return TaskLine(
        dag_id=dag_id,
        task_id=task_id,
        own=f"{share.failures:,} of {share.tries:,}",
        own_rate=formatting.percent(share.failures, share.tries),
        peers=f"{share.peer_failures:,} of {share.peer_tries:,}" if share.peer_tries else "–",
        peer_rate=formatting.percent(share.peer_failures, share.peer_tries),
        text=task_text(name, task_id, share),
        params=AttemptsParams(dag_id=dag_id, task_id=task_id, worker=worker_id, window=ANY),
    )
