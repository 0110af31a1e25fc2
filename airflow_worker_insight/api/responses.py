"""Responses of the REST API, and their fields from rows of the store."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_worker_insight.api.queries import Availability
from airflow_worker_insight.domain.limits import MAX_TOTAL

if TYPE_CHECKING:
    from airflow_worker_insight.domain.enforcement import EnforcementStatus
    from airflow_worker_insight.domain.workers import WorkerChange, WorkerRow
    from airflow_worker_insight.store.placements import ListedPlacement

MAX_CHANGES = 100


class AttemptWorkerResponse(BaseModel):
    """A worker that ran an attempt."""

    model_config = ConfigDict(from_attributes=True)

    worker_id: str = Field(description="ID of a worker instance; begins with host- if only the host is known.")
    name: str
    kind: str = Field(description="celery, local, kubernetes, edge, or the executor's name.")
    hostname: str
    process_count: int = Field(description="Number of task processes of this try that ran on this worker.")
    first_started_at: datetime | None
    last_started_at: datetime | None
    load: float | None = Field(description="The machine's load average per CPU when the try started there.")
    memory_free: float | None = Field(description="The machine's free memory at that time, as a share of all memory.")
    running_beside: int | None = Field(
        description="Number of other tries that ran on the worker at that time; null without the right to see workers."
    )


class AttemptResponse(BaseModel):
    """One try of one task instance."""

    model_config = ConfigDict(from_attributes=True)

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str | None = Field(description="null if Airflow has none, or deleted the try before it ended.")
    started_at: datetime | None
    ended_at: datetime | None
    duration: float | None = Field(description="Seconds between start and end.")
    attribution: str = Field(
        description="How it is known: reported, inferred, backfilled, not_on_a_worker, never_started or unknown."
    )
    workers: list[AttemptWorkerResponse]
    placement: str | None = Field(
        description="Latest reason of an executor of this package, as one word: why it placed the try there, or why it "
        "kept the try waiting; null if no such executor placed it."
    )
    placement_detail: str | None = Field(
        description="The same as a sentence, with the workers that were left out. Kept for 30 days; null without the "
        "right to see workers."
    )
    deleted: Literal["run", "task_instance"] | None = Field(
        description="What Airflow has deleted together with the try: its Dag run or its task instance. One that has "
        "the same name now is another one. null for a try that Airflow has, or of which it removed the history only."
    )


class _ListResponse(BaseModel):
    """Fields that all lists share."""

    total_entries: int = Field(description=f"Number of entries, counted up to {MAX_TOTAL}.")
    total_is_exact: bool = Field(
        description="false if counting stopped early: at the limit of the total, or of the tries that a search for a "
        "state, task_id, map_index or try_number scans."
    )


class AttemptsResponse(_ListResponse):
    """A page of attempts; ``total_entries`` counts only those that the reader may see."""

    attempts: list[AttemptResponse]


class PlacementWorkerResponse(BaseModel):
    """The worker that a try is placed on."""

    worker_id: str
    name: str


class PlacementResponse(BaseModel):
    """A try that has not ended and waits for a worker, or that an executor of this package has placed."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: Literal["waiting", "placed"]
    worker: PlacementWorkerResponse | None = Field(
        description="null while the try waits, and if it was sent to the shared queue."
    )
    reason: str = Field(description="Why the try waits, or why it was placed there, as one word.")
    detail: str | None = Field(
        description="The same as a sentence, with those that were left out; null without the right to see workers."
    )
    since: datetime = Field(description="When the try began to wait, or was placed.")
    queue: str
    try_state: str = Field(description="Airflow's state of the try: queued until a worker starts it, then running.")


class PlacementsResponse(_ListResponse):
    """A page of placements; ``total_entries`` counts only those that the reader may see."""

    placements: list[PlacementResponse]


class EnforcementResponse(BaseModel):
    """Whether the decision on a worker holds."""

    model_config = ConfigDict(from_attributes=True)

    state: Literal["requested", "in_effect", "failed", "not_enforced"] = Field(
        description="in_effect: the worker takes no new work. requested: it has not confirmed that yet. failed: it "
        "could not be asked, and is asked again. not_enforced: nothing keeps work off it."
    )
    since: datetime | None = Field(description="When it was requested, or came into effect.")
    text: str = Field(description="The same in words.")


