"""What a look says of a life: the rules one by one, and then whatever may happen to workers and those who look."""

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
    Reached,
    Verdict,
    first_verdict,
    gives_sign_of_life,
    judge,
    judge_by_tries,
    reach,
)
from airflow_worker_insight.store.leases import SourceRow
from tests.unit.database import NOON, at
from tests.unit.registry.fleets import TIMEOUTS, a_life, a_sighting

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerInstance

REACHED = Reached(since=at(-86400))
DOWN = Reached(since=None, error="Celery's broker cannot be reached: Connection refused.")
NOBODY = Evidence()


def verdict(
    life: WorkerInstance, evidence: Evidence = NOBODY, reached: Reached = REACHED, *, after: float = 30
) -> Verdict | None:
    return judge(life, evidence, reached, now=at(after), timeouts=TIMEOUTS)


# --- one look --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["online", "unresponsive", "lost", "offline", None])
def test_one_that_answers_is_online_whatever_it_was(state: str | None) -> None:
    life = a_life(state=state, ended_at=NOON if state in ("lost", "offline") else None)
    assert verdict(life, Evidence(a_sighting())) == Verdict(WorkerState.ONLINE, None, ended_at=None, seen=True)


def test_what_is_wrong_with_one_that_lives_is_said() -> None:
    found = verdict(a_life(), Evidence(a_sighting(unavailable_reason="maintenance mode")))
    assert found == Verdict(WorkerState.ONLINE, "maintenance mode", seen=True)


@pytest.mark.parametrize(
    ("after", "state"), [(59, None), (61, WorkerState.UNRESPONSIVE), (170, WorkerState.UNRESPONSIVE)]
)
def test_silence_makes_it_unresponsive(after: float, state: str | None) -> None:
    found = verdict(a_life(), after=after)
    assert (found and found.state) == state


def test_one_answer_that_got_lost_is_not_the_end() -> None:
    """However long nobody has seen it: the first look that misses it can make it unresponsive only."""
    found = verdict(a_life(state=WorkerState.ONLINE), after=86400)
    assert found is not None
    assert found.state == WorkerState.UNRESPONSIVE


def test_silence_beyond_the_timeout_is_lost_and_ended_when_it_was_last_seen() -> None:
    life = a_life(state=WorkerState.UNRESPONSIVE)
    assert verdict(life, after=180) == verdict(life, after=61)
    found = verdict(life, after=181)
    assert found is not None
    assert (found.state, found.ended_at) == (WorkerState.LOST, NOON)
    assert "180 seconds" in (found.reason or "")


def test_an_engine_that_is_down_makes_its_workers_unresponsive_with_the_reason() -> None:
    for after in (61, 181, 86400):
        assert verdict(a_life(state=WorkerState.UNRESPONSIVE), NOBODY, DOWN, after=after) == Verdict(
            WorkerState.UNRESPONSIVE, DOWN.error
        )
    assert verdict(a_life(), NOBODY, DOWN, after=30) is None


def test_silence_counts_only_from_when_the_engine_was_reached() -> None:
    life = a_life(state=WorkerState.UNRESPONSIVE)
    found = verdict(life, NOBODY, Reached(since=at(3600)), after=3600 + 180)
    assert found is not None
    assert found.state == WorkerState.UNRESPONSIVE
    found = verdict(life, NOBODY, Reached(since=at(3600)), after=3600 + 181)
    assert found is not None
    assert found.state == WorkerState.LOST


def test_who_said_goodbye_is_offline() -> None:
    goodbye = Evidence(a_sighting(has_left=True, heartbeat_at=None))
    assert verdict(a_life(), goodbye) == Verdict(WorkerState.OFFLINE, LEFT, ended_at=at(30))
    assert verdict(a_life(state=WorkerState.OFFLINE, ended_at=NOON), goodbye) is None
    assert verdict(a_life(), goodbye, DOWN) == Verdict(WorkerState.OFFLINE, LEFT, ended_at=at(30))


def test_an_engine_that_only_missed_it_says_no_goodbye() -> None:
    """Edge calls a worker in maintenance "offline maintenance" when it missed its heartbeats."""
    missed = Evidence(a_sighting(has_left=True, heartbeat_at=NOON))
    assert verdict(a_life(), missed) is None
    found = verdict(a_life(state=WorkerState.UNRESPONSIVE), missed, after=181)
    assert found is not None
    assert found.state == WorkerState.LOST


def test_a_mailbox_that_is_gone_is_a_goodbye_of_one_that_answered_before() -> None:
    gone = Evidence(lost_mailbox=True)
    assert verdict(a_life(), gone) == Verdict(WorkerState.OFFLINE, LEFT, ended_at=at(30))
    assert verdict(a_life(engine_heartbeat_at=None), gone) is None
    # The broker was away since it answered, and may have forgotten all mailboxes.
    assert verdict(a_life(), gone, Reached(since=at(10))) is None
    assert verdict(a_life(), gone, DOWN) is None


