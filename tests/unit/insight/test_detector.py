"""The detector as a whole: what it counts, what it finds, and that neither order nor restarts change that."""

from __future__ import annotations

import copy
import json
import math
import random
from itertools import groupby, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_worker_insight.insight import state
from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.insight.events import End, Ended, Started, Worker
from airflow_worker_insight.insight.evidence import SCALE, mean_evidence
from airflow_worker_insight.insight.recovery import successes_needed
from airflow_worker_insight.insight.settings import Settings
from airflow_worker_insight.insight.units import FAILED
from tests.unit.insight.streams import (
    DAY,
    START,
    Row,
    any_order,
    events,
    evidence,
    feed,
    in_steps,
    logs,
    mixed,
    recomputed,
    result,
    rows,
    take,
    time_of,
    worker,
)


def start(key: int, name: str = "w0", *, task: str = "t", at: float = 0.0, **more: object) -> Started:
    return Started(key, ("d", task), key, worker(name), START + at, **more)  # type: ignore[arg-type]


def fail(key: int, at: float) -> Ended:
    return Ended(key, End.FAILED, START + at)


def succeed(key: int, at: float) -> Ended:
    return Ended(key, End.SUCCESS, START + at)


EASY = Settings(groups=("zone",), timeline=64, grace=0.0, alpha=0.9)
"""Findings, closed blocks and forgotten tries in a short history."""

sick = lambda name, at: 0.9 if name == "w1" and at > DAY else 0.02  # noqa: E731


# ------------------------------------------------------------------------- evidence


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([60.0, 3600.0, 20_000.0]), st.integers(2, 5))
def test_incremental_evidence_equals_a_recomputation_from_the_history(seed: int, seconds: float, workers: int) -> None:
    history = rows(120, seed=seed, workers=workers, days=2.5, seconds=seconds)
    until = START + 2.5 * DAY
    past = [
        event
        for event in events(history)
        if (event.started_at if isinstance(event, Started) else event.ended_at) <= until
    ]
    detector = feed(past)
    detector.advance_to(until)
    found = logs(detector)
    for name, expected in recomputed(history, until).items():
        assert [log / SCALE for log in found.get(f"{name}@1", [0] * 4)] == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.booleans(), min_size=32, max_size=32))
def test_block_that_one_worker_ran_changes_nothing(failures: list[bool]) -> None:
    detector = Detector(Settings(groups=()))
    for key, failed in enumerate(failures):
        take(detector, start(key, at=key * 60))
        take(detector, fail(key, key * 60 + 30) if failed else succeed(key, key * 60 + 30))
    detector.advance_to(START + DAY / 2)
    assert logs(detector) == {}
    assert not detector.findings()


def test_mean_evidence_of_permuted_workers_stays_at_most_one() -> None:
    # Which worker runs a try is chance here, while the rate of failures changes: 4 workers of 150 histories over three
    # midnights. The mean is 1; the tolerance is about three standard errors at each odds ratio.
    total, number = [0.0] * 4, 0
    for seed in range(150):
        history = rows(96, seed=seed, days=3.5, rate=lambda _name, at: 0.05 + 0.2 * (at > 2 * DAY), seconds=1.0)
        found = logs(feed(events(history)))
        for name in range(4):
            number += 1
            for index in range(4):
                total[index] += math.exp(found.get(f"w{name}@1", [0] * 4)[index] / SCALE)
    means = [each / number for each in total]
    assert all(mean <= limit for mean, limit in zip(means, [1.2, 1.4, 1.6, 1.6], strict=True)), means


# ------------------------------------------------------------------------- order


@settings(max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(0, 1000))
@example(random.Random(1), 91)
@example(random.Random(2), 211)
def test_evidence_does_not_depend_on_the_order_of_ends(rng: random.Random, seed: int) -> None:
    history = rows(100, seed=seed, days=0.5)
    starts = [event for event in events(history) if isinstance(event, Started)]
    ends = [Ended(row.key, row.end, START + 0.6 * DAY) for row in history]
    in_order = feed([*starts, *ends])
    rng.shuffle(ends)
    shuffled = feed([*starts, *ends])
    assert logs(shuffled) == logs(in_order)