class StatisticsRowResponse(BaseModel):
    """Statistics of one group in one bucket."""

    model_config = ConfigDict(from_attributes=True)

    group: str | None = Field(
        description="Worker name, host, queue, kind, label's value, dag_id, or dag_id.task_id; null for tries without."
    )
    bucket: datetime | None = Field(description="Begin of the hour or day; null for the whole window.")
    tries: int = Field(description="Tries that ended in this time with success, failed or lost.")
    failed: int = Field(description="Tries that failed, without the lost ones.")
    lost: int = Field(description="Tries that ended with their worker.")
    busy_seconds: float = Field(description="Seconds that tries ran in this time, however they ended.")
    utilization: float | None = Field(
        description="Share of the workers' slots that was in use; null if unknown, and for queues, Dags and tasks."
    )
    mean_duration: float | None = Field(description="Seconds from start to end; null if no try ended.")
    mean_queue_seconds: float | None = Field(description="Seconds from queued to started; null if unknown.")


class StatisticsResponse(_ListResponse):
    """A page of statistics."""

    statistics: list[StatisticsRowResponse]
    since: datetime = Field(alias="from", description="Begin of what was counted: that of an hour, or of a day.")
    until: datetime = Field(alias="to", description="End of what was counted.")


class WorkerResponse(BaseModel):
    """One instance of a worker: from its start to its end."""

    worker_id: str
    name: str = Field(description="Name that operators use; it outlives restarts.")
    kind: str = Field(description="celery, local, kubernetes, edge, or the executor's name.")
    hostname: str
    pid: int | None
    state: Literal["online", "unresponsive", "offline", "lost"] | None = Field(description="null if unknown.")
    state_reason: str | None = Field(description="Why the worker is in this state, or why its state is unknown.")
    availability: Availability = Field(description="Availability that a user set.")
    availability_note: str | None = Field(description="Reason that the user gave.")
    availability_changed_by: str | None
    availability_changed_at: datetime | None
    enforcement: EnforcementResponse | None = Field(
        description="Whether the availability holds; null for an available worker that takes work, and for ended ones."
    )
    queues: list[str] | None
    concurrency: int | None
    running: int | None = Field(description="Number of tries that ran on it when its source was last polled.")
    started_at: datetime | None
    registered_at: datetime
    last_seen_at: datetime
    ended_at: datetime | None
    labels: dict[str, str]
    resources: dict[str, Any]
    versions: dict[str, Any]


class ChangeResponse(BaseModel):
    """One entry of a worker's history: either its state or its availability changed."""

    model_config = ConfigDict(from_attributes=True)

    changed_at: datetime
    state: str | None
    availability: str | None
    reason: str | None
    changed_by: str | None = Field(description="User who changed the availability; null for a change of the state.")


class WorkerDetailResponse(WorkerResponse):
    """One instance of a worker, with its history."""

    changes: list[ChangeResponse] = Field(description=f"At most {MAX_CHANGES} entries, latest first.")


class WorkersResponse(_ListResponse):
    """A page of workers."""

    workers: list[WorkerResponse]


class ServiceResponse(BaseModel):
    """A process of the deployment: one of Airflow's own, or a worker."""

    model_config = ConfigDict(from_attributes=True)

    kind: str = Field(description="scheduler, triggerer, dag_processor or worker.")
    service_id: str = Field(description="The ID of Airflow's job, or of the worker.")
    name: str
    hostname: str
    state: str | None = Field(description="online, unresponsive, offline or lost; null if unknown.")
    started_at: datetime | None
    last_seen_at: datetime | None
    ended_at: datetime | None


class ServicesResponse(_ListResponse):
    """A page of services, Airflow's own first."""

    services: list[ServiceResponse]


class SourceResponse(BaseModel):
    """The latest poll of one worker source."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(description="celery, edge, jobs (local workers) or tries (pods and other executors).")
    looked_at: datetime | None
    is_current: bool = Field(description="false if the latest poll is too old: worker states are unknown then.")
    error: str | None = Field(description="Why the latest poll failed.")


class HealthResponse(BaseModel):
    """Health of this package in the API server process that answers."""

    status: Literal["healthy", "unhealthy"]
    version: str = Field(description="The version of this package.")
    tables: Literal["ready", "missing", "old", "newer", "incomplete"]
    explanation: str = Field(description="What is wrong with the tables, and what to do.")
    counters: dict[str, int] = Field(
        description="Counters of reports in this process since its start; each process has its own."
    )
    engines: list[SourceResponse] | None = Field(
        description="Worker sources that were polled at least once; null without the right to see workers."
    )


class FindingTaskResponse(BaseModel):
    """A task's part of a finding."""

    dag_id: str
    task_id: str
    tries: int
    failures: int
    peer_tries: int
    peer_failures: int


