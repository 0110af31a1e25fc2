"""Validate reports with a closed schema of bounded sizes.

A report comes from a task process, which can run any code. :func:`.claim.record_report` then checks whether a valid
report fits Airflow's try.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from airflow_worker_insight.capture.report import MAX_REPORT_BYTES, REPORT_VERSION
from airflow_worker_insight.domain.attempts import Conditions
from airflow_worker_insight.domain.attribution import HOST_ID_PREFIX
from airflow_worker_insight.domain.clock import STORABLE_YEARS
from airflow_worker_insight.domain.names import HOSTNAME_LENGTH, LABELS_SIZE, clean, is_clean
from airflow_worker_insight.domain.parameters import WORKER_ID
from airflow_worker_insight.domain.workers import WorkerRecord


class RejectedReportError(Exception):
    """A report that is not credible.

    ``reason`` is a word for the counters, ``explanation`` a line for operators.
    """

    def __init__(self, reason: str, explanation: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.explanation = explanation


def _storable(text: str) -> str:
    """Refuse text that a database cannot hold or a page should not show.

    See :data:`airflow_worker_insight.domain.names.FORBIDDEN_CATEGORIES`.
    """
    if not is_clean(text):
        raise ValueError("control and format characters are not allowed")
    return text


def _text(max_length: int, *, min_length: int = 1) -> Any:
    return Annotated[str, Field(min_length=min_length, max_length=max_length), AfterValidator(_storable)]


def _limit_size(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse more than ``LABELS_SIZE`` bytes: every page that lists the worker reads its row."""
    if len(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")) > LABELS_SIZE:
        raise ValueError(f"more than {LABELS_SIZE} bytes")
    return values


def _not_host_id(worker_id: str) -> str:
    """Refuse the ID of a whole host.

    Otherwise a task could turn the row that stands for any worker of a host into that of one worker.
    """
    if worker_id.startswith(HOST_ID_PREFIX):
        raise ValueError("the ID of a host is not the ID of a worker")
    return worker_id


_Key = _text(64)
_Value = _text(250, min_length=0)
_Number = Annotated[int | float, Field(ge=0, le=2**63 - 1, allow_inf_nan=False)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkerReport(_Closed):
    """What a worker may report about itself."""

    worker_id: Annotated[str, Field(pattern=WORKER_ID), AfterValidator(_not_host_id)]
    name: _text(250)  # type: ignore[valid-type]
    kind: _text(32)  # type: ignore[valid-type]
    hostname: _text(255)  # type: ignore[valid-type]
    engine_name: _text(250) | None = None  # type: ignore[valid-type]
    pid: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    started_at: AwareDatetime | None = None
    labels: Annotated[dict[_Key, _Value], Field(max_length=32), AfterValidator(_limit_size)] = {}  # type: ignore[valid-type]
    resources: Annotated[dict[_Key, _Number | _Value], Field(max_length=32), AfterValidator(_limit_size)] = {}  # type: ignore[valid-type]
    versions: Annotated[dict[_Key, _Value], Field(max_length=32), AfterValidator(_limit_size)] = {}  # type: ignore[valid-type]


class ConditionsReport(_Closed):
    """What a worker may report about its machine."""

    load: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None
    memory_free: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    running_beside: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


class Report(_Closed):
    """One report; see :mod:`airflow_worker_insight.capture.report`."""

    version: Literal[1]
    try_id: UUID
    process: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")] | None = None
    """Identifies the task process; reports of older versions of this package have none."""
    worker: WorkerReport
    conditions: ConditionsReport = ConditionsReport()


def parse_report(value: Any) -> Report:
    """Validate an XCom value as a report.

    :param value: the value as stored: JSON as Python values, or as text
    :raises RejectedReportError: with the reason ``oversized``, ``unknown_version`` or ``malformed``
    """
    if isinstance(value, str) and len(value) <= MAX_REPORT_BYTES:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RejectedReportError("malformed") from None
    if _exceeds(value, MAX_REPORT_BYTES):
        raise RejectedReportError("oversized")
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is int and version != REPORT_VERSION:
        raise RejectedReportError("unknown_version")
    try:
        return Report.model_validate(value)
    except (ValidationError, RecursionError):
        raise RejectedReportError("malformed") from None


def _exceeds(value: Any, limit: int) -> bool:
    """Return whether ``value`` has more than ``limit`` bytes as JSON; stop encoding there."""
    size = 0
    try:
        # With a default, the encoder yields chunks instead of everything at once.
        for chunk in json.JSONEncoder(default=str).iterencode(value):
            size += len(chunk)
            if size > limit:
                return True
    except (TypeError, ValueError, RecursionError):
        raise RejectedReportError("malformed") from None
    return False


def worker_record(
    worker: WorkerReport | dict[str, Any], *, job_id: int | None, hostname: str | None = None
) -> WorkerRecord:
    """Return a validated worker description as a row of the worker table.

    :param hostname: the host that Airflow recorded for the try; it replaces the reported one
    :param job_id: the ID of Airflow's job that the worker belongs to, for a scheduler's own worker (LocalExecutor)
    :raises pydantic.ValidationError: when a plain ``dict`` is not a valid description
    """
    validated = worker if isinstance(worker, WorkerReport) else WorkerReport.model_validate(worker)
    return WorkerRecord(
        worker_id=validated.worker_id,
        name=validated.name,
        kind=validated.kind,
        hostname=clean(hostname, HOSTNAME_LENGTH) or validated.hostname,
        pid=validated.pid,
        started_at=_storable_time(validated.started_at),
        engine_name=validated.engine_name,
        labels=validated.labels,
        resources=validated.resources,
        versions=validated.versions,
        job_id=job_id if validated.kind == "local" else None,
    )


def conditions(report: ConditionsReport | dict[str, Any]) -> Conditions:
    """Return validated conditions as the attempt table stores them.

    :raises pydantic.ValidationError: when a plain ``dict`` does not describe conditions
    """
    validated = report if isinstance(report, ConditionsReport) else ConditionsReport.model_validate(report)
    return Conditions(load=validated.load, memory_free=validated.memory_free, running_beside=validated.running_beside)


def _storable_time(moment: datetime | None) -> datetime | None:
    """Return a start time that every database can store, in UTC, else ``None``."""
    if moment is None or moment.year not in STORABLE_YEARS:
        return None
    return moment.astimezone(timezone.utc)