def test_block_stays_open_while_a_try_that_runs_can_change_what_it_says() -> None:
    # Two failures of w0 in the block of one task, between which w1 ran nothing but a try of another task.
    starts = [start(key, "w1", at=key) for key in range(30)]
    starts += [start(30, at=30), start(31, "w1", task="other", at=31), start(32, at=32)]
    of_block = [*(succeed(key, 3600) for key in range(30)), fail(30, 3600), fail(32, 3600)]
    detector = feed([*starts, *of_block])
    detector.advance_to(START + 5 * 3600)
    assert set(detector.tries) == set(range(33))
    take(detector, fail(31, 5 * 3600))
    assert logs(detector) == logs(feed([*starts, fail(31, 3600), *of_block]))
    detector.advance_to(START + 6 * 3600)
    assert set(detector.tries) == {31}


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_result_does_not_depend_on_the_order_within_a_step(seed: int) -> None:
    rng = random.Random(seed)
    in_order, shuffled = Detector(EASY), Detector(EASY)
    for step, end in in_steps(mixed(seed, days=3.0), rng):
        for detector, given_events in ((in_order, step), (shuffled, any_order(step, rng))):
            for event in given_events:
                detector.add(event)
            detector.advance_to(end)
    assert result(shuffled) == result(in_order)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_evidence_does_not_depend_on_the_step_in_which_an_end_comes(seed: int) -> None:
    rng = random.Random(seed)
    # Nothing is ever found: the evidence of whose finding ends starts anew.
    config = Settings(groups=("zone",), grace=0.0, alpha=1e-12)
    stream = [event for event in mixed(seed) if time_of(event) < START + 0.95 * DAY]
    in_order, late = Detector(config), Detector(config)
    for detector, given_events in ((in_order, stream), (late, any_order(stream, rng))):
        for event in given_events:
            take(detector, event)
        detector.advance_to(START + 0.99 * DAY)
    assert evidence(late) == evidence(in_order)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_equal_starts_have_one_order(seed: int) -> None:
    rng = random.Random(seed)
    stream = mixed(seed)
    shuffled = sorted(stream, key=lambda event: (time_of(event), isinstance(event, Ended), rng.random()))
    results = []
    for given_events in (stream, shuffled):
        detector = Detector(EASY)
        for time, at_once in groupby(given_events, time_of):
            for event in at_once:
                detector.add(event)
            detector.advance_to(time)
        results.append(result(detector))
    assert results[1] == results[0]


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_history_gives_the_same_in_whatever_steps_and_order(seed: int) -> None:
    rng = random.Random(seed)
    stream = mixed(seed, days=3.0)
    whole, stepwise = Detector(EASY), Detector(EASY)
    whole.step(rng.sample(stream, len(stream)), time_of(stream[-1]) + DAY)
    for step, end in in_steps(stream, rng):
        stepwise.step(rng.sample(step, len(step)), end)
    assert state.dump(stepwise) == state.dump(whole)


@settings(max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(0, 1000))
def test_late_start_takes_its_place_while_its_block_is_open(rng: random.Random, seed: int) -> None:
    history = rows(90, seed=seed, days=0.5, seconds=1.0)
    starts = [event for event in events(history) if isinstance(event, Started)]
    ends = [Ended(row.key, row.end, START + 0.6 * DAY) for row in history]
    in_order = feed([*starts, *ends])
    rng.shuffle(starts)
    late = feed([*starts, *ends])
    assert logs(late) == logs(in_order)


@pytest.mark.parametrize("step", [1, 7, 50])
def test_restored_state_gives_the_same_result(step: int) -> None:
    zones = lambda name: "ab"[int(name[1:]) % 2]  # noqa: E731
    stream = events(rows(500, days=4.0, rate=sick), zones)
    config = Settings(groups=("zone",), timeline=64)
    whole = feed(stream, config)
    parts: dict[str, str] = {}
    detector = Detector(config)
    for begin in range(0, len(stream), step):
        for event in stream[begin : begin + step]:
            take(detector, event)
        for key, text in state.changes(detector).items():
            if text is None:
                parts.pop(key, None)
            else:
                parts[key] = text
        if begin // step % 5 == 0:
            assert parts == state.dump(detector)
            detector = state.restore(json.loads(json.dumps(parts)), config)
    assert state.dump(detector) == state.dump(whole)
    assert [finding.subject for finding in whole.findings()] == ["w1"]


