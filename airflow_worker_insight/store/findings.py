"""Store what the detector has found, with its history, and what users decided of it."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, case, cast, delete, false, func, insert, literal, or_, select, update

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.filters import AllDags
from airflow_worker_insight.domain.findings import (
    EndReason,
    FindingAction,
    FindingChanges,
    FindingEvent,
    FindingOutcome,
    FindingState,
    StoredFinding,
    SubjectKind,
    subject_kind_of,
)
from airflow_worker_insight.domain.keys import finding_key
from airflow_worker_insight.domain.limits import MAX_TOTAL, REASON_LENGTH
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import execute_and_count, in_list
from airflow_worker_insight.store.insight_tables import finding, finding_event
from airflow_worker_insight.store.tables import Timestamp, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.filters import FindingFilter
    from airflow_worker_insight.domain.workers import WorkerRow

BATCH = 500
"""Worker IDs that one statement looks up."""

REFRESH = timedelta(hours=1)
"""Age from which numbers that differ by less than a text shows are stored again."""

KEPT = timedelta(days=31)
"""How long a closed finding stays at least."""

_TIMES = frozenset({"since", "found_at", "ended_at"})
_COLUMNS = (
    finding.c.id,
    finding.c.state,
    finding.c.subject_kind,
    finding.c.outcome,
    finding.c.found_at,
    finding.c.ended_at,
    finding.c.end_reason,
    finding.c.data,
)


# --- what the detector found -----------------------------------------------------------------------------------------


def sync(connection: Connection, found: Sequence[Mapping[str, Any]], *, now: datetime) -> FindingChanges:
    """Store the detector's findings: insert, update and close rows, and write their history.

    A finding is the row with the detector's number of it and the same subject and outcome. Numbers count up anew when
    the analysis is computed anew: then it is the row of the same subject and outcome that was open at the same time. A
    row whose finding the detector no longer holds is closed, so call this with a detector that has read up to now. The
    caller owns the transaction, in which nothing is written if nothing has changed.

    :param found: ``insight.findings.as_json`` of each finding that is open or ended in the last 30 days
    :param now: by the database's clock
    """
    plan = _plan(_stored(connection, found, now), found, now)
    if not plan.is_empty:
        # A user may have dismissed one of them meanwhile.
        plan = _plan(_stored(connection, found, now, for_update=True), found, now)
    changes = _write(connection, plan, now)
    return replace(changes, quarantined=_quarantined(connection))


def _quarantined(connection: Connection) -> frozenset[int]:
    """Return the detector's numbers of open findings whose worker has been quarantined, by whomever."""
    query = (
        select(finding.c.number)
        .join(finding_event, finding_event.c.finding_ref == finding.c.id)
        .where(
            finding.c.state != FindingState.CLOSED,
            finding.c.subject_kind == SubjectKind.WORKER,
            finding_event.c.action == FindingAction.QUARANTINED,
        )
    )
    return frozenset(connection.execute(query).scalars())


@dataclass(slots=True)
class _Write:
    """A row to insert or update."""

    data: dict[str, Any]
    """The whole finding."""
    row: Row[Any] | None = None
    """The row to update."""
    action: FindingAction | None = None
    actor_wrote: bool = False
    """Whether the action is in the history already."""


@dataclass(slots=True)
class _Plan:
    inserts: list[_Write] = field(default_factory=list)
    updates: list[_Write] = field(default_factory=list)
    dismissed: set[int] = field(default_factory=set)

    @property
    def is_empty(self) -> bool:
        return not (self.inserts or self.updates)


def _stored(
    connection: Connection, found: Sequence[Mapping[str, Any]], now: datetime, *, for_update: bool = False
) -> Sequence[Row[Any]]:
    """Return the rows that may be one of these findings."""
    oldest = min([_time(each["found_at"]) for each in found] + [now - timedelta(days=1)])
    is_read = or_(finding.c.state != FindingState.CLOSED, finding.c.end_reason == EndReason.DISMISSED)
    query = (
        select(
            finding.c.id,
            finding.c.number,
            finding.c.subject_key,
            finding.c.state,
            finding.c.found_at,
            finding.c.ended_at,
            finding.c.end_reason,
            finding.c.updated_at,
            case((is_read, finding.c.data), else_=None).label("data"),
        )
        .where(or_(finding.c.state != FindingState.CLOSED, finding.c.ended_at >= oldest))
        .order_by(finding.c.id)
    )
    if for_update:
        _acquire_write_lock(connection)
        query = query.with_for_update()
    return connection.execute(query).all()