class FindingScopeResponse(BaseModel):
    """The Dag or the task that has at least 80 % of a finding's excess."""

    dag_id: str | None = Field(description="null if the reader may not see the Dag.")
    task_id: str | None = Field(description="null for several tasks of the Dag.")


class FindingResponse(BaseModel):
    """A worker, a group of workers or a task that fails, loses or slows more tries than its peers."""

    finding_id: int
    subject_kind: Literal["worker", "host", "label", "task"]
    subject: str = Field(description="The worker's name, the host, the value of the label, or DAG_ID.TASK_ID.")
    label: str | None = Field(description="Key of the label, such as zone, node or image; null for other subjects.")
    outcome: Literal["failed", "lost", "slow"] = Field(description="What failures counts.")
    state: Literal["open", "recovering", "closed"]
    title: str = Field(description="The finding in one clause.")
    text: str = Field(description="The finding in a few sentences, with times in UTC.")
    recovery: str | None = Field(description="How its tries have ended since it was found, as a sentence.")
    since: datetime = Field(description="Start of the first failure that it counts.")
    found_at: datetime
    ended_at: datetime | None
    ended_reason: Literal["well", "gone", "part_of", "dismissed", "not_found"] | None
    evidence: float = Field(description="How many to 1 the tries speak against the subject, at most 10^12.")
    needed: float = Field(description="Evidence from which something was found.")
    tries: int = Field(description="First tries of the subject that could be compared.")
    failures: int = Field(description="Those that failed, were lost or were slow.")
    expected: float = Field(description="Failures that it would have had at the rate of its peers.")
    peer_tries: int = Field(description="Tries of the same tasks on its peers.")
    peer_failures: int
    scope: FindingScopeResponse | None = Field(description="null: all its tasks.")
    tasks: list[FindingTaskResponse] = Field(description="The tasks with most excess, at most 20.")
    hidden_tasks: int = Field(description="Number of further tasks, of Dags that the reader may not see.")
    worker_ids: list[str] = Field(description="IDs of the worker instances that it concerns, as of the latest update.")


class FindingEventResponse(BaseModel):
    """One entry of a finding's history."""

    model_config = ConfigDict(from_attributes=True)

    happened_at: datetime
    action: Literal[
        "found",
        "recovering",
        "open_again",
        "closed",
        "dismissed",
        "draining",
        "quarantined",
        "released",
        "probe",
        "not_quarantined",
    ]
    actor: str | None = Field(description="User who acted; null for what the analysis did.")
    reason: str | None


class FindingDetailResponse(FindingResponse):
    """A finding with its history."""

    history: list[FindingEventResponse] = Field(description="The latest entry first.")


class FindingsResponse(_ListResponse):
    """A page of findings; ``total_entries`` counts only those that the reader may see."""

    findings: list[FindingResponse]


# --- fields ----------------------------------------------------------------------------------------------------------


def placement_fields(listed: ListedPlacement, *, may_see_workers: bool = True) -> dict[str, Any]:
    """Return the fields of a :class:`PlacementResponse`.

    :param may_see_workers: whether the reader may see workers; if not, ``detail`` is ``None``
    """
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    return {
        **{name: getattr(listed.placement.key, name) for name in names},
        "state": listed.state,
        "worker": None if listed.worker_id is None else {"worker_id": listed.worker_id, "name": listed.worker_name},
        "reason": listed.placement.reason,
        "detail": listed.placement.sentence if may_see_workers else None,
        "since": listed.placement.placed_at,
        "queue": listed.queue,
        "try_state": listed.try_state,
    }


def worker_fields(
    row: WorkerRow, decision: WorkerChange | None, enforcement: EnforcementStatus | None
) -> dict[str, Any]:
    """Return the fields of a :class:`WorkerResponse`."""
    return {
        **{name: getattr(row, name) for name in WorkerResponse.model_fields if hasattr(row, name)},
        "enforcement": enforcement,
        "availability_note": None if decision is None else decision.reason,
        "availability_changed_by": None if decision is None else decision.changed_by,
        "availability_changed_at": None if decision is None else decision.changed_at,
    }