def test_state_of_other_settings_is_refused() -> None:
    stored = state.dump(feed(events(rows(10))))
    with pytest.raises(ValueError, match="Compute it anew from the history"):
        state.restore(stored, Settings(groups=("zone",)))


# ------------------------------------------------------------------------- separation


def test_failures_without_a_good_try_elsewhere_in_between_count_once() -> None:
    together = feed([start(0, "w1"), start(1, at=1), start(2, at=2), fail(1, 9), fail(2, 9)])
    apart = feed([start(0, "w1"), start(1, at=1), start(3, "w1", at=1.5), start(2, at=2), fail(1, 9), fail(2, 9)])
    alone = feed([start(0, "w1"), start(1, at=1), fail(1, 9)])
    assert logs(together)["w0@1"] == logs(alone)["w0@1"]
    assert logs(apart)["w0@1"][0] > logs(alone)["w0@1"][0]


def test_failures_are_not_separate_any_more_once_the_try_in_between_fails() -> None:
    detector = feed([start(0, "w1"), start(1, at=1), start(3, "w1", at=1.5), start(2, at=2), fail(1, 9), fail(2, 9)])
    before = logs(detector)["w0@1"]
    take(detector, fail(3, 10))
    assert logs(detector)["w0@1"][0] < before[0]


# ------------------------------------------------------------------------- what counts


def test_retries_do_not_count() -> None:
    assert not Detector().add(start(1, try_number=2))


def test_first_mapped_instance_of_a_run_on_a_worker_counts_only() -> None:
    detector = Detector(Settings(groups=()))
    added = [
        detector.add(Started(key, ("d", "t"), run, worker(name), START + key, is_mapped=True))
        for key, (run, name) in enumerate([(7, "w0"), (7, "w0"), (7, "w1"), (8, "w0"), (7, "w1")])
    ]
    assert added == [True, False, True, True, False]


def test_repeated_events_count_once() -> None:
    stream = [start(0, "w1"), start(1, at=1), fail(1, 5)]
    detector = feed(stream)
    stored = state.dump(detector)
    assert [detector.add(event) for event in stream] == [False, False, False]
    assert state.dump(detector) == stored


def test_end_of_an_unknown_try_does_not_count() -> None:
    assert not Detector().add(fail(1, 5))


def test_skipped_try_says_nothing() -> None:
    detector = feed([start(0, "w1"), start(1, at=1), start(2, "w1", at=2), fail(1, 5)])
    without = feed([start(0, "w1"), start(1, at=1), fail(1, 5)])
    take(detector, Ended(2, End.EXCLUDED, START + 6))
    assert logs(detector) == logs(without)


# ------------------------------------------------------------------------- findings


def test_worker_that_fails_more_than_its_peers_is_found_once() -> None:
    detector = feed(events(rows(600, days=4.0, rate=sick)))
    [finding] = detector.findings()
    assert (finding.subject, finding.outcome, finding.state, finding.subject_kind) == ("w1", "failed", "open", "worker")
    assert finding.worker_ids == ["w1@1"]
    assert finding.evidence >= finding.needed
    assert START + DAY <= finding.since < finding.found_at < START + 1.5 * DAY


def test_decision_that_is_taken_twice_changes_nothing() -> None:
    detector = Detector(Settings(groups=()))
    for event in events(rows(600, days=4.0, rate=sick)):
        detector.advance_to(time_of(event))
        detector.add(event)
        detector.advance_to(time_of(event))
        if detector.findings():
            break
    decided = state.dump(detector)
    detector.advance_to(detector.now / 1000)
    assert state.dump(detector) == decided