def _acquire_write_lock(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.execute(update(finding).where(false()).values(id=finding.c.id))


def _plan(rows: Iterable[Row[Any]], found: Sequence[Mapping[str, Any]], now: datetime) -> _Plan:
    """Decide what to write, without writing it."""
    plan = _Plan()
    by_subject: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        by_subject[row.subject_key].append(row)
    left = {row.id: row for of_subject in by_subject.values() for row in of_subject}
    unknown = []
    for each in found:
        same = [row for row in by_subject[_subject_key(each)] if row.number == each["number"] and _overlap(row, each)]
        if same and same[-1].id in left:
            _plan_update(plan, left.pop(same[-1].id), each, now)
        else:
            unknown.append(each)
    # An open row goes to an open finding rather than to one that has ended.
    for each in sorted(unknown, key=lambda each: (each["state"] == FindingState.CLOSED, -each["found_at"])):
        same = [row for row in by_subject[_subject_key(each)] if _overlap(row, each)]
        is_open = each["state"] != FindingState.CLOSED
        if any(_is_dismissed(row) for row in same):
            # Found anew from tries of before it was dismissed.
            plan.dismissed.update([each["number"]] if is_open else [])
        elif not is_open and any(row.state == FindingState.CLOSED for row in same):
            continue
        elif candidates := [row for row in same if row.id in left]:
            best = max(candidates, key=lambda row: (row.state != FindingState.CLOSED, row.id))
            _plan_update(plan, left.pop(best.id), each, now)
        else:
            plan.inserts.append(_Write(_plain(each)))
    for row in left.values():
        _plan_leftover(plan, row, now)
    # IDs count up in the order of finding.
    plan.inserts.sort(key=lambda each: (each.data["found_at"], each.data["number"]))
    return plan


def _overlap(row: Row[Any], each: Mapping[str, Any]) -> bool:
    """Return whether a row and a finding were open at the same time."""
    row_end = row.ended_at if row.ended_at is not None else datetime.max.replace(tzinfo=timezone.utc)
    is_before = each["ended_at"] is not None and _time(each["ended_at"]) < row.found_at
    return _time(each["found_at"]) <= row_end and not is_before


def _is_dismissed(row: Row[Any]) -> bool:
    return bool(row.end_reason == EndReason.DISMISSED)


def _plan_update(plan: _Plan, row: Row[Any], each: Mapping[str, Any], now: datetime) -> None:
    is_open = each["state"] != FindingState.CLOSED
    if _is_dismissed(row):
        plan.dismissed.update([each["number"]] if is_open else [])
        _plan_dismissed(plan, row, _plain(each))
        return
    if row.state == FindingState.CLOSED:
        if is_open:
            plan.updates.append(_Write(_plain(each), row, FindingAction.OPEN_AGAIN))
        return
    data = {**_plain(each), "found_at": json.loads(row.data)["found_at"]}
    if not is_open:
        plan.updates.append(_Write(data, row, FindingAction.CLOSED))
    elif each["state"] != row.state:
        is_recovering = each["state"] == FindingState.RECOVERING
        plan.updates.append(_Write(data, row, FindingAction.RECOVERING if is_recovering else FindingAction.OPEN_AGAIN))
    elif _differs(json.loads(row.data), data, is_old=now - row.updated_at >= REFRESH):
        plan.updates.append(_Write(data, row))


def _plan_dismissed(plan: _Plan, row: Row[Any], data: dict[str, Any]) -> None:
    """Note once that the job has read that a user dismissed it."""
    if json.loads(row.data)["state"] != FindingState.CLOSED:
        end = {"state": FindingState.CLOSED, "ended_at": row.ended_at.timestamp(), "end_reason": EndReason.DISMISSED}
        plan.updates.append(_Write({**data, **end}, row, FindingAction.DISMISSED, actor_wrote=True))


def _plan_leftover(plan: _Plan, row: Row[Any], now: datetime) -> None:
    """Close a row whose finding the detector does not hold."""
    if _is_dismissed(row):
        _plan_dismissed(plan, row, json.loads(row.data))
    elif row.state != FindingState.CLOSED:
        end = {"state": FindingState.CLOSED, "ended_at": now.timestamp(), "end_reason": EndReason.NOT_FOUND}
        plan.updates.append(_Write({**json.loads(row.data), **end}, row, FindingAction.CLOSED))


def _differs(stored: dict[str, Any], data: dict[str, Any], *, is_old: bool) -> bool:
    """Return whether numbers are worth storing: texts show other ones, or they were stored long ago."""
    return stored != data and (is_old or _rounded(stored) != _rounded(data))


def _rounded(value: Any, key: str = "") -> Any:
    """Return JSON with two digits of each number that is no count and no time."""
    if isinstance(value, dict):
        return {name: _rounded(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.2g}") if isinstance(value, float) and key not in _TIMES else value


def _write(connection: Connection, plan: _Plan, now: datetime) -> FindingChanges:
    new: list[StoredFinding] = []
    changed: list[StoredFinding] = []
    actions: dict[int, FindingAction] = {}
    entries: list[dict[str, Any]] = []
    for each in plan.inserts:
        values = _values(each.data, now)
        key: Any = connection.execute(insert(finding).values(values)).inserted_primary_key
        finding_id: int = key[0]
        new.append(_made(finding_id, values, each.data))
        entries.append(_entry(finding_id, values["found_at"], FindingAction.FOUND))
        actions[finding_id] = FindingAction.FOUND
        if values["state"] == FindingState.CLOSED:
            entries.append(_entry(finding_id, values["ended_at"], FindingAction.CLOSED, _end_sentence(each.data)))
            actions[finding_id] = FindingAction.CLOSED
    for each in plan.updates:
        assert each.row is not None
        values = {**_values(each.data, now), "found_at": each.row.found_at}
        connection.execute(update(finding).where(finding.c.id == each.row.id).values(values))
        changed.append(_made(each.row.id, values, each.data))
        if each.action is not None:
            actions[each.row.id] = each.action
            if not each.actor_wrote:
                is_closed = each.action == FindingAction.CLOSED
                happened_at = values["ended_at"] if is_closed else now
                reason = _end_sentence(each.data) if is_closed else None
                entries.append(_entry(each.row.id, happened_at, each.action, reason))
    if entries:
        connection.execute(insert(finding_event), entries)
    return FindingChanges(new, changed, frozenset(plan.dismissed), actions=actions)


def _values(data: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return the columns of a finding."""
    kind = subject_kind_of(data["dimension"])
    is_task = kind is SubjectKind.TASK
    subject_dag_id = data["unit"].partition("/")[0] if is_task else None
    dag_ids = {subject_dag_id} if is_task else {share["stratum"][0] for share in data["shares"]} | {*data["scope"][:1]}
    ended_at = data["ended_at"]
    return {
        "number": data["number"],
        "subject_key": _subject_key(data),
        "state": data["state"],
        "subject_kind": kind,
        "outcome": data["outcome"],
        "found_at": _time(data["found_at"]),
        "ended_at": None if ended_at is None else _time(ended_at),
        "end_reason": data["end_reason"],
        "updated_at": now,
        "subject_dag_id": subject_dag_id,
        "dag_ids": json.dumps(sorted(dag_ids)),
        "worker_ids": json.dumps(data["worker_ids"]),
        "data": json.dumps(data),
    }


def _made(finding_id: int, values: Mapping[str, Any], data: Mapping[str, Any]) -> StoredFinding:
    return StoredFinding(
        finding_id=finding_id,
        state=FindingState(values["state"]),
        subject_kind=values["subject_kind"],
        outcome=FindingOutcome(values["outcome"]),
        found_at=values["found_at"],
        ended_at=values["ended_at"],
        end_reason=_end_reason(values["end_reason"]),
        data=data,
    )


def _entry(finding_id: int, happened_at: datetime, action: FindingAction, reason: str | None = None) -> dict[str, Any]:
    return {
        "finding_ref": finding_id,
        "happened_at": happened_at,
        "action": action,
        "actor": None,
        "reason": reason,
    }


def _end_reason(reason: str | None) -> EndReason | None:
    return EndReason(reason) if reason in EndReason.values() else None


def _end_sentence(data: Mapping[str, Any]) -> str | None:
    reason = _end_reason(data["end_reason"])
    return reason.sentence if reason is not None else None


def _subject_key(each: Mapping[str, Any]) -> int:
    return finding_key(each["dimension"], each["unit"], each["outcome"])


def _plain(each: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finding as JSON gives it back: with lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(each))
    return plain


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


# --- read ------------------------------------------------------------------------------------------------------------


def list_findings(
    connection: Connection,
    filters: FindingFilter,
    *,
    limit: int,
    offset: int,
    dag_ids: Collection[str] | AllDags,
) -> tuple[list[StoredFinding], int]:
    """Return a page of findings and their number: those that are not closed first, then the latest found first.

    :param dag_ids: the Dags that the reader may see; findings about tasks of other Dags are left out
    :return: the total is counted up to :data:`.limits.MAX_TOTAL`
    """
    conditions = _conditions(connection, filters)
    if not isinstance(dag_ids, AllDags):
        is_readable = in_list(connection, finding.c.subject_dag_id, sorted(dag_ids))
        conditions.append(or_(finding.c.subject_dag_id.is_(None), is_readable))
    matching = select(finding.c.id).where(*conditions).limit(MAX_TOTAL).subquery()
    total: int = connection.execute(select(func.count()).select_from(matching)).scalar_one()
    page = (
        select(*_COLUMNS)
        .where(*conditions)
        .order_by(
            case((finding.c.state == FindingState.CLOSED, 1), else_=0), finding.c.found_at.desc(), finding.c.id.desc()
        )
        .limit(limit)
        .offset(offset)
    )
    return [_finding(row) for row in connection.execute(page)], total


def _conditions(connection: Connection, filters: FindingFilter) -> list[Any]:
    conditions: list[Any] = []
    if filters.state is not None:
        conditions.append(finding.c.state.in_(sorted(filters.state)))
    for name in ("subject_kind", "outcome"):
        value = getattr(filters, name)
        if value is not None:
            conditions.append(finding.c[name] == value)
    for column, value in ((finding.c.worker_ids, filters.worker_id), (finding.c.dag_ids, filters.dag_id)):
        if value is not None:
            conditions.append(_holds(connection, column, value))
    return conditions


def _holds(connection: Connection, column: Any, value: str) -> Any:
    """Match texts of JSON lists that have a string. Neither Dag IDs nor worker IDs have quotation marks."""
    dialect = connection.dialect.name
    find_position = func.strpos if dialect == "postgresql" else func.instr
    # As binary text: MySQL ignores case in others.
    stored = cast(column, LargeBinary) if dialect == "mysql" else column
    return find_position(stored, json.dumps(value)) > 0


def get_finding(connection: Connection, finding_id: int) -> StoredFinding | None:
    """Return a finding, closed or not."""
    row = connection.execute(select(*_COLUMNS).where(finding.c.id == finding_id)).first()
    return None if row is None else _finding(row)


def events(connection: Connection, finding_ids: Collection[int]) -> dict[int, list[FindingEvent]]:
    """Return the history of findings by ID, the latest entry first."""
    found: dict[int, list[FindingEvent]] = {finding_id: [] for finding_id in finding_ids}
    for batch in batches(found, BATCH):
        rows = connection.execute(
            select(finding_event)
            .where(in_list(connection, finding_event.c.finding_ref, batch))
            .order_by(finding_event.c.id.desc())
        )
        for row in rows:
            event = FindingEvent(
                row.happened_at.astimezone(timezone.utc), FindingAction(row.action), row.actor, row.reason
            )
            found[row.finding_ref].append(event)
    return found


def open_worker_names(connection: Connection) -> dict[str, list[int]]:
    """Return the names of the workers that open or recovering findings concern, with the IDs of these findings.

    A finding about a group concerns all workers of the group that are known. One about a task does not count: its
    workers are not the cause, and not everyone may read its Dag.
    """
    found: dict[str, list[int]] = defaultdict(list)
    by_worker: dict[str, list[int]] = defaultdict(list)
    query = select(finding.c.id, finding.c.subject_kind, finding.c.data).where(
        finding.c.state != FindingState.CLOSED, finding.c.subject_kind != SubjectKind.TASK
    )
    for row in connection.execute(query.order_by(finding.c.id)):
        data = json.loads(row.data)
        if row.subject_kind == SubjectKind.WORKER:
            found[data["subject"]].append(row.id)
        else:
            for worker_id in data["worker_ids"]:
                by_worker[worker_id].append(row.id)
    for batch in batches(by_worker, BATCH):
        rows = connection.execute(
            select(worker.c.worker_id, worker.c.name).where(in_list(connection, worker.c.worker_id, batch))
        )
        for row in rows:
            ids = found[row.name]
            ids += [finding_id for finding_id in by_worker[row.worker_id] if finding_id not in ids]
    return dict(found)


def open_groups(connection: Connection, by: str) -> dict[str, list[int]]:
    """Return the groups of workers that open or recovering findings are about, with the IDs of these findings.

    :param by: as for :func:`.workers.counts.group_workers`; findings are about groups by ``hostname`` or a label only
    """
    kind, _, dimension = by.partition(":")
    subject_kind = {"hostname": SubjectKind.HOST, "label": SubjectKind.LABEL}.get(kind)
    if subject_kind is None:
        return {}
    found: dict[str, list[int]] = defaultdict(list)
    query = select(finding.c.id, finding.c.data).where(
        finding.c.state != FindingState.CLOSED, finding.c.subject_kind == subject_kind
    )
    for row in connection.execute(query.order_by(finding.c.id)):
        data = json.loads(row.data)
        if data["dimension"] == (dimension or SubjectKind.HOST):
            found[data["unit"]].append(row.id)
    return dict(found)


def count_open(connection: Connection) -> dict[str, int]:
    """Return the number of findings that are not closed, by outcome; 0 where there is none."""
    rows = connection.execute(
        select(finding.c.outcome, func.count().label("number"))
        .where(finding.c.state != FindingState.CLOSED)
        .group_by(finding.c.outcome)
    )
    return {**dict.fromkeys(FindingOutcome.values(), 0), **{row.outcome: row.number for row in rows}}


def _finding(row: Row[Any]) -> StoredFinding:
    ended_at = utc(row.ended_at)
    # What a user closed is closed, also before the job has read it.
    end = {"state": row.state, "ended_at": ended_at and ended_at.timestamp(), "end_reason": row.end_reason}
    return StoredFinding(
        finding_id=row.id,
        state=FindingState(row.state),
        subject_kind=SubjectKind(row.subject_kind),
        outcome=FindingOutcome(row.outcome),
        found_at=row.found_at.astimezone(timezone.utc),
        ended_at=ended_at,
        end_reason=_end_reason(row.end_reason),
        data={**json.loads(row.data), **end},
    )


def delete_closed_before(connection: Connection, older_than: datetime, *, now: datetime) -> None:
    """Delete findings that ended before a limit, with their history.

    Those that the detector may still hold stay for :data:`KEPT`: :func:`sync` would store them again.
    """
    ended = select(finding.c.id).where(
        finding.c.state == FindingState.CLOSED, finding.c.ended_at < min(older_than, now - KEPT)
    )
    ids = list(connection.execute(ended).scalars())
    for batch in batches(ids, BATCH):
        connection.execute(delete(finding_event).where(in_list(connection, finding_event.c.finding_ref, batch)))
        connection.execute(delete(finding).where(in_list(connection, finding.c.id, batch)))


# --- what is decided -------------------------------------------------------------------------------------------------


def dismiss(connection: Connection, finding_id: int, *, actor: str, reason: str | None, now: datetime) -> bool:
    """Close a finding because a user says that it needs no action.

    The detector forgets its evidence when the job next calls :func:`sync`.

    :param actor: the user's name in Airflow
    :param reason: in the user's words, at most :data:`.limits.REASON_LENGTH` characters
    :param now: by the database's clock
    :return: ``False`` if there is no such finding, or it is closed already
    """
    # Where clocks differ a finding may be younger than the present.
    ended_at = case((finding.c.found_at > now, finding.c.found_at), else_=literal(now, Timestamp()))
    closed = execute_and_count(
        connection,
        update(finding)
        .where(finding.c.id == finding_id, finding.c.state != FindingState.CLOSED)
        .values(state=FindingState.CLOSED, ended_at=ended_at, end_reason=EndReason.DISMISSED),
    )
    if closed:
        add_event(connection, finding_id, FindingAction.DISMISSED, actor=actor, reason=reason, now=now)
    return bool(closed)


def record_decision(
    connection: Connection,
    worker_row: WorkerRow,
    action: FindingAction,
    *,
    actor: str | None,
    reason: str | None,
    now: datetime,
) -> None:
    """Note in the open findings that concern a worker that its availability was changed.

    :param actor: the user's name in Airflow; ``None`` if the analysis changed it
    :param reason: in the words of whoever did
    :param now: by the database's clock
    """
    query = select(finding.c.id, finding.c.subject_kind, finding.c.data).where(finding.c.state != FindingState.CLOSED)
    for row in connection.execute(query.order_by(finding.c.id)).all():
        data = json.loads(row.data)
        is_about_it = row.subject_kind == SubjectKind.WORKER and data["subject"] == worker_row.name
        if is_about_it or worker_row.worker_id in data["worker_ids"]:
            # A group has several workers: say which one.
            named = reason if is_about_it else f"{worker_row.name}: {reason}" if reason else worker_row.name
            add_event(connection, row.id, action, actor=actor, reason=named, now=now)


def add_event(
    connection: Connection,
    finding_id: int,
    action: FindingAction,
    *,
    actor: str | None,
    reason: str | None,
    now: datetime,
) -> None:
    """Add an entry to the history of a finding.

    :param actor: the user's name in Airflow; ``None`` if the analysis acted
    """
    entry = _entry(finding_id, now, action, reason[:REASON_LENGTH] if reason else None)
    connection.execute(insert(finding_event).values(**{**entry, "actor": actor[:250] if actor else None}))
