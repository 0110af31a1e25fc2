"""What is placed, as all schedulers see it, on the databases whose statements differ."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from airflow_worker_insight.capture.reconcile import reconcile_runs
from airflow_worker_insight.domain.filters import AllDags, AttemptFilter, PlacementFilter
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.attempts import running as attempts_running
from airflow_worker_insight.store.attempts.queries import list_attempts
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.retention import prune
from airflow_worker_insight.store.tables import attempt, placement
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import (
    NOON,
    RUN_ENDED,
    Database,
    a_worker,
    add_run,
    add_try,
    at,
    change_try,
    on_both,
    record_start,
)

if TYPE_CHECKING:
    from pytest_mock import MockerFixture
    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import Attempt
    from airflow_worker_insight.domain.keys import TryKey

LINE = "w1@etl-1: least loaded of 2 workers, 0 of 6 slots taken"


def placed(key: TryKey, ref: int | None = None, **others: Any) -> Placement:
    known: dict[str, Any] = {
        "reason": PlacementReason.LEAST_LOADED,
        "detail": LINE,
        "worker_ref": ref,
        "dedicated_queue": ref and f"own.{ref}",
    }
    return Placement(key, **{**known, **others})


def a_live_try(connection: Connection, task_id: str, *, state: str = "queued", **others: Any) -> TryKey:
    run = add_run(connection, run_id=f"run-{task_id}", state="running", ended_at=None)
    return add_try(connection, run, task_id, state=state, ended_at=None, hostname=None, **others)


def attempts(connection: Connection) -> list[Attempt]:
    return list_attempts(connection, AttemptFilter(), dag_ids=AllDags(), limit=9, offset=0)[0]


def stored(connection: Connection) -> list[Any]:
    return list(connection.execute(select(placement).order_by(placement.c.task_id)))


def test_codes_never_move() -> None:
    assert PlacementReason.values() == (
        "least_loaded",
        "round_robin",
        "sticky",
        "sticky_next",
        "elsewhere",
        "again",
        "shared_queue",
        "waits_no_worker",
        "waits_not_available",
        "waits_no_label",
        "waits_full",
        "waits_others_full",
        "waits_bad_wish",
        "slow",
        "waits_no_such_worker",
        "waits_workers_unseen",
    )


@on_both
def test_placements_count_until_they_are_closed(database: Database) -> None:
    with database.engine.begin() as connection:
        keys = [a_live_try(connection, f"task-{n}") for n in range(4)]
        waits = replace(placed(keys[3]), reason=PlacementReason.FULL, detail="waits")
        placements.write(connection, [placed(keys[0], 1), placed(keys[1], 1), placed(keys[2], 2), waits], now=NOON)
        assert placements.count_open(connection) == {1: 2, 2: 1}
        # What waited is placed, by whichever scheduler.
        placements.write(connection, [placed(keys[3], 2)], now=at(1))
        assert placements.count_open(connection) == {1: 2, 2: 2}
        assert placements.dedicated_queues(connection) == {"own.1": {1}, "own.2": {2}}
        assert [one.key for one in placements.open_placements(connection, dedicated_queues={"own.2"})] == [
            keys[2],
            keys[3],
        ]
        placements.close(connection, {keys[0]: NOON, keys[3]: at(1), replace(keys[3], try_number=7): at(1)})
        assert placements.count_open(connection) == {1: 1, 2: 1}
        one = placements.of_task_instance(connection, keys[0])[1]
        assert one == replace(placed(keys[0], 1), placed_at=NOON, is_open=False)


def kept(connection: Connection, key: TryKey) -> dict[int, str]:
    """Return what is kept with the recorded tries of a task instance."""
    rows = connection.execute(select(attempt).where(attempt.c.task_id == key.task_id)).all()
    return {row.try_number: row.placement for row in rows if row.placement is not None}


@on_both
def test_why_is_kept_with_the_try_once_its_run_is_reconciled(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        ref = upsert_worker(connection, a_worker(), now=NOON)
        key = add_try(connection, run)
        late = add_try(connection, run, "late", state="running", ended_at=None)
        record_start(connection, key, a_worker(), try_started_at=at(10), state="running", now=at(10))
        placements.write(
            connection,
            [placed(key, ref, is_open=False, reason=PlacementReason.RETRY_ELSEWHERE), placed(late, ref)],
            now=NOON,
        )
        assert kept(connection, key) == {}
        assert [one.placement for one in attempts(connection)] == [PlacementReason.RETRY_ELSEWHERE]
        reconcile_runs(connection, [run])
        assert kept(connection, key) == {1: PlacementReason.RETRY_ELSEWHERE}
        assert {one.task_id: one.placement for one in attempts(connection)} == {
            key.task_id: PlacementReason.RETRY_ELSEWHERE
        }
        assert [(row.task_id, row.is_open) for row in stored(connection)] == [("extract", False), ("late", True)]
        # No scheduler has heard yet that it has ended.
        change_try(connection, late, state="success", end_date=at(700))
        reconcile_runs(connection, [run])
        assert kept(connection, late) == {1: PlacementReason.LEAST_LOADED}
        assert kept(connection, key) == {1: PlacementReason.RETRY_ELSEWHERE}
        # The sentence stays, for whoever asks later.
        assert [row.is_open for row in stored(connection)] == [False, False]
        assert {one.placement_detail for one in attempts(connection)} == {LINE}
        # But not for a Dag run that comes again under the same name.
        assert (
            placements.task_instance_explanations(connection, key, {})
            == placements.task_instance_explanations(connection, late, {})
            == {}
        )
        reconcile_runs(connection, [run])
        assert {one.placement_detail for one in attempts(connection)} == {LINE}


@on_both
def test_the_workers_that_failed_a_task_instance(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        for name in ("w1", "w2", "w3"):
            upsert_worker(connection, a_worker(name, engine_name=f"{name}@host-1"), now=NOON)
        third = upsert_worker(connection, a_worker("w3", engine_name="w3@host-1"), now=NOON)
        last = add_try(connection, run, try_number=5, state="queued", ended_at=None, hostname=None)
        tries = {}
        for number, (worker, state) in enumerate((("w1", "failed"), ("w2", "success"), (None, "failed")), start=1):
            tries[number] = add_try(connection, run, try_number=number, state=state, history=True)
            if worker:
                record = a_worker(worker, engine_name=f"{worker}@host-1")
                record_start(
                    connection, tries[number], record, try_started_at=at(number), state="running", now=at(number)
                )
        # The third was killed before it could report, and the fourth Airflow has lost.
        placements.write(connection, [placed(tries[3], third, is_open=False)], now=NOON)
        other = add_try(connection, run, "other", state="queued", ended_at=None, hostname=None)
        assert placements.failed_on(connection, [last, other]) == {last: {"w1@host-1", "w3@host-1"}}
        assert placements.failed_on(connection, [other]) == {}


@on_both
def test_a_try_that_moved_counts_against_the_last_of_its_workers(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        last = add_try(connection, run, try_number=2, state="queued", ended_at=None, hostname=None)
        before = add_try(connection, run, try_number=1, state="failed", history=True)
        for moment, name in enumerate(("w1", "w2"), start=1):
            record = a_worker(name, engine_name=f"{name}@host-1")
            record_start(connection, before, record, try_started_at=at(1), state="running", now=at(moment))
        assert placements.failed_on(connection, [last]) == {last: {"w2@host-1"}}


@on_both
def test_details_of_a_try_come_from_airflow(database: Database) -> None:
    with database.engine.begin() as connection:
        labels = {"worker_insight": {"labels": {"zone": "a"}}}
        key = a_live_try(connection, "extract", executor_config=labels, queue="gpu")
        gone = replace(key, try_number=2)
        (one,) = placements.try_details(connection, [key, gone]).values()
        assert (one.key, one.state, one.queue, one.pool) == (key, "queued", "gpu", "default_pool")
        assert one.executor_config == labels


@on_both
def test_slots_of_ended_tries_are_swept(database: Database) -> None:
    with database.engine.begin() as connection:
        worker = a_worker()
        ref = upsert_worker(connection, worker, now=NOON)
        ended = a_live_try(connection, "ended", state="success")
        queued, fresh = a_live_try(connection, "queued"), a_live_try(connection, "fresh", state="scheduled")
        running, elsewhere = (a_live_try(connection, name, state="running") for name in ("running", "elsewhere"))
        for key in (running, elsewhere):
            record_start(connection, key, worker, try_started_at=at(1), state="running", now=at(1))
        old = [placed(key, ref) for key in (ended, queued, running)]
        placements.write(connection, old, now=NOON)
        placements.write(connection, [placed(fresh, ref)], now=at(100))
        swept = placements.sweep(connection, attempts_running.running_on(connection), placed_before=at(60))
        assert (swept.closed, swept.unplaced) == (1, {ref: 1})
        assert {one.key for one in placements.open_placements(connection)} == {queued, running, fresh}


@on_both
def test_a_try_that_is_placed_again_during_a_sweep_keeps_its_slot(database: Database, mocker: MockerFixture) -> None:
    """It was deferred, and another scheduler goes on with it just now."""
    with database.engine.begin() as connection:
        key = a_live_try(connection, "deferred", state="deferred")
        placements.write(connection, [placed(key, 1)], now=NOON)
        ask = placements.airflow_history.tries_of_task_instances

        def goes_on(connection: Any, keys: Any) -> Any:
            found = ask(connection, keys)
            placements.write(connection, [placed(key, 2)], now=at(100))
            return found

        mocker.patch.object(placements.airflow_history, "tries_of_task_instances", goes_on)
        placements.sweep(connection, {}, placed_before=at(60))
        assert placements.count_open(connection) == {2: 1}


@on_both
def test_queued_tries_of_a_worker_are_listed(database: Database) -> None:
    with database.engine.begin() as connection:
        waits, runs = a_live_try(connection, "waits"), a_live_try(connection, "runs", state="running")
        placements.write(connection, [placed(waits, 7), placed(runs, 7)], now=NOON)
        found, total = placements.placed_on(connection, 7, dag_ids={"etl"}, limit=10)
        assert ([one.key for one in found], total) == ([waits], 1)
        assert placements.placed_on(connection, 7, dag_ids={"other"}, limit=10) == ([], 0)


def test_closed_placements_are_deleted_with_old_tries(database: Database) -> None:
    with database.engine.begin() as connection:
        ended, open_ = a_live_try(connection, "ended"), a_live_try(connection, "open")
        placements.write(connection, [placed(ended, 1, is_open=False), placed(open_, 1)], now=NOON)
    list(prune(RUN_ENDED + timedelta(days=1)))
    with database.engine.connect() as connection:
        assert [row.task_id for row in stored(connection)] == ["open"]


@on_both
@pytest.mark.parametrize("number", [0, 1, 1100])
def test_any_number_is_written(database: Database, number: int) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        keys = [add_try(connection, run, state="queued", ended_at=None, hostname=None)] if number else []
        keys += [replace(keys[0], map_index=n) for n in range(1, number)]
        for _ in range(2):
            placements.write(connection, [placed(key, 1) for key in keys], now=NOON)
        assert placements.count_open(connection) == ({1: number} if number else {})
        placements.close(connection, dict.fromkeys(keys, NOON))
        assert placements.count_open(connection) == {}


@on_both
def test_explanations_are_removed_when_they_are_old_or_too_many(database: Database) -> None:
    with database.engine.begin() as connection:
        over, goes_on = add_run(connection), add_run(connection, run_id="goes-on", state="running", ended_at=None)
        ended = [add_try(connection, over, f"task-{n}") for n in range(4)]
        going = add_try(connection, goes_on, "going")
        for day, key in enumerate([*ended, going]):
            one = placed(key, 1, is_open=False, placed_at=NOON + timedelta(days=day))
            placements.write(connection, [one], now=NOON)
        still = a_live_try(connection, "still")
        placements.write(connection, [placed(still, 1, placed_at=NOON)], now=NOON)

        assert placements.prune(connection, now=NOON + placements.RETENTION) == 0
        assert placements.prune(connection, now=NOON + placements.RETENTION + timedelta(days=1.5)) == 2
        assert [row.task_id for row in stored(connection)] == ["going", "still", "task-2", "task-3"]
        # What is open and what belongs to a run that goes on is not touched, however much it is.
        assert placements.prune(connection, now=NOON, max_closed=2) == 1
        assert placements.prune(connection, now=NOON, max_closed=2) == 0
        assert [row.task_id for row in stored(connection)] == ["going", "still", "task-3"]
        assert placements.prune(connection, now=NOON + timedelta(days=99), max_closed=2) == 1
        assert [row.task_id for row in stored(connection)] == ["going", "still"]


# --- lists -----------------------------------------------------------------------------------------------------------


def listed(connection: Connection, dag_ids: Any = None, *, limit: int = 9, offset: int = 0, **filters: Any) -> Any:
    given = AllDags() if dag_ids is None else dag_ids
    some = PlacementFilter(**filters)
    found, total = placements.find(connection, some, dag_ids=given, limit=limit, offset=offset)
    return [one.placement.key.task_id for one in found], total


@on_both
def test_waiting_and_placed_tries_are_listed(database: Database) -> None:
    with database.engine.begin() as connection:
        ref = upsert_worker(connection, a_worker("w1"), now=NOON)
        waits, queued, runs, ended, late, gone = (
            a_live_try(connection, task_id, state=state, queue="heavy")
            for task_id, state in (
                ("waits", "queued"),
                ("queued", "queued"),
                ("runs", "running"),
                ("ended", "success"),
                ("late", "running"),
                ("gone", "queued"),
            )
        )
        some = [
            placed(waits, reason=PlacementReason.FULL, detail="waits: all are full", placed_at=NOON),
            placed(queued, ref, placed_at=at(1)),
            placed(runs, ref, reason=PlacementReason.RETRY_ELSEWHERE, placed_at=at(2)),
            # Airflow knows more than what was written last.
            placed(ended, ref, placed_at=at(3)),
            placed(late, reason=PlacementReason.FULL, detail="waits: all are full", placed_at=at(4)),
            placed(replace(gone, try_number=7), ref, placed_at=at(5)),
        ]
        placements.write(connection, some, now=NOON)

        assert listed(connection) == (["waits", "queued", "runs"], 3)
        assert listed(connection, limit=1, offset=1) == (["queued"], 3)
        assert listed(connection, limit=1, offset=7) == ([], 3)
        assert listed(connection, state="waiting") == (["waits"], 1)
        assert listed(connection, state="placed") == (["queued", "runs"], 2)
        assert listed(connection, try_state="queued") == (["waits", "queued"], 2)
        assert listed(connection, reason=PlacementReason.RETRY_ELSEWHERE) == (["runs"], 1)
        assert listed(connection, worker_id="w1") == (["queued", "runs"], 2)
        assert listed(connection, worker_id="w2") == ([], 0)
        assert listed(connection, dag_id="etl", run_id="run-waits", task_id="waits") == (["waits"], 1)
        assert listed(connection, run_id="run-other") == ([], 0)
        assert listed(connection, {"etl"}) == (["waits", "queued", "runs"], 3)
        assert listed(connection, {"sales"}) == ([], 0)
        assert listed(connection, {"sales"}, dag_id="etl") == ([], 0)
        assert listed(connection, set()) == ([], 0)

        (first, second, _), _ = placements.find(connection, PlacementFilter(), dag_ids=AllDags(), limit=9, offset=0)
        assert (first.state, first.queue, first.try_state, first.worker_id) == ("waiting", "heavy", "queued", None)
        assert (first.placement.sentence, first.placement.placed_at) == ("all are full", NOON)
        assert (second.state, second.worker_id, second.worker_name) == ("placed", "w1", "w1@host-1")