def test_nothing_is_found_in_a_healthy_fleet() -> None:
    assert not feed(events(rows(600, days=4.0))).findings()


def test_finding_never_names_less_evidence_than_it_needs() -> None:
    """Its worker has just had a good try: the evidence is less than when it was found."""
    detector = Detector(Settings(groups=()))
    for event in events(rows(600, days=4.0, rate=sick)):
        detector.advance_to(time_of(event))
        detector.add(event)
        if detector.findings():
            break
    [finding] = detector.findings()
    [unit] = [lane.units[finding.unit] for lane in detector.lanes if detector.lane_of(finding) is lane]
    at = detector.now / 1000
    for key in range(9000, 9010):
        take(detector, Started(key, ("d", "t0"), key, Worker("w1@1", "w1"), at + key - 9000))
        take(detector, Ended(key, End.SUCCESS, at + key - 8999))
        if unit.evidence < finding.needed:
            break
    assert unit.evidence < finding.needed
    assert finding.is_open
    shown = copy.copy(finding)
    detector.refresh(shown)
    assert shown == finding
    assert shown.evidence >= shown.needed


def test_worker_is_well_again_and_may_be_found_again() -> None:
    rate = lambda name, at: 1.0 if name == "w1" and (1 < at / DAY < 1.5 or at / DAY > 3) else 0.02  # noqa: E731
    detector = feed(events(rows(1500, days=5.0, rate=rate)))
    assert [(each.subject, each.state, each.end_reason) for each in detector.findings()] == [
        ("w1", "closed", "well"),
        ("w1", "open", None),
    ]


def test_restart_of_a_worker_begins_its_probation() -> None:
    detector = feed(events(rows(600, days=2.0, rate=sick)))
    [finding] = detector.open_findings()
    again = Worker("w1@2", "w1")
    assert finding.recovery is not None
    for key in range(successes_needed(finding.recovery.peers, finding.recovery.excess)):
        take(detector, Started(9000 + key, ("d", "t0"), key, again, START + 2 * DAY + 60 * key))
        assert finding.probation == "restart"
        assert finding.is_open
        take(detector, Ended(9000 + key, End.SUCCESS, START + 2 * DAY + 60 * key + 30))
    assert finding.end_reason == "well"


def test_what_a_worker_failed_before_its_first_quarantine_does_not_count_against_it() -> None:
    detector = feed(events(rows(600, days=2.0, rate=sick)))
    [finding] = detector.open_findings()
    assert finding.recovery is not None
    assert finding.recovery.failures > 10
    detector.note_quarantine(finding)
    needed = successes_needed(finding.recovery.peers, finding.recovery.excess)
    for key in range(needed):
        # After a probe it is quarantined again.
        detector.note_quarantine(finding)
        assert finding.is_open
        take(detector, Started(9000 + key, ("d", "t0"), key, Worker("w1@1", "w1"), START + 2 * DAY + 60 * key))
        take(detector, Ended(9000 + key, End.SUCCESS, START + 2 * DAY + 60 * key + 30))
    assert (finding.recovery.successes, finding.end_reason) == (needed, "well")


@pytest.mark.parametrize("is_known_before", [True, False])
def test_try_of_an_earlier_instance_does_not_tell_if_the_new_one_is_well(*, is_known_before: bool) -> None:
    detector = feed(events(rows(600, days=2.0, rate=sick)))
    detector.add(start(9000, "w1", task="t0", at=2 * DAY))
    of_both = [Started(9001, ("d", "t0"), 9001, Worker("w1@2", "w1"), START + 2 * DAY), succeed(9000, 2 * DAY + 9)]
    for event in of_both[:: -1 if is_known_before else 1]:
        detector.add(event)
    [finding] = detector.open_findings()
    assert finding.recovery is not None
    assert finding.recovery.successes == 0
    detector.add(succeed(9001, 2 * DAY + 9))
    assert finding.recovery.successes == 1


