"""``insight run``: analyse the tries that were recorded, once or periodically until stopped."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.analysis import hook
from airflow_worker_insight.analysis.thread import BUSY_SECONDS, make_job
from airflow_worker_insight.cli.common import require_tables
from airflow_worker_insight.cli.fleet import until_signalled
from airflow_worker_insight.cli.process import print_answer, set_resume_hint

if TYPE_CHECKING:
    from threading import Event

    from airflow_worker_insight.analysis.job import Job, StepResult

FLUSH_SECONDS = 30.0
"""Longest wait for ``on_finding`` at the end."""

OTHER_PROCESS = "Another process runs the analysis; nothing to do here."


def run(args: Any) -> None:
    """Run the analysis until it has read all tries, or with ``--every`` until SIGINT or SIGTERM.

    :raises SystemExit: if it is switched off
    """
    require_tables()
    if not config.insight_enabled():
        raise SystemExit("The analysis is switched off: [worker_insight] insight_enabled or enabled is False.")
    set_resume_hint("What was analysed is stored; the next run goes on from there.")
    job = make_job(interval=args.every or config.insight_interval())
    with until_signalled() as stopped:
        if args.recompute:
            job.recompute()
        try:
            _run(job, args.every, stopped)
        finally:
            job.finish()
            # What was found last is still to be told.
            hook.flush(FLUSH_SECONDS)


def _run(job: Job, every: int | None, stopped: Event) -> None:
    while not stopped.is_set():
        if every is None:
            print_answer(_summary(_catch_up(job, stopped)))
            return
        try:
            result = _catch_up(job, stopped)
        except Exception as error:  # noqa: BLE001 - the next step may succeed
            print(f"The tries could not be analysed: {error}", file=sys.stderr, flush=True)
        else:
            if result.has_lease:
                print_answer(_summary(result))
        stopped.wait(every)


def _catch_up(job: Job, stopped: Event) -> StepResult:
    """Run steps until the analysis is not behind; return the last one with the sums of all."""
    started = ended = 0
    while True:
        result = job.step()
        started, ended = started + result.started, ended + result.ended
        if not result.is_behind or stopped.wait(BUSY_SECONDS):
            return replace(result, started=started, ended=ended)


def _summary(result: StepResult) -> str:
    if not result.has_lease:
        return OTHER_PROCESS
    return f"{result.started} tries started, {result.ended} ended; {result.findings} open findings"
