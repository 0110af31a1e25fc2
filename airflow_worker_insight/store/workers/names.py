"""Whose row is whose: which names, hosts and engines tell that rows are of one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, not_, or_, select

from airflow_worker_insight import config
from airflow_worker_insight.domain.names import PLAIN_LOCAL, are_one_host, is_named_local
from airflow_worker_insight.domain.states import ENGINE_KINDS, LOCAL
from airflow_worker_insight.store.tables import worker

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy.engine import Connection


def is_host_of(known: Any, hostname: str) -> bool:
    """Tell whether a worker that its engine knows is on a host, by what the engine and earlier tries say.

    :param known: the worker's row
    """
    host = node_host(known.kind, known.engine_name)
    return are_one_host(known.hostname, hostname) or bool(host and are_one_host(host, hostname))


def node_host(kind: str, engine_name: str | None) -> str:
    """Return the host that a Celery node's name tells; empty for other workers."""
    return engine_name.rpartition("@")[2] if kind == "celery" and engine_name else ""


def may_be_unlike_the_engines(hostname: str) -> bool:
    """Tell whether Airflow may call a host by a name that has nothing to do with the one that engines have.

    It does so where ``[core] hostname_callable`` returns addresses, or something of an operator's own.
    """
    name = hostname.strip().lower()
    return ":" in name or name.partition(".")[0].isdecimal() or config.names_hosts_otherwise()


def is_known_to_engine(table: Any) -> Any:
    """Match the workers that their engine has told of; of all others nothing but reports tells.

    :param table: the table of workers, or an alias of it
    """
    has_told = and_(table.c.kind.in_(ENGINE_KINDS), table.c.engine_heartbeat_at.is_not(None))
    return and_(table.c.host_only.is_(False), or_(table.c.reported_id.is_(None), has_told))


def is_operators_word(known: Any, hostname: str) -> bool:
    """Tell whether the name and labels that a report has for a worker are taken for those of its operator.

    :param known: the row that its engine has told of
    :param hostname: the host that Airflow recorded for the try
    """
    return is_host_of(known, hostname) or config.placement_trust_reports()


def operators_name(connection: Connection, known: Any, name: str) -> str:
    """Return what a worker is called by its operator, as a report says: not by another one's name in its engine."""
    others = select(worker.c.id).where(
        worker.c.engine_name == name,
        worker.c.kind == known.kind,
        is_known_to_engine(worker),
        worker.c.engine_name != known.engine_name,
    )
    is_anothers = name != known.engine_name and connection.execute(others.limit(1)).first() is not None
    own: str = known.engine_name or known.name
    return own if is_anothers else name


def are_called(kind: str, name: str | None, engine_name: str | None, *, hostname: str) -> list[Any]:
    """Match the lives of a worker: what is called so by an operator or by its engine.

    A scheduler's one local worker is called after its host, which its engine and its own processes may know by
    different names; the name of the host that Airflow has is the same for both. Of several, what the engine calls them
    says all: another host may have workers of the same names.
    """
    if is_named_local(kind, engine_name):
        return [worker.c.kind == kind, worker.c.engine_name == engine_name]
    called = [one for one in (name, engine_name) if one]
    bears: list[Any] = [worker.c.name.in_(called), worker.c.engine_name.in_(called)]
    if kind == LOCAL:
        bears.append(worker.c.hostname == hostname)
        return [worker.c.kind == kind, or_(*bears), not_(are_named_local(worker))]
    return [worker.c.kind == kind, or_(*bears)]


def are_named_local(table: Any) -> Any:
    """Match the rows of local workers of which a scheduler has several: ``domain.names.is_named_local``.

    :param table: the table of workers, or an alias of it
    """
    is_plain = or_(table.c.engine_name.is_(None), table.c.engine_name.startswith(f"{PLAIN_LOCAL}@", autoescape=True))
    return and_(table.c.kind == LOCAL, not_(is_plain))
