"""What a person decided of a worker is kept with why, when and who."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.store import closing, workers
from airflow_worker_insight.store.attribution import host_worker
from airflow_worker_insight.store.availability import NotOneWorker, set_availability
from airflow_worker_insight.store.recording import upsert_worker
from tests.unit.database import NOON, Database, a_worker, at, on_both

if TYPE_CHECKING:
    from airflow_worker_insight.store.workers import WorkerRow


def decide(
    database: Database,
    availability: str,
    note: str | None = None,
    *,
    worker_id: str = "one",
    changed_by: str = "ann",
    second: float = 0,
) -> WorkerRow | None:
    with database.engine.begin() as connection:
        return set_availability(connection, worker_id, availability, note=note, changed_by=changed_by, now=at(second))


def history(database: Database) -> list[tuple[str | None, str | None, str | None]]:
    with database.engine.connect() as connection:
        one = workers.get_worker(connection, "one")
        assert one is not None
        entries = workers.changes(connection, one, limit=10)
    return [(entry.availability, entry.reason, entry.changed_by) for entry in entries]


@pytest.fixture(autouse=True)
def _a_worker(database: Database) -> None:
    with database.engine.begin() as connection:
        upsert_worker(connection, a_worker("one"), now=NOON)
        upsert_worker(connection, a_worker("two"), now=NOON)


@on_both
def test_decisions_are_kept_in_order(database: Database) -> None:
    drained = decide(database, "draining", "disk fails", second=1)
    assert drained is not None
    assert (drained.worker_id, drained.availability) == ("one", "draining")
    decide(database, "quarantined", "it did fail", changed_by="bob", second=2)
    decide(database, "available", second=3)
    assert history(database) == [
        ("available", None, "ann"),
        ("quarantined", "it did fail", "bob"),
        ("draining", "disk fails", "ann"),
    ]
    with database.engine.connect() as connection:
        one, two = (workers.get_worker(connection, name) for name in ("one", "two"))
        assert one is not None
        assert two is not None
        assert (one.availability, two.availability) == ("available", "available")
        assert [entry.changed_at for entry in workers.changes(connection, one, limit=10)] == [at(3), at(2), at(1)]


def test_the_same_again_is_a_change_only_with_another_note(database: Database) -> None:
    decide(database, "draining", "disk")
    decide(database, "draining", "disk")
    decide(database, "draining")
    assert history(database) == [("draining", "disk", "ann")]
    decide(database, "draining", "disk, since Monday", changed_by="bob")
    assert history(database)[0] == ("draining", "disk, since Monday", "bob")


def test_a_worker_that_was_never_decided_of_is_available(database: Database) -> None:
    decide(database, "available")
    assert history(database) == []
    decide(database, "available", "looked at it, it is fine")
    assert history(database) == [("available", "looked at it, it is fine", "ann")]


def test_a_worker_that_nobody_knows(database: Database) -> None:
    assert decide(database, "draining", worker_id="nobody") is None


def test_nothing_is_decided_of_a_host(database: Database) -> None:
    record = host_worker("host-1", "celery")
    with database.engine.begin() as connection:
        closing.ensure_hosts(connection, [record], now=NOON)
    with pytest.raises(NotOneWorker):
        decide(database, "draining", worker_id=record.worker_id)


@on_both
def test_a_long_name_and_a_long_note_are_stored(database: Database) -> None:
    decide(database, "draining", "n" * 500, changed_by="ä" * 300)
    assert history(database) == [("draining", "n" * 500, "ä" * 250)]
