"""Match worker rows to workers by their names, hosts and sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, case, not_, or_, select

from airflow_worker_insight import config
from airflow_worker_insight.domain.names import SINGLE_LOCAL_NAME, is_named_local, is_same_host
from airflow_worker_insight.domain.states import LOCAL, SOURCE_KINDS
from airflow_worker_insight.store.tables import worker

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy.engine import Connection


def is_host_of(known: Any, hostname: str) -> bool:
    """Return whether a worker is on a host, by what its source and earlier tries say.

    :param known: the row of a worker that its source knows
    """
    host = node_host(known.kind, known.engine_name)
    return is_same_host(known.hostname, hostname) or bool(host and is_same_host(host, hostname))


def node_host(kind: str, engine_name: str | None) -> str:
    """Return the host in a Celery node's name; empty for other workers."""
    return engine_name.rpartition("@")[2] if kind == "celery" and engine_name else ""


def hostname_may_differ_from_source(hostname: str) -> bool:
    """Return whether Airflow's name for a host may be unrelated to the worker sources' name.

    That is so if ``[core] hostname_callable`` returns addresses or is an operator's own function.
    """
    name = hostname.strip().lower()
    return ":" in name or name.partition(".")[0].isdecimal() or config.names_hosts_otherwise()


def is_known_to_source(table: Any) -> Any:
    """Match the workers that their source knows; the others are known from reports only.

    :param table: the table of workers, or an alias of it
    """
    has_heartbeat = and_(table.c.kind.in_(SOURCE_KINDS), table.c.engine_heartbeat_at.is_not(None))
    return and_(table.c.host_only.is_(False), or_(table.c.reported_id.is_(None), has_heartbeat))


def is_known_column() -> Any:
    """Return :func:`is_known_to_source` as a column ``is_known``, 1 or 0, which every database can return."""
    return case((is_known_to_source(worker), 1), else_=0).label("is_known")


def is_report_trusted(known: Any, hostname: str) -> bool:
    """Return whether a report's name and labels for a worker are trusted as its operator's.

    :param known: the row that its source knows
    :param hostname: the host that Airflow recorded for the try
    """
    return is_host_of(known, hostname) or config.placement_trust_reports()


def resolve_operator_name(connection: Connection, known: Any, name: str) -> str:
    """Return the operator's name for a worker, as a report has it.

    If the source has another worker of this name, return the source's name.
    """
    same_name = select(worker.c.id).where(
        worker.c.engine_name == name,
        worker.c.kind == known.kind,
        is_known_to_source(worker),
        worker.c.engine_name != known.engine_name,
    )
    is_taken = name != known.engine_name and connection.execute(same_name.limit(1)).first() is not None
    source_name: str = known.engine_name or known.name
    return source_name if is_taken else name


def name_conditions(kind: str, name: str | None, engine_name: str | None, *, hostname: str) -> list[Any]:
    """Match the instances of a worker by the operator's or the source's name.

    A scheduler's one local worker is named after its host, which its source and its own processes may know by different
    names; Airflow's name for the host is the same for both. If a scheduler has several, only the source's name counts:
    another host may have workers with the same operator's names.
    """
    if is_named_local(kind, engine_name):
        return [worker.c.kind == kind, worker.c.engine_name == engine_name]
    called_names = [candidate for candidate in (name, engine_name) if candidate]
    matches: list[Any] = [worker.c.name.in_(called_names), worker.c.engine_name.in_(called_names)]
    if kind == LOCAL:
        matches.append(worker.c.hostname == hostname)
        return [worker.c.kind == kind, or_(*matches), not_(is_named_local_row(worker))]
    return [worker.c.kind == kind, or_(*matches)]


def is_named_local_row(table: Any) -> Any:
    """Match local workers of schedulers that have several: ``domain.names.is_named_local``.

    :param table: the table of workers, or an alias of it
    """
    is_single = or_(
        table.c.engine_name.is_(None), table.c.engine_name.startswith(f"{SINGLE_LOCAL_NAME}@", autoescape=True)
    )
    return and_(table.c.kind == LOCAL, not_(is_single))
