"""A thread that calls a function again and again, without a clock: intervals here are nothing or for ever."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.periodic_thread import PeriodicThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOR_EVER = 3600.0


@pytest.fixture
def start() -> Iterator[Callable[..., PeriodicThread]]:
    """Return a function that starts a thread, which the test need not stop."""
    threads: list[PeriodicThread] = []

    def start_thread(run_once: Callable[[], float | None], *, interval: float = 0.0) -> PeriodicThread:
        thread = PeriodicThread(run_once, name="periodic", purpose="count", interval=interval)
        threads.append(thread)
        thread.start()
        return thread

    yield start_thread
    for thread in threads:
        thread.stop()


class Calls:
    """A function that a test waits for, and what each of its calls does."""

    def __init__(self, *results: float | Exception | None, enough: int) -> None:
        self._results = list(results)
        self._enough = enough
        self.threads: list[threading.Thread] = []
        self.are_enough = threading.Event()

    def __call__(self) -> float | None:
        self.threads.append(threading.current_thread())
        result = self._results.pop(0) if self._results else None
        if len(self.threads) >= self._enough:
            self.are_enough.set()
        if isinstance(result, Exception):
            raise result
        return result


def test_it_calls_again_in_one_daemon_thread_until_stopped(start: Callable[..., PeriodicThread]) -> None:
    calls = Calls(enough=3)
    thread = start(calls)
    thread.start()
    assert calls.are_enough.wait(30)
    thread.stop()
    (worker,) = set(calls.threads)
    assert worker.daemon
    assert not worker.is_alive()


def test_a_call_says_when_the_next_one_is_due(start: Callable[..., PeriodicThread]) -> None:
    calls = Calls(0.0, 0.0, FOR_EVER, enough=3)
    thread = start(calls, interval=FOR_EVER)
    assert calls.are_enough.wait(30)
    thread.stop()
    assert len(calls.threads) == 3


def test_stopping_ends_the_wait_between_two_calls(start: Callable[..., PeriodicThread]) -> None:
    calls = Calls(enough=1)
    thread = start(calls, interval=FOR_EVER)
    assert calls.are_enough.wait(30)
    thread.stop()
    assert not calls.threads[0].is_alive()


def test_each_type_of_error_is_logged_once_and_does_not_end_it(
    start: Callable[..., PeriodicThread], caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(OSError("away"), OSError("still away"), ValueError("odd"), enough=4)
    start(calls)
    assert calls.are_enough.wait(30)
    assert [record.getMessage() for record in caplog.records] == [
        "Airflow Worker Insight cannot count now and will try again: OSError: away",
        "Airflow Worker Insight cannot count now and will try again: ValueError: odd",
    ]


def test_a_call_that_hangs_is_abandoned() -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        goes_on.wait()

    thread = PeriodicThread(hang, name="hanging", purpose="count", interval=0.0, stop_timeout=0.01)
    thread.start()
    assert hangs.wait(30)
    thread.stop()
    (abandoned,) = [other for other in threading.enumerate() if other.name == "hanging"]
    assert abandoned.daemon
    goes_on.set()
    abandoned.join(30)
    assert not abandoned.is_alive()


def test_one_that_never_started_stops() -> None:
    thread = PeriodicThread(lambda: None, name="periodic", purpose="count", interval=0.0)
    thread.stop()
    assert not thread.is_started