def test_a_pause_hides_neither_who_left_before_it_nor_who_was_silent_at_both_ends() -> None:
    """As between looks from cron, which lie far apart."""
    after_a_pause = Reached(since=at(300), before=at(-3600))
    assert verdict(a_life(), Evidence(lost_mailbox=True), after_a_pause, after=300) == Verdict(
        WorkerState.OFFLINE, LEFT, ended_at=at(300)
    )
    missed_once = verdict(a_life(), NOBODY, after_a_pause, after=300)
    missed_twice = verdict(a_life(state=WorkerState.UNRESPONSIVE), NOBODY, after_a_pause, after=300)
    assert missed_once is not None
    assert missed_twice is not None
    assert (missed_once.state, missed_twice.state) == (WorkerState.UNRESPONSIVE, WorkerState.LOST)
    assert verdict(a_life(state=WorkerState.UNRESPONSIVE), NOBODY, Reached(since=at(300)), after=300) == missed_once


def test_a_new_life_ends_the_old_one() -> None:
    assert verdict(a_life(), Evidence(is_replaced=True)) == Verdict(WorkerState.OFFLINE, REPLACED, ended_at=NOON)
    found = verdict(a_life(), Evidence(is_replaced=True, running=2))
    assert found is not None
    assert (found.state, found.ended_at) == (WorkerState.LOST, NOON)
    assert "2" in (found.reason or "")
    assert verdict(a_life(), Evidence(is_replaced=True, running=2), DOWN) is None


def test_of_what_was_gone_before_anybody_looked_nothing_is_claimed() -> None:
    old = a_life(state=None, engine_heartbeat_at=None)
    assert verdict(old, after=181) == Verdict(None, GONE_BEFORE, ended_at=NOON)
    assert verdict(old, after=61) is None
    assert verdict(old, NOBODY, DOWN, after=86400) is None
    assert verdict(old, Evidence(is_replaced=True)) == Verdict(None, GONE_BEFORE, ended_at=NOON)


def test_what_has_ended_is_left_alone() -> None:
    for state in (WorkerState.LOST, WorkerState.OFFLINE, None):
        assert verdict(a_life(state=state, ended_at=NOON), after=86400) is None


def test_a_time_that_is_yet_to_come_is_now() -> None:
    assert verdict(a_life(last_seen_at=at(600))) is None


# --- the first sight -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0, Verdict(WorkerState.ONLINE, None, seen=True)),
        (-59, Verdict(WorkerState.ONLINE, None, seen=True)),
        (600, Verdict(WorkerState.UNRESPONSIVE, WAITING)),
        (-600, Verdict(WorkerState.UNRESPONSIVE, WAITING)),
        (86400, None),
        (-86400, None),
    ],
)
def test_at_first_sight_a_heartbeat_must_be_recent(age: float, expected: Verdict | None) -> None:
    assert first_verdict(a_sighting(heartbeat_at=at(-age)), now=NOON, timeouts=TIMEOUTS) == expected


@pytest.mark.parametrize("others", [{"has_left": True}, {"is_partial": True}, {"heartbeat_at": None}])
def test_what_says_too_little_makes_no_worker_known(others: dict[str, bool]) -> None:
    assert first_verdict(a_sighting(**{"heartbeat_at": NOON, **others}), now=NOON, timeouts=TIMEOUTS) is None


# --- known by their tries --------------------------------------------------------------------------------------------


def test_a_pod_ends_with_its_try() -> None:
    pod = a_life(kind="kubernetes")
    beside = {"now": at(30), "timeouts": TIMEOUTS}
    assert judge_by_tries(pod, NOBODY, REACHED, **beside) == Verdict(WorkerState.OFFLINE, TRY_ENDED, ended_at=at(30))
    sighted = Evidence(a_sighting(kind="kubernetes", ref=1))
    assert judge_by_tries(pod, sighted, REACHED, **beside) == Verdict(WorkerState.ONLINE, None, seen=True)
    assert (
        judge_by_tries(a_life(kind="kubernetes", state=WorkerState.LOST, ended_at=NOON), NOBODY, REACHED, **beside)
        is None
    )


def test_of_an_unknown_executors_worker_nothing_is_said_while_it_is_idle() -> None:
    beside = {"now": at(30), "timeouts": TIMEOUTS}
    worker = a_life(kind="MyExecutor")
    assert judge_by_tries(worker, NOBODY, REACHED, **beside) == Verdict(None, IDLE)
    assert judge_by_tries(a_life(kind="MyExecutor", state=None), NOBODY, REACHED, **beside) is None


def test_a_pod_whose_try_has_no_heartbeat_any_more_is_lost() -> None:
    pod = a_life(kind="kubernetes", state=WorkerState.UNRESPONSIVE)
    evidence = Evidence(a_sighting(kind="kubernetes", ref=1, heartbeat_at=NOON))
    found = judge_by_tries(pod, evidence, REACHED, now=at(181), timeouts=TIMEOUTS)
    assert found is not None
    assert found.state == WorkerState.LOST


# --- since when an engine is reached ---------------------------------------------------------------------------------

INTERVAL = timedelta(seconds=30)