def test_slow_worker_is_found() -> None:
    rng = random.Random(3)
    history = [
        Row(
            row.key,
            row.started,
            row.started + rng.lognormvariate(4, 0.3) * (3 if row.worker == "w2" else 1),
            row.worker,
            row.task,
            End.SUCCESS,
        )
        for row in rows(1500, days=6.0)
    ]
    [finding] = feed(events(history)).findings()
    assert (finding.subject, finding.outcome) == ("w2", "slow")


def test_worker_that_loses_its_tries_is_found() -> None:
    history = [
        Row(row.key, row.started, row.ended, row.worker, row.task, End.LOST if row.end is End.FAILED else row.end)
        for row in rows(600, days=4.0, rate=sick)
    ]
    found = {(each.subject, each.outcome) for each in feed(events(history)).findings()}
    assert found == {("w1", "lost")}


def test_task_that_kills_workers_is_found() -> None:
    history = [
        Row(
            row.key,
            row.started,
            row.ended,
            row.worker,
            row.task,
            End.LOST if row.task == "t3" and row.key % 2 else End.SUCCESS,
        )
        for row in rows(800, days=4.0, tasks=5)
    ]
    found = {(each.subject_kind, each.subject, each.outcome) for each in feed(events(history)).findings()}
    assert found == {("task", "d.t3", "lost")}


def zone_of(name: str) -> str:
    return "abcd"[int(name[1:]) % 4]


def test_sick_zone_is_named_and_not_its_workers() -> None:
    rate = lambda name, at: 0.4 if zone_of(name) == "b" and at > DAY else 0.02  # noqa: E731
    detector = feed(events(rows(3000, workers=16, days=6.0, rate=rate), zone_of), Settings(groups=("zone",)))
    assert [(each.subject_kind, each.subject) for each in detector.open_findings()] == [("label", "b")]
    [finding] = detector.open_findings()
    assert finding.left_out in {"w1", "w5", "w9", "w13"}
    assert len(finding.worker_ids) == 4


def test_one_sick_worker_is_named_and_not_its_zone() -> None:
    rate = lambda name, at: 0.8 if name == "w5" and at > DAY else 0.02  # noqa: E731
    detector = feed(events(rows(3000, workers=16, days=6.0, rate=rate), zone_of), Settings(groups=("zone",)))
    assert [(each.subject_kind, each.subject) for each in detector.findings()] == [("worker", "w5")]


def test_pods_of_one_try_are_judged_by_their_groups() -> None:
    detector = Detector(Settings(groups=("node",)))
    for row in rows(2500, workers=4, days=5.0, rate=lambda name, at: 0.8 if name == "w1" and at > DAY else 0.02):
        pod = Worker(f"pod-{row.key}", f"pod-{row.key}", {"node": row.worker}, is_single_try=True)
        take(detector, Started(row.key, ("d", row.task), row.key, pod, row.started))
        take(detector, Ended(row.key, row.end, row.started + 1))
    assert [(each.dimension, each.subject) for each in detector.findings()] == [("node", "w1")]


def test_finding_about_one_dag_says_so() -> None:
    detector = Detector(Settings(groups=()))
    rng = random.Random(1)
    for key in range(2000):
        dag, name = rng.choice(["sales", "etl", "ml"]), f"w{rng.randrange(4)}"
        failed = rng.random() < (0.8 if dag == "sales" and name == "w1" else 0.02)
        take(detector, Started(key, (dag, f"t{rng.randrange(2)}"), key, worker(name), START + key * 60))
        take(detector, Ended(key, End.FAILED if failed else End.SUCCESS, START + key * 60 + 30))
    [finding] = detector.open_findings()
    detector.refresh(finding)
    assert finding.scope == ("sales",)


# ------------------------------------------------------------------------- tries that run


def test_tries_that_run_are_those_whose_end_counts() -> None:
    detector = Detector(Settings(groups=()))
    for event in (start(1), start(2), start(3, try_number=2), start(4), fail(2, 5)):
        detector.add(event)
    assert sorted(detector.running_keys()) == [1, 4]
    assert [detector.is_running(key) for key in range(5)] == [False, True, False, False, True]
    restored = state.restore(state.dump(detector), detector.settings)
    assert sorted(restored.running_keys()) == [1, 4]
    assert [key for key in range(5) if restored.add(succeed(key, 9))] == [1, 4]
    assert restored.running_keys() == []


