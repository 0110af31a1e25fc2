"""What a poll says of an instance: the rules one by one, and then whatever may happen to workers and polls."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.registry.liveness import (
    GONE_BEFORE,
    IDLE,
    LEFT,
    REPLACED,
    TRY_ENDED,
    WAITING,
    Evidence,
    Judgement,
    Reachability,
    is_alive,
    judge,
    judge_by_tries,
    judge_new,
    update_reachability,
)
from airflow_worker_insight.store.leases import SourceRow
from tests.unit.database import NOON, at
from tests.unit.registry.fleets import TIMEOUTS, an_instance, an_observation

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerInstance

REACHED = Reachability(since=at(-86400))
DOWN = Reachability(since=None, error="Celery's broker cannot be reached: Connection refused.")
NOBODY = Evidence()


def verdict(
    instance: WorkerInstance, evidence: Evidence = NOBODY, reached: Reachability = REACHED, *, after: float = 30
) -> Judgement | None:
    return judge(instance, evidence, reached, now=at(after), timeouts=TIMEOUTS)


# --- one poll --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["online", "unresponsive", "lost", "offline", None])
def test_one_that_answers_is_online_whatever_it_was(state: str | None) -> None:
    instance = an_instance(state=state, ended_at=NOON if state in ("lost", "offline") else None)
    assert verdict(instance, Evidence(an_observation())) == Judgement(
        WorkerState.ONLINE, None, ended_at=None, seen=True
    )


def test_a_live_worker_keeps_the_problem_that_its_source_reports() -> None:
    found = verdict(an_instance(), Evidence(an_observation(unavailable_reason="maintenance mode")))
    assert found == Judgement(WorkerState.ONLINE, "maintenance mode", seen=True)


@pytest.mark.parametrize(
    ("after", "state"), [(59, None), (61, WorkerState.UNRESPONSIVE), (170, WorkerState.UNRESPONSIVE)]
)
def test_silence_makes_it_unresponsive(after: float, state: str | None) -> None:
    found = verdict(an_instance(), after=after)
    assert (found and found.state) == state


def test_one_answer_that_got_lost_is_not_the_end() -> None:
    """However long it was not seen: the first poll that misses it can make it unresponsive only."""
    found = verdict(an_instance(state=WorkerState.ONLINE), after=86400)
    assert found is not None
    assert found.state == WorkerState.UNRESPONSIVE


def test_silence_beyond_the_timeout_is_lost_and_ended_when_it_was_last_seen() -> None:
    instance = an_instance(state=WorkerState.UNRESPONSIVE)
    assert verdict(instance, after=180) == verdict(instance, after=61)
    found = verdict(instance, after=181)
    assert found is not None
    assert (found.state, found.ended_at) == (WorkerState.LOST, NOON)
    assert "180 seconds" in (found.reason or "")


def test_a_source_that_is_down_makes_its_workers_unresponsive_with_the_reason() -> None:
    for after in (61, 181, 86400):
        assert verdict(an_instance(state=WorkerState.UNRESPONSIVE), NOBODY, DOWN, after=after) == Judgement(
            WorkerState.UNRESPONSIVE, DOWN.error
        )
    assert verdict(an_instance(), NOBODY, DOWN, after=30) is None


def test_silence_counts_only_from_when_the_source_was_reached() -> None:
    instance = an_instance(state=WorkerState.UNRESPONSIVE)
    found = verdict(instance, NOBODY, Reachability(since=at(3600)), after=3600 + 180)
    assert found is not None
    assert found.state == WorkerState.UNRESPONSIVE
    found = verdict(instance, NOBODY, Reachability(since=at(3600)), after=3600 + 181)
    assert found is not None
    assert found.state == WorkerState.LOST


def test_a_worker_that_shut_down_gracefully_is_offline() -> None:
    shut_down = Evidence(an_observation(has_left=True, heartbeat_at=None))
    assert verdict(an_instance(), shut_down) == Judgement(WorkerState.OFFLINE, LEFT, ended_at=at(30))
    assert verdict(an_instance(state=WorkerState.OFFLINE, ended_at=NOON), shut_down) is None
    assert verdict(an_instance(), shut_down, DOWN) == Judgement(WorkerState.OFFLINE, LEFT, ended_at=at(30))


def test_a_source_that_only_missed_a_worker_reports_no_graceful_shutdown() -> None:
    """Edge calls a worker in maintenance "offline maintenance" when it missed its heartbeats."""
    missed = Evidence(an_observation(has_left=True, heartbeat_at=NOON))
    assert verdict(an_instance(), missed) is None
    found = verdict(an_instance(state=WorkerState.UNRESPONSIVE), missed, after=181)
    assert found is not None
    assert found.state == WorkerState.LOST


def test_a_removed_mailbox_is_a_graceful_shutdown_of_a_worker_that_answered_before() -> None:
    gone = Evidence(lost_mailbox=True)
    assert verdict(an_instance(), gone) == Judgement(WorkerState.OFFLINE, LEFT, ended_at=at(30))
    assert verdict(an_instance(engine_heartbeat_at=None), gone) is None
    # The broker was away since it answered, and may have forgotten all mailboxes.
    assert verdict(an_instance(), gone, Reachability(since=at(10))) is None
    assert verdict(an_instance(), gone, DOWN) is None


def test_a_pause_hides_neither_a_shutdown_before_it_nor_silence_at_both_ends() -> None:
    """As between polls from cron, which lie far apart."""
    after_a_pause = Reachability(since=at(300), since_before_pause=at(-3600))
    assert verdict(an_instance(), Evidence(lost_mailbox=True), after_a_pause, after=300) == Judgement(
        WorkerState.OFFLINE, LEFT, ended_at=at(300)
    )
    missed_once = verdict(an_instance(), NOBODY, after_a_pause, after=300)
    missed_twice = verdict(an_instance(state=WorkerState.UNRESPONSIVE), NOBODY, after_a_pause, after=300)
    assert missed_once is not None
    assert missed_twice is not None
    assert (missed_once.state, missed_twice.state) == (WorkerState.UNRESPONSIVE, WorkerState.LOST)
    assert (
        verdict(an_instance(state=WorkerState.UNRESPONSIVE), NOBODY, Reachability(since=at(300)), after=300)
        == missed_once
    )


def test_a_new_instance_ends_the_old_one() -> None:
    assert verdict(an_instance(), Evidence(is_replaced=True)) == Judgement(WorkerState.OFFLINE, REPLACED, ended_at=NOON)
    found = verdict(an_instance(), Evidence(is_replaced=True, running=2))
    assert found is not None
    assert (found.state, found.ended_at) == (WorkerState.LOST, NOON)
    assert "2" in (found.reason or "")
    assert verdict(an_instance(), Evidence(is_replaced=True, running=2), DOWN) is None


def test_an_instance_gone_before_the_first_poll_gets_no_state() -> None:
    old = an_instance(state=None, engine_heartbeat_at=None)
    assert verdict(old, after=181) == Judgement(None, GONE_BEFORE, ended_at=NOON)
    assert verdict(old, after=61) is None
    assert verdict(old, NOBODY, DOWN, after=86400) is None
    assert verdict(old, Evidence(is_replaced=True)) == Judgement(None, GONE_BEFORE, ended_at=NOON)


def test_what_has_ended_is_left_alone() -> None:
    for state in (WorkerState.LOST, WorkerState.OFFLINE, None):
        assert verdict(an_instance(state=state, ended_at=NOON), after=86400) is None


def test_a_time_that_is_yet_to_come_is_now() -> None:
    assert verdict(an_instance(last_seen_at=at(600))) is None


# --- the first sight -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0, Judgement(WorkerState.ONLINE, None, seen=True)),
        (-59, Judgement(WorkerState.ONLINE, None, seen=True)),
        (600, Judgement(WorkerState.UNRESPONSIVE, WAITING)),
        (-600, Judgement(WorkerState.UNRESPONSIVE, WAITING)),
        (86400, None),
        (-86400, None),
    ],
)
def test_at_first_sight_a_heartbeat_must_be_recent(age: float, expected: Judgement | None) -> None:
    assert judge_new(an_observation(heartbeat_at=at(-age)), now=NOON, timeouts=TIMEOUTS) == expected


@pytest.mark.parametrize("others", [{"has_left": True}, {"is_partial": True}, {"heartbeat_at": None}])
def test_what_says_too_little_makes_no_worker_known(others: dict[str, bool]) -> None:
    assert judge_new(an_observation(**{"heartbeat_at": NOON, **others}), now=NOON, timeouts=TIMEOUTS) is None


# --- known by their tries --------------------------------------------------------------------------------------------


def test_a_pod_ends_with_its_try() -> None:
    pod = an_instance(kind="kubernetes")
    beside = {"now": at(30), "timeouts": TIMEOUTS}
    assert judge_by_tries(pod, NOBODY, REACHED, **beside) == Judgement(WorkerState.OFFLINE, TRY_ENDED, ended_at=at(30))
    seen = Evidence(an_observation(kind="kubernetes", ref=1))
    assert judge_by_tries(pod, seen, REACHED, **beside) == Judgement(WorkerState.ONLINE, None, seen=True)
    assert (
        judge_by_tries(an_instance(kind="kubernetes", state=WorkerState.LOST, ended_at=NOON), NOBODY, REACHED, **beside)
        is None
    )


def test_of_an_unknown_executors_worker_nothing_is_said_while_it_is_idle() -> None:
    beside = {"now": at(30), "timeouts": TIMEOUTS}
    worker = an_instance(kind="MyExecutor")
    assert judge_by_tries(worker, NOBODY, REACHED, **beside) == Judgement(None, IDLE)
    assert judge_by_tries(an_instance(kind="MyExecutor", state=None), NOBODY, REACHED, **beside) is None


def test_a_pod_whose_try_has_no_heartbeat_any_more_is_lost() -> None:
    pod = an_instance(kind="kubernetes", state=WorkerState.UNRESPONSIVE)
    evidence = Evidence(an_observation(kind="kubernetes", ref=1, heartbeat_at=NOON))
    found = judge_by_tries(pod, evidence, REACHED, now=at(181), timeouts=TIMEOUTS)
    assert found is not None
    assert found.state == WorkerState.LOST


# --- since when a source is reached ----------------------------------------------------------------------------------

INTERVAL = timedelta(seconds=30)


def reached(polled_at: datetime | None, before: datetime | None, error: str | None = None) -> Reachability:
    source = SourceRow("celery", NOON, polled_at, before)
    return update_reachability(source, error, now=NOON, interval=INTERVAL)


def test_a_source_is_reached_since_the_first_poll_without_a_pause() -> None:
    assert reached(None, None) == Reachability(NOON)
    assert reached(at(-30), at(-600)) == Reachability(at(-600))
    assert reached(at(-30), at(-600), error="down") == Reachability(None, "down")
    assert reached(at(-30), None) == Reachability(NOON)
    assert reached(at(-3600), at(-7200)) == Reachability(NOON, since_before_pause=at(-7200)), (
        "no process polled for an hour"
    )
    assert reached(at(-3600), None) == Reachability(NOON)
    assert reached(at(7200), at(3600)) == Reachability(NOON), "the clock was set back"


# --- whatever happens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """What is so at one point in time, half a minute after the one before."""

    alive: bool
    heard: bool
    """Whether its answer arrives, if it is alive."""
    reachable: bool
    """Whether the source can be polled."""
    looking: bool
    """Whether any process polls."""


moments = st.lists(st.builds(Moment, st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=60)
skews = st.sampled_from([-600, 0, 600])


@dataclass
class World:
    """One worker, its source, whose clock may be wrong, and the processes that poll it."""

    skew: float = 0
    instance: WorkerInstance = field(default_factory=an_instance)
    source: SourceRow = field(default_factory=lambda: SourceRow("celery", NOON, NOON, NOON))
    time: datetime = NOON
    heartbeat: datetime = NOON
    answered: bool = False

    def pass_by(self, moment: Moment) -> Judgement | None:
        """Let half a minute pass; return what a poll says then, if there is one."""
        self.time += INTERVAL
        if moment.alive and moment.heard:
            self.heartbeat = self.time + timedelta(seconds=self.skew)
        if not moment.looking:
            return None
        error = None if moment.reachable else "down"
        observation = an_observation(heartbeat_at=self.heartbeat) if moment.reachable else None
        self.answered = observation is not None and is_alive(observation, self.instance)
        reached = update_reachability(self.source, error, now=self.time, interval=INTERVAL)
        self.source = replace(self.source, polled_at=self.time, reached_since=reached.since, error=error)
        found = judge(self.instance, Evidence(observation), reached, now=self.time, timeouts=TIMEOUTS)
        if found is not None:
            self.instance = replace(
                self.instance,
                state=found.state,
                ended_at=found.ended_at,
                last_seen_at=self.time if found.seen else self.instance.last_seen_at,
            )
        if observation is not None:
            self.instance = replace(self.instance, engine_heartbeat_at=observation.heartbeat_at)
        return found


@given(moments, skews)
def test_it_comes_online_only_when_seen_alive(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    for moment in happening:
        before = world.instance.state
        world.pass_by(moment)
        if world.instance.state == WorkerState.ONLINE and before != WorkerState.ONLINE:
            assert world.answered


@given(moments, skews)
def test_it_is_lost_only_where_the_source_was_reached_all_the_time(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    reached_for = timedelta(0)
    for moment in happening:
        before = world.instance.state
        world.pass_by(moment)
        # What was so while nobody looked cannot be known.
        was_missed = moment.looking and not moment.reachable
        reached_for = timedelta(0) if was_missed else reached_for + INTERVAL
        if world.instance.state == WorkerState.LOST and before != WorkerState.LOST:
            assert moment.reachable
            assert moment.looking
            assert reached_for >= TIMEOUTS.lost
            assert world.time - world.instance.last_seen_at > TIMEOUTS.lost


@given(moments, skews)
def test_one_that_always_answers_is_never_said_to_be_gone(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    for moment in happening:
        world.pass_by(replace(moment, alive=True, heard=True))
        assert world.instance.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE)
        if moment.looking and moment.reachable:
            assert world.instance.state == WorkerState.ONLINE


@given(moments, skews)
def test_a_dead_worker_is_lost_once_it_is_polled(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    for moment in happening:
        world.pass_by(moment)
    # The first of these polls may find the heartbeat that it had when it died.
    polls = (TIMEOUTS.lost // INTERVAL) + 4
    for _ in range(polls):
        world.pass_by(Moment(alive=False, heard=False, reachable=True, looking=True))
    assert world.instance.state == WorkerState.LOST


@given(moments, skews)
def test_an_hour_without_a_poll_loses_no_worker(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    for moment in happening:
        world.pass_by(replace(moment, alive=True, heard=True))
    for _ in range(120):
        world.pass_by(Moment(alive=True, heard=False, reachable=True, looking=False))
    # Edge's and the schedulers' heartbeats stood still with the API server or the database: the first poll has nothing.
    world.pass_by(Moment(alive=True, heard=False, reachable=True, looking=True))
    world.pass_by(Moment(alive=True, heard=False, reachable=True, looking=True))
    assert world.instance.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE)
    world.pass_by(Moment(alive=True, heard=True, reachable=True, looking=True))
    assert world.instance.state == WorkerState.ONLINE
