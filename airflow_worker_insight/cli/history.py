"""``reconcile``, ``backfill`` and ``prune``: maintain the recorded attempts."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from airflow_worker_insight.capture.backfill import Selection, count_runs, installed_at, reconcile_selected
from airflow_worker_insight.capture.reconcile import Outcome, claim_all_stored_reports, reconcile_runs
from airflow_worker_insight.cli.common import confirm, require_tables
from airflow_worker_insight.cli.definitions import RECONCILE_HOURS
from airflow_worker_insight.cli.process import RERUN_HINT, print_answer, raise_if_interrupted, set_resume_hint
from airflow_worker_insight.store import retention, session
from airflow_worker_insight.store.airflow_history import find_run
from airflow_worker_insight.store.attempts.close import first_report_at
from airflow_worker_insight.store.retention import Removed
from airflow_worker_insight.ui.formatting import count


def reconcile(args: Any) -> None:
    """Reconcile one Dag run, the runs of one Dag, or the latest runs."""
    require_tables()
    if args.run_id and not args.dag_id:
        raise SystemExit("--run-id needs --dag-id")
    if args.run_id:
        with session.writing(session.COMMAND) as connection:
            run = find_run(connection, args.dag_id, args.run_id)
            if run is None:
                raise SystemExit(f"The Dag {args.dag_id!r} has no Dag run {args.run_id!r}")
            _print_outcome(1, reconcile_runs(connection, [run], installed_at=first_report_at(connection)))
        return
    with session.reading(session.COMMAND) as connection:
        first_report = first_report_at(connection)
    claimed = Outcome(claimed=0 if args.dag_id else claim_all_stored_reports(session.COMMAND))
    since = args.since or datetime.now(timezone.utc) - timedelta(hours=RECONCILE_HOURS)
    _reconcile_selection(Selection(dag_id=args.dag_id, ended_since=since), installed=first_report, initial=claimed)


def backfill(args: Any) -> None:
    """Reconcile all finished Dag runs in Airflow's history."""
    require_tables()
    options = "".join(
        f" {name} {value}"
        for name, value in (
            ("--dag-id", args.dag_id),
            ("--since", args.since.isoformat() if args.since else None),
        )
        if value
    )
    _reconcile_selection(
        Selection(dag_id=args.dag_id, ended_since=args.since, after=args.after),
        installed=installed_at(),
        resume_command=f"airflow-worker-insight backfill{options} --after {{after}}",
    )


def _reconcile_selection(
    selection: Selection, *, installed: datetime | None, resume_command: str = "", initial: Outcome | None = None
) -> None:
    runs_done, total, after = 0, initial or Outcome(), selection.after

    def resume_hint() -> str:
        return (
            f"Progress is kept; continue with: {resume_command.format(after=after)}" if resume_command else RERUN_HINT
        )

    set_resume_hint(resume_hint)
    try:
        with _progress_bar("Dag runs") as bar:
            task = bar.add_task("", total=count_runs(selection))
            for batch in reconcile_selected(selection, installed_at=installed):
                runs_done, total, after = runs_done + batch.runs, total + batch.outcome, batch.last_row_id
                bar.update(task, completed=runs_done)
                raise_if_interrupted()
    except Exception:
        print(f"Failed. {resume_hint()}", file=sys.stderr)
        raise
    finally:
        _print_outcome(runs_done, total)


def _print_outcome(runs: int, outcome: Outcome) -> None:
    run_count = count(runs, "Dag run", "Dag runs")
    tries = f"{count(outcome.added, 'try', 'tries')} added, {outcome.closed:,} closed"
    print_answer(f"{run_count}: {tries}, {count(outcome.claimed, 'report', 'reports')} claimed")


def prune(args: Any) -> None:
    """Remove attempts and workers that are older than a time."""
    require_tables()
    with session.reading(session.COMMAND) as connection:
        preview = retention.preview(connection, args.older_than)
    oldest = f"{preview.oldest_kept:%Y-%m-%d %H:%M:%S} UTC" if preview.oldest_kept is not None else None
    kept = f"The oldest remaining try started at {oldest}." if oldest else "No started try remains."
    if args.dry_run:
        print_answer(f"{_summary(preview.removed)} would be removed. {kept}")
        return
    if preview.removed == Removed():
        print_answer(f"Nothing to remove. {kept}")
        return
    question = f"Remove {_summary(preview.removed)}, older than {args.older_than:%Y-%m-%d %H:%M:%S} UTC?"
    if not args.yes and not confirm(question):
        raise SystemExit("Nothing was removed.")
    _remove(args.older_than, preview.removed)


def _remove(older_than: datetime, expected: Removed) -> None:
    removed = Removed()
    try:
        with _progress_bar("Tries and workers") as bar:
            task = bar.add_task("", total=expected.attempts + expected.workers)
            for batch in retention.prune(older_than, transaction=partial(session.writing, session.COMMAND)):
                removed += batch
                bar.update(task, completed=removed.attempts + removed.workers)
                raise_if_interrupted()
    finally:
        print_answer(f"Removed {_summary(removed)}.")


def _summary(removed: Removed) -> str:
    return (
        f"{count(removed.attempts, 'try', 'tries')}, {count(removed.workers, 'worker', 'workers')}, "
        f"{count(removed.changes, 'entry', 'entries')} of workers' histories and "
        f"{count(removed.statistics, 'row', 'rows')} of statistics"
    )


def _progress_bar(title: str) -> Progress:
    """Return a progress bar on the standard error, apart from the command's answer."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