def test_second_start_or_end_under_a_key_is_ignored() -> None:
    detector = feed([start(0, "w1"), start(1, at=1), fail(1, 5)])
    stored = state.dump(detector)
    others = [start(1, "w2", task="other", at=3), succeed(1, 7), succeed(7, 7)]
    assert [detector.add(event) for event in others] == [False, False, False]
    detector.advance_to(START + 5)
    assert state.dump(detector) == stored


# ------------------------------------------------------------------------- bad input


def test_nothing_is_found_without_history() -> None:
    detector = Detector()
    detector.advance_to(START)
    assert detector.findings() == []
    detector.step([], START + 40 * DAY)
    assert detector.findings() == detector.running_keys() == []
    assert state.dump(state.restore(state.dump(detector))) == state.dump(detector)


def test_nothing_is_found_in_a_fleet_of_one_worker() -> None:
    detector = feed(events(rows(400, workers=1, rate=lambda _name, _at: 0.5), zone_of), Settings(groups=("zone",)))
    assert detector.findings() == []
    assert evidence(detector) == {}


def test_times_in_the_future_do_not_move_the_clock() -> None:
    later = 365 * DAY
    stream = events(rows(600, days=4.0, rate=sick))
    detector = Detector(Settings(groups=()))
    detector.step([start(9000, "w0", task="t0", at=later), start(9001, "w2", task="t0", at=later)], START)
    detector.step([fail(9000, later + 1)], START)
    assert detector.now == START * 1000
    detector.step(stream, START + 4 * DAY)
    assert detector.now == (START + 4 * DAY) * 1000
    [finding] = detector.findings()
    assert finding.subject == "w1"
    assert START + DAY < finding.found_at < START + 1.5 * DAY
    assert detector.is_running(9001)


def test_try_that_ends_before_it_starts_has_an_outcome_but_no_duration() -> None:
    detector = Detector(Settings(groups=()))
    detector.step([fail(1, 40), start(1, at=100), start(0, "w1")], START + 200)
    assert "w0@1" in logs(detector)
    assert detector.tries[1].duration is None


def test_clocks_apart_by_minutes_do_not_hide_a_sick_worker() -> None:
    history = [
        Row(row.key, row.started + (int(row.worker[1:]) - 2) * 240, row.ended, row.worker, row.task, row.end)
        for row in rows(600, days=4.0, rate=sick)
    ]
    arrived = sorted(events(history), key=lambda each: each.started_at if isinstance(each, Started) else each.ended_at)
    assert [finding.subject for finding in feed(arrived).findings()] == ["w1"]


def test_ten_thousand_workers_of_one_try_each_need_no_more_evidence() -> None:
    detector = Detector(Settings(groups=()))
    for key in range(10_000):
        take(detector, start(key, f"w{key}", at=key))
        take(detector, fail(key, key + 1) if key % 50 == 0 else succeed(key, key + 1))
    assert detector.findings() == []
    assert detector.population.tested == 0


def test_who_is_not_seen_any_more_is_forgotten() -> None:
    detector = feed(events(rows(200, workers=50, days=1.0)))
    detector.advance_to(START + 40 * DAY)
    assert len(state.dump(detector)) <= 3


def test_try_that_never_ends_does_not_keep_its_block_open_for_ever() -> None:
    detector = Detector(Settings(groups=()))
    for key in range(32):
        take(detector, start(key, f"w{key % 4}", at=key))
        if key:
            take(detector, succeed(key, key + 1))
    detector.advance_to(START + 6 * DAY)
    assert detector.tries
    detector.advance_to(START + 9 * DAY)
    assert not detector.tries


def test_evidence_never_exceeds_its_cap() -> None:
    found = [mean_evidence(values) for values in logs(feed(events(rows(4000, days=20.0, rate=sick)))).values()]
    assert all(each <= 1e12 * 1.001 for each in found)


