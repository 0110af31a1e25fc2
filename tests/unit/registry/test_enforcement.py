"""Decisions on workers are enforced after each poll, and no worker loses its queues, whatever fails in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from airflow_worker_insight.domain.enforcement import NOTHING_REMEMBERED, Answer, Enforcement
from airflow_worker_insight.registry.enforcement import enforce
from airflow_worker_insight.store import enforcement as store
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.insight_tables import enforcement
from airflow_worker_insight.store.tables import worker
from tests.unit.database import on_both
from tests.unit.registry.polling import FakeSource, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from airflow_worker_insight.domain.enforcement import Request
    from airflow_worker_insight.registry.observations import Remember
    from tests.unit.database import Database
    from tests.unit.registry.polling import Time

W1 = "w1@host-1"


@dataclass
class EnforcingFake(FakeSource):
    """Workers that stop consuming their queues and start again as they are told."""

    keeps_requests = False
    consumed: dict[str, set[str]] = field(default_factory=lambda: {W1: {"default", "etl"}})
    before_answer: Callable[[], object] | None = None
    """Called once, when the workers have done what was asked and before their answers arrive."""

    def enforce(self, request: Request, remember: Remember) -> Mapping[str, Answer]:
        here = {name: queues for name, queues in self.consumed.items() if name in self.workers}
        held = {name: tuple(here[name]) for name in request.hold & here.keys()}
        if any(held.values()):
            remember(held)
        for name in held:
            here[name].clear()
        for name, queues in request.release.items():
            here.get(name, set()).update(queues)
        for name, queues in request.released.items():
            if not here.get(name):
                here.get(name, set()).update(queues)
        call, self.before_answer = self.before_answer, None
        if call is not None:
            call()
        return {
            name: Answer(bool(queues), tuple(sorted(queues)), error=None if queues else NOTHING_REMEMBERED)
            if name not in request.hold
            else Answer(bool(queues), fetched=0)
            for name, queues in here.items()
        }


def a_source(sources: list[Any], **others: Any) -> EnforcingFake:
    source = EnforcingFake(workers={W1: {}}, **others)
    sources.append(source)
    poll()
    return source


def decide(database: Database, availability: str, name: str = W1) -> None:
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.engine_name == name).values(availability=availability))


def known(database: Database) -> Enforcement:
    with database.engine.connect() as connection:
        (ref,) = connection.execute(select(worker.c.id).where(worker.c.engine_name == W1)).scalars()
        return store.find(connection, [ref])[ref]


def now(database: Database) -> datetime:
    with database.engine.connect() as connection:
        return database_now(connection)


@on_both
def test_what_was_decided_holds_after_the_next_poll_and_ends_with_the_release(
    database: Database, sources: list[Any]
) -> None:
    source = a_source(sources)
    decide(database, "quarantined")
    poll()
    assert source.consumed[W1] == set()
    assert set(known(database).queues) == {"default", "etl"}
    assert known(database).in_effect_at is not None
    decide(database, "available")
    poll()
    assert source.consumed[W1] == {"default", "etl"}
    assert (known(database).in_effect_at, known(database).error) == (None, None)
    assert known(database).released_at is not None
    (row,) = database.workers()
    assert row["queues"] == ["default", "etl"]


@on_both
def test_released_worker_that_loses_its_queues_with_its_broker_gets_them_back(
    database: Database, sources: list[Any]
) -> None:
    source = a_source(sources)
    for availability in ("quarantined", "available"):
        decide(database, availability)
        poll()
    source.consumed[W1].clear()
    poll()
    assert source.consumed[W1] == {"default", "etl"}


@on_both
def test_queues_are_remembered_though_the_answer_is_lost(database: Database, sources: list[Any]) -> None:
    source = a_source(sources)
    decide(database, "quarantined")

    def fail() -> None:
        raise RuntimeError("the broker did not answer within 20 seconds")

    source.before_answer = fail
    poll()
    assert source.consumed[W1] == set(), "the worker did what it was told"
    assert known(database).error == "the broker did not answer within 20 seconds"
    poll()
    assert known(database).error is None
    decide(database, "available")
    poll()
    assert source.consumed[W1] == {"default", "etl"}


@on_both
def test_two_processes_that_enforce_at_the_same_time_forget_nothing(database: Database, sources: list[Any]) -> None:
    source = a_source(sources)
    decide(database, "quarantined")
    source.before_answer = lambda: enforce(source, poll_error=None, clock=lambda: now(database))
    enforce(source, poll_error=None, clock=lambda: now(database))
    assert set(known(database).queues) == {"default", "etl"}


@on_both
def test_held_worker_that_was_lost_for_a_while_gets_its_queues_back(
    database: Database, sources: list[Any], time: Time
) -> None:
    source = a_source(sources)
    source.workers["w2@host-1"] = {"pid": 7}
    source.consumed["w2@host-1"] = {"default"}
    poll()
    decide(database, "quarantined")
    poll()
    facts = source.workers.pop(W1)
    for _ in range(12):
        time.passes(30)
        poll()
    (row, _) = database.workers()
    assert row["ended_at"] is not None
    decide(database, "quarantined", "w2@host-1")
    decide(database, "available")
    poll()
    source.workers[W1] = facts
    for _ in range(2):
        time.passes(30)
        poll()
    assert source.consumed[W1] == {"default", "etl"}


@on_both
def test_release_of_a_worker_whose_queues_are_unknown_never_looks_done(database: Database, sources: list[Any]) -> None:
    source = a_source(sources)
    source.consumed[W1].clear()
    for availability in ("quarantined", "available"):
        decide(database, availability)
        poll()
    assert (known(database).released_at, known(database).error) == (None, NOTHING_REMEMBERED)


@on_both
def test_what_was_done_goes_with_the_row_of_its_worker(database: Database, sources: list[Any]) -> None:
    a_source(sources)
    decide(database, "quarantined")
    poll()
    with database.engine.begin() as connection:
        refs = connection.execute(select(worker.c.id)).scalars().all()
        store.delete_of(connection, refs)
        assert connection.execute(select(enforcement)).all() == []
