"""``refresh``: poll the workers, once or periodically until stopped."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.analysis.thread import AnalysisThread
from airflow_worker_insight.capture import counters
from airflow_worker_insight.cli.common import require_tables
from airflow_worker_insight.cli.process import SIGNALS, install_handler, print_answer, record_signal, set_resume_hint
from airflow_worker_insight.compat import plugins as airflow_plugins
from airflow_worker_insight.domain.states import UNKNOWN_STATE
from airflow_worker_insight.registry.gauges import emit_gauges
from airflow_worker_insight.registry.poll import INCOMPLETE_POLL, refresh, run_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_worker_insight.registry.poll import PollOutcome, SourceOutcome


def refresh_fleet(args: Any) -> None:
    """Poll the workers; exit with 1 if a worker source could not be polled."""
    require_tables()
    with _without_logged_errors():
        if args.every is not None:
            _poll_periodically(args.every)
            return
        outcome = refresh(only_if_due=False)
        emit_gauges()
    _print_outcome(outcome)
    if any(source.error is not None for source in outcome.sources):
        raise SystemExit(1)


@contextmanager
def _without_logged_errors() -> Iterator[None]:
    """Drop log records of failed polls.

    The command prints every failure itself, and the log would show only the first.
    """

    def is_news(record: logging.LogRecord) -> bool:
        return record.msg != INCOMPLETE_POLL

    logger = logging.getLogger(counters.__name__)
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def _poll_periodically(seconds: int) -> None:
    """Poll every so many seconds until SIGINT or SIGTERM; print errors and continue."""
    set_resume_hint("The poll under way was finished; this process no longer polls the workers.")
    with until_signalled() as stopped, analysis():
        while True:
            try:
                _print_outcome(run_once())
            except Exception as error:  # noqa: BLE001 - the next poll may succeed
                print(f"The workers could not be polled: {error}", file=sys.stderr, flush=True)
            if stopped.wait(seconds):
                return


@contextmanager
def analysis() -> Iterator[None]:
    """Analyse tries meanwhile on Airflow 2.11, where no API server does."""
    if airflow_plugins.serves_fastapi_apps():
        yield
        return
    thread = AnalysisThread()
    thread.start()
    try:
        yield
    finally:
        thread.stop()


@contextmanager
def until_signalled() -> Iterator[Event]:
    """Yield an event that SIGINT or SIGTERM sets, so that a poll under way can finish."""
    stopped = Event()

    def stop(number: int, _frame: object) -> None:
        record_signal(number)
        stopped.set()

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        install_handler(stop)
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_outcome(outcome: PollOutcome) -> None:
    for source in outcome.sources:
        if source.error is not None:
            print(f"{source.name}: {source.error}", file=sys.stderr, flush=True)
        if source.polled:
            print_answer(f"{source.name}: {_summary(source)}")


def _summary(source: SourceOutcome) -> str:
    states = [f"{workers} {state or UNKNOWN_STATE}" for state, workers in sorted(source.states.items(), key=str)]
    notes = [f"{source.registered} new"] if source.registered else []
    notes += [f"{source.changes} changed"] if source.changes else []
    summary = ", ".join(states) or "no workers"
    return f"{summary} ({', '.join(notes)})" if notes else summary