def test_findings_are_numbered_in_order() -> None:
    rate = lambda name, at: 1.0 if name in {"w1", "w2"} and at > DAY else 0.02  # noqa: E731
    found = feed(events(rows(1500, workers=12, days=4.0, rate=rate))).findings()
    assert {each.subject for each in found} == {"w1", "w2"}
    assert all(earlier.number < later.number for earlier, later in pairwise(found))


@settings(max_examples=15)
@given(st.sets(st.integers(0, 239), max_size=20), st.integers(0, 1000), st.sampled_from([0.9, 3.0, 60.0]))
def test_state_can_be_restored_at_any_point(points: set[int], seed: int, days: float) -> None:
    stream = mixed(seed, days=days)
    restored = Detector(EASY)
    for number, event in enumerate(stream):
        restored.advance_to(time_of(event))
        restored.add(event)
        if number in points:
            restored = state.restore(state.dump(restored), EASY)
        restored.advance_to(time_of(event))
    assert state.dump(restored) == state.dump(feed(stream, EASY))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.9, 3.0, 60.0]))
def test_job_that_begins_anew_from_an_older_state_gets_the_same(seed: int, days: float) -> None:
    rng = random.Random(seed)
    stream = mixed(seed, days=days)
    steps = in_steps(stream, rng)
    stored = state.dump(Detector(EASY))
    while steps:
        job = state.restore(stored, EASY)
        # It takes some steps, then stops: those since it stored its state last are lost.
        taken = rng.randint(1, len(steps))
        kept = taken if len(steps) == 1 else rng.randint(0, taken)
        for number, step in enumerate(steps[:taken], 1):
            job.step(*step)
            if number == kept:
                stored = state.dump(job)
        steps = steps[kept:]
    never_stopped = Detector(EASY)
    never_stopped.step(stream, time_of(stream[-1]) + DAY)
    assert stored == state.dump(never_stopped)


def test_group_that_is_forgotten_leaves_nothing_behind() -> None:
    # A rare task, whose block stays open for longer than its workers are remembered. Zone b goes on, zone a returns.
    config = Settings(groups=("zone",))
    days = [
        *((f"w{key % 4}", key / 12) for key in range(12)),
        ("w2", 20),
        ("w3", 40),
        ("w0", 45),
        ("w1", 45.5),
        ("w2", 47),
    ]
    stream: list[Started | Ended] = []
    for key, (name, day) in enumerate(days):
        by = worker(name, zone="aabb"[int(name[1:])])
        stream += [
            Started(key, ("d", "rare"), key, by, START + day * DAY),
            Ended(key, End.SUCCESS if key % 3 else End.FAILED, START + day * DAY + 60),
        ]
    detector = feed(stream[:28], config)
    assert ("zone", FAILED, "a") not in evidence(detector)
    for event in stream[28:]:
        take(detector, event)
    restored = Detector(config)
    for event in stream:
        take(restored, event)
        restored = state.restore(state.dump(restored), config)
    assert state.dump(restored) == state.dump(detector)


def test_name_is_found_across_its_instances() -> None:
    # Each instance runs too few tries to be found by itself: a new one starts every three hours.
    detector = Detector(Settings(groups=()))
    for row in rows(2000, days=5.0, rate=lambda name, at: 0.5 if name == "w1" and at > DAY else 0.02, seconds=60.0):
        instance = Worker(f"{row.worker}@{row.started // 10_800}", row.worker)
        take(detector, Started(row.key, ("d", row.task), row.key, instance, row.started))
        take(detector, Ended(row.key, row.end, row.started + 1))
    [finding] = detector.open_findings()
    assert (finding.dimension, finding.subject_kind, finding.subject) == ("name", "worker", "w1")
    assert len(finding.worker_ids) > 10
    assert finding.left_out in finding.worker_ids


def test_dag_ids_with_dots_are_told_apart() -> None:
    detector = Detector(Settings(groups=()))
    for key, task in enumerate([("a.b", "c"), ("a", "b.c")]):
        take(detector, Started(key, task, key, worker("w0"), START + key))
    assert len({each.values[-1] for each in detector.tries.values()}) == 2