def reached(polled_at: datetime | None, before: datetime | None, error: str | None = None) -> Reached:
    engine = SourceRow("celery", NOON, polled_at, before)
    return reach(engine, error, now=NOON, interval=INTERVAL)


def test_an_engine_is_reached_from_the_first_look_without_a_break() -> None:
    assert reached(None, None) == Reached(NOON)
    assert reached(at(-30), at(-600)) == Reached(at(-600))
    assert reached(at(-30), at(-600), error="down") == Reached(None, "down")
    assert reached(at(-30), None) == Reached(NOON)
    assert reached(at(-3600), at(-7200)) == Reached(NOON, before=at(-7200)), "nobody looked for an hour"
    assert reached(at(-3600), None) == Reached(NOON)
    assert reached(at(7200), at(3600)) == Reached(NOON), "the clock was set back"


# --- whatever happens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """What is so at one point in time, half a minute after the one before."""

    alive: bool
    heard: bool
    """Whether its answer arrives, if it lives."""
    reachable: bool
    """Whether the engine can be asked."""
    looking: bool
    """Whether anybody looks at all."""


moments = st.lists(st.builds(Moment, st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=60)
skews = st.sampled_from([-600, 0, 600])


@dataclass
class World:
    """One worker, its engine, whose clock may be wrong, and those who look at it."""

    skew: float = 0
    life: WorkerInstance = field(default_factory=a_life)
    engine: SourceRow = field(default_factory=lambda: SourceRow("celery", NOON, NOON, NOON))
    time: datetime = NOON
    heartbeat: datetime = NOON
    answered: bool = False

    def pass_by(self, moment: Moment) -> Verdict | None:
        """Let half a minute pass; return what a look says then, if there is one."""
        self.time += INTERVAL
        if moment.alive and moment.heard:
            self.heartbeat = self.time + timedelta(seconds=self.skew)
        if not moment.looking:
            return None
        error = None if moment.reachable else "down"
        sighting = a_sighting(heartbeat_at=self.heartbeat) if moment.reachable else None
        self.answered = sighting is not None and gives_sign_of_life(sighting, self.life)
        reached = reach(self.engine, error, now=self.time, interval=INTERVAL)
        self.engine = replace(self.engine, polled_at=self.time, reached_since=reached.since, error=error)
        found = judge(self.life, Evidence(sighting), reached, now=self.time, timeouts=TIMEOUTS)
        if found is not None:
            self.life = replace(
                self.life,
                state=found.state,
                ended_at=found.ended_at,
                last_seen_at=self.time if found.seen else self.life.last_seen_at,
            )
        if sighting is not None:
            self.life = replace(self.life, engine_heartbeat_at=sighting.heartbeat_at)
        return found


@given(moments, skews)
def test_it_comes_online_only_with_a_sign_of_life(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    for moment in happening:
        before = world.life.state
        world.pass_by(moment)
        if world.life.state == WorkerState.ONLINE and before != WorkerState.ONLINE:
            assert world.answered


@given(moments, skews)
def test_it_is_lost_only_where_the_engine_was_reached_all_the_time(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    reached_for = timedelta(0)
    for moment in happening:
        before = world.life.state
        world.pass_by(moment)
        # What was so while nobody looked cannot be known.
        was_missed = moment.looking and not moment.reachable
        reached_for = timedelta(0) if was_missed else reached_for + INTERVAL
        if world.life.state == WorkerState.LOST and before != WorkerState.LOST:
            assert moment.reachable
            assert moment.looking
            assert reached_for >= TIMEOUTS.lost
            assert world.time - world.life.last_seen_at > TIMEOUTS.lost


@given(moments, skews)
def test_one_that_always_answers_is_never_said_to_be_gone(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    for moment in happening:
        world.pass_by(replace(moment, alive=True, heard=True))
        assert world.life.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE)
        if moment.looking and moment.reachable:
            assert world.life.state == WorkerState.ONLINE


@given(moments, skews)
def test_one_that_died_is_found_to_be_lost_once_it_is_looked_at(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    for moment in happening:
        world.pass_by(moment)
    # The first of these looks may find the heartbeat that it had when it died.
    looks = (TIMEOUTS.lost // INTERVAL) + 4
    for _ in range(looks):
        world.pass_by(Moment(alive=False, heard=False, reachable=True, looking=True))
    assert world.life.state == WorkerState.LOST


@given(moments, skews)
def test_an_hour_without_anybody_looking_costs_no_worker(happening: list[Moment], skew: float) -> None:
    world = World(skew)
    for moment in happening:
        world.pass_by(replace(moment, alive=True, heard=True))
    for _ in range(120):
        world.pass_by(Moment(alive=True, heard=False, reachable=True, looking=False))
    # Edge's and the schedulers' heartbeats stood still with the API server or the database: the first look has nothing.
    world.pass_by(Moment(alive=True, heard=False, reachable=True, looking=True))
    world.pass_by(Moment(alive=True, heard=False, reachable=True, looking=True))
    assert world.life.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE)
    world.pass_by(Moment(alive=True, heard=True, reachable=True, looking=True))
    assert world.life.state == WorkerState.ONLINE
