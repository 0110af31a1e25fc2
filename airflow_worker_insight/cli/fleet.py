"""``refresh``: look at the fleet, once or for as long as nobody stops it."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.capture import counters
from airflow_worker_insight.cli.common import require_tables
from airflow_worker_insight.cli.process import SIGNALS, go_on_with, listen, note_signal, say
from airflow_worker_insight.domain.states import UNKNOWN_STATE
from airflow_worker_insight.registry.gauges import report_fleet
from airflow_worker_insight.registry.poll import refresh, run_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_worker_insight.registry.poll import PollOutcome, SourceOutcome


def refresh_fleet(args: Any) -> None:
    """Look at the fleet; exit with 1 where an engine could not be asked."""
    require_tables()
    with _errors_said_once():
        if args.every is not None:
            _go_on(args.every)
            return
        outcome = refresh(only_if_due=False)
        report_fleet()
    _print_outcome(outcome)
    if any(engine.error is not None for engine in outcome.engines):
        raise SystemExit(1)


@contextmanager
def _errors_said_once() -> Iterator[None]:
    """Keep out of the log that an engine cannot be asked: it is printed here, each time and not only the first."""

    def is_news(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Airflow Worker Insight cannot see all workers")

    log = logging.getLogger(counters.__name__)
    log.addFilter(is_news)
    try:
        yield
    finally:
        log.removeFilter(is_news)


def _go_on(seconds: int) -> None:
    """Look again and again until a signal comes; what goes wrong is said, and tried again."""
    go_on_with("The round that had begun was finished; nobody looks at the workers from here any more.")
    with _until_signalled() as stopped:
        while True:
            try:
                _print_outcome(run_once())
            except Exception as error:  # noqa: BLE001
                print(f"The fleet could not be looked at: {error}", file=sys.stderr, flush=True)
            if stopped.wait(seconds):
                return


@contextmanager
def _until_signalled() -> Iterator[Event]:
    """Yield what is set by SIGINT or SIGTERM, so that a round that has begun comes to its end."""
    stopped = Event()

    def stop(number: int, _frame: object) -> None:
        note_signal(number)
        stopped.set()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        listen(stop)
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_outcome(outcome: PollOutcome) -> None:
    for engine in outcome.engines:
        if engine.error is not None:
            print(f"{engine.name}: {engine.error}", file=sys.stderr, flush=True)
        if engine.looked:
            say(f"{engine.name}: {_in_words(engine)}")


def _in_words(engine: SourceOutcome) -> str:
    states = [f"{number} {state or UNKNOWN_STATE}" for state, number in sorted(engine.states.items(), key=str)]
    news = [f"{engine.registered} new"] if engine.registered else []
    news += [f"{engine.changes} changed"] if engine.changes else []
    found = ", ".join(states) or "no workers"
    return f"{found} ({', '.join(news)})" if news else found
