"""How a try ended, and what the detector is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.analysis import feed
from airflow_worker_insight.analysis.outcomes import HOLD, has_ended, may_be_lost, outcome_of, outcome_of_failure
from airflow_worker_insight.domain.attempts import AirflowTry
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.tries import AnalyzedTry, TryWorker
from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.insight.events import End, Ended
from airflow_worker_insight.store.tries import WorkerSight
from tests.unit.database import NOON, at

KEY = TryKey("etl", "run-1", "load", -1, 1)


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("success", "success"),
        ("failed", "failed"),
        ("up_for_retry", "failed"),
        ("skipped", "other"),
        ("removed", "other"),
        ("upstream_failed", "other"),
        *((state, None) for state in ("running", "deferred", "up_for_reschedule", "queued", "scheduled", None)),
    ],
)
def test_outcome_of_a_state(state: str | None, outcome: str | None) -> None:
    airflow_try = AirflowTry(KEY, state=state)
    assert has_ended(airflow_try) == (outcome is not None)
    if outcome is not None:
        assert outcome_of(airflow_try) == outcome
        assert may_be_lost(airflow_try) == (outcome == "failed")


def test_a_try_of_which_airflow_has_no_row_has_ended_somehow() -> None:
    gone = AirflowTry(KEY, is_lost=True)
    assert (has_ended(gone), may_be_lost(gone), outcome_of(gone)) == (True, False, "other")


def sight(seen: float, *, is_gone: bool = False, lost_after: float | None = None) -> WorkerSight:
    return WorkerSight(at(seen), is_gone=is_gone, lost_after=None if lost_after is None else at(lost_after))


@pytest.mark.parametrize(
    ("known", "others", "outcome"),
    [
        (sight(-1), {}, None),
        (sight(0), {}, "failed"),
        (sight(-1, is_gone=True), {}, "failed"),
        (None, {}, "failed"),
        (sight(-1), {"now": NOON + HOLD}, "failed"),
        (sight(-1, is_gone=True, lost_after=-1), {}, "lost"),
        (sight(-1, is_gone=True, lost_after=0), {}, "failed"),
        (sight(-1, is_gone=True, lost_after=-1), {"has_moved": True}, "failed"),
        # By the clock of a host that is ahead it has not ended yet.
        (sight(-5), {"now": at(-10)}, "failed"),
    ],
)
def test_a_failure_is_the_workers_end_only_if_nobody_saw_it_afterwards(
    known: WorkerSight | None, others: dict[str, Any], outcome: str | None
) -> None:
    given = {"now": at(30), "has_moved": False, **others}
    assert outcome_of_failure(NOON, known, **given) == outcome


def a_try(number: int, name: str, *, try_number: int = 1, **others: Any) -> AnalyzedTry:
    known: dict[str, Any] = {"labels": {"zone": "b", "team": "x"}, "image": None, "node": "n1", **others}
    on = TryWorker(1, name, name, "celery", f"host-{name}", **known)
    key = TryKey("etl", f"run-{number}", "load", -1, try_number)
    return AnalyzedTry((1, number, try_number), key, on, at(number))


def test_each_try_has_a_key_of_its_own_within_64_bits() -> None:
    keys = [feed.event_key((1, instance, number)) for instance in (0, 1, 2**63 - 1, -(2**63)) for number in (1, 2, 99)]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
    # That of a first try is the digest of its task instance.
    assert feed.event_key((1, 77, 1)) == 77


def test_the_detector_is_told_what_the_worker_shares_with_others() -> None:
    event = feed.started(a_try(3, "w1", is_single_try=True))
    assert (event.task, event.run, event.is_mapped, event.started_at) == (("etl", "load"), 1, False, at(3).timestamp())
    assert event.worker.groups == {"host": "host-w1", "zone": "b", "node": "n1"}
    assert event.worker.is_single_try


def test_the_rate_of_peers_leaves_the_worker_itself_out() -> None:
    detector = Detector()
    for number in range(12):
        each = a_try(number, f"w{number % 3}")
        detector.add(feed.started(each))
        end = End.FAILED if number % 3 == 0 or number == 1 else End.SUCCESS
        detector.add(Ended(feed.event_key(each.row_key), end, at(number + 0.5).timestamp()))
    rates = feed.PeerRates(detector)
    task = ("etl", "load")
    assert [rates.rate(name, task) for name in ("w0", "w1", "w3")] == [1 / 8, 4 / 8, 5 / 12]
    assert rates.rate("w0", ("etl", "other")) == 0
