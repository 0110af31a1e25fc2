"""The command: ``airflow worker-insight …`` (Airflow 3.2 and later) and ``airflow-worker-insight …`` (everywhere).

Both are made from the same definitions. Airflow calls :func:`get_commands` at each start of its own command line, so
this module imports what a command needs only when it runs.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.capture.backfill import Selection
    from airflow_worker_insight.capture.reconcile import Outcome

RECONCILE_HOURS = 24


def _moment(text: str) -> datetime:
    """Read a time as an operator writes it; without an offset it is UTC."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time such as 2026-01-31 or 2026-01-31T08:00:00+00:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _row_id(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number that an interrupted run printed")
    return int(text)


ARG_DAG_ID = Arg(("--dag-id",), help="Only this Dag")
ARG_RUN_ID = Arg(("--run-id",), help="Only this Dag run (with --dag-id)")
ARG_SINCE = Arg(("--since",), type=_moment, help="Only Dag runs that ended at or after this time (UTC)")
ARG_AFTER = Arg(("--after",), type=_row_id, default=0, help="Go on after this row, as an interrupted run printed it")
ARG_TO_REVISION = Arg(
    ("--to-revision",), required=True, help="The migration to go back to, or `base` to remove both tables"
)
ARG_SQL_ONLY = Arg(("--show-sql-only",), action="store_true", help="Print the SQL and change nothing")
ARG_YES = Arg(("-y", "--yes"), action="store_true", help="Do not ask")


def get_commands() -> list[GroupCommand]:
    """Return our command for Airflow's command line."""
    return [
        GroupCommand(
            name="worker-insight",
            help="Which worker ran each try",
            description="Airflow Worker Insight: which worker ran each try of each task",
            subcommands=_subcommands(),
        )
    ]


def _subcommands() -> tuple[ActionCommand | GroupCommand, ...]:
    return (
        ActionCommand(
            name="reconcile",
            help="Close recorded tries and account for those that no worker reported",
            description=(
                "Goes through finished Dag runs: takes reports that wait in the xcom table, gives every recorded try "
                "its final state and adds the tries that no worker reported. The scheduler does this by itself when "
                f"a Dag run ends. Without options: the Dag runs of the last {RECONCILE_HOURS} hours."
            ),
            func=reconcile,
            args=(ARG_DAG_ID, ARG_RUN_ID, ARG_SINCE),
        ),
        ActionCommand(
            name="backfill",
            help="Build attempts from the history before the installation",
            description=(
                "Goes through all finished Dag runs and adds the tries that are not recorded. Safe to run twice; an "
                "interrupted run prints how to go on."
            ),
            func=backfill,
            args=(ARG_DAG_ID, ARG_SINCE, ARG_AFTER),
        ),
        GroupCommand(
            name="db",
            help="The two tables",
            subcommands=(
                ActionCommand(
                    name="migrate",
                    help="Make the tables or bring them up to date",
                    func=db_migrate,
                    args=(ARG_SQL_ONLY,),
                ),
                ActionCommand(
                    name="check", help="Exit with 1 unless the tables are up to date", func=db_check, args=()
                ),
                ActionCommand(
                    name="downgrade",
                    help="Bring the tables back to an earlier version",
                    func=db_downgrade,
                    args=(ARG_TO_REVISION, ARG_SQL_ONLY, ARG_YES),
                ),
            ),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``airflow-worker-insight`` with these arguments, by default the process's own."""
    parser = argparse.ArgumentParser(
        prog="airflow-worker-insight",
        description="Airflow Worker Insight: which worker ran each try of each task",
    )
    _add(parser, _subcommands())
    parsed = parser.parse_args(arguments)
    if not hasattr(parsed, "func"):
        parser.print_help()
        raise SystemExit(2)
    parsed.func(parsed)


def _add(parser: argparse.ArgumentParser, commands: Sequence[ActionCommand | GroupCommand]) -> None:
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        child = subparsers.add_parser(command.name, help=command.help, description=command.description or command.help)
        if isinstance(command, GroupCommand):
            _add(child, tuple(command.subcommands))
        else:
            for arg in command.args:
                arg.add_to_parser(child)
            child.set_defaults(func=command.func)


# --- the commands ----------------------------------------------------------------------------------------------------


def reconcile(args: Any) -> None:
    """Reconcile one Dag run, those of one Dag, or the latest."""
    from airflow_worker_insight import compat
    from airflow_worker_insight.capture.backfill import Selection
    from airflow_worker_insight.capture.reconcile import Outcome, claim_all_waiting, reconcile_runs
    from airflow_worker_insight.store.airflow_tries import find_run
    from airflow_worker_insight.store.closing import first_report_at

    _require_tables()
    if args.run_id and not args.dag_id:
        raise SystemExit("--run-id needs --dag-id")
    if args.run_id:
        with compat.engine().begin() as connection:
            run = find_run(connection, args.dag_id, args.run_id)
            if run is None:
                raise SystemExit(f"There is no Dag run {args.run_id!r} of Dag {args.dag_id!r}")
            _print_outcome(1, reconcile_runs(connection, [run], installed_at=first_report_at(connection)))
        return
    with compat.engine().connect() as connection:
        installed_at = first_report_at(connection)
    claimed = Outcome(claimed=0 if args.dag_id else claim_all_waiting())
    since = args.since or datetime.now(timezone.utc) - timedelta(hours=RECONCILE_HOURS)
    _go_through(Selection(dag_id=args.dag_id, ended_since=since), installed_at=installed_at, before=claimed)


def backfill(args: Any) -> None:
    """Go through all history."""
    from airflow_worker_insight.capture.backfill import Selection, installed_at

    _require_tables()
    options = "".join(
        f" {name} {value}"
        for name, value in (
            ("--dag-id", args.dag_id),
            ("--since", args.since.isoformat() if args.since else None),
        )
        if value
    )
    selection = Selection(dag_id=args.dag_id, ended_since=args.since, after=args.after)
    _go_through(
        selection,
        installed_at=installed_at(),
        again=f"airflow-worker-insight backfill{options} --after {{after}}",
    )


def _go_through(
    selection: Selection, *, installed_at: datetime | None, again: str = "", before: Outcome | None = None
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from airflow_worker_insight.capture.backfill import count_runs, reconcile_selected
    from airflow_worker_insight.capture.reconcile import Outcome

    done, total, after = 0, before or Outcome(), selection.after
    columns = (TextColumn("Dag runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("Dag runs", total=count_runs(selection))
            for step in reconcile_selected(selection, installed_at=installed_at):
                done, total, after = done + step.runs, total + step.outcome, step.last_row_id
                bar.update(task, completed=done)
    except BaseException:
        _print_outcome(done, total)
        if again and after:
            print(f"Interrupted. What is done is kept; go on with: {again.format(after=after)}", file=sys.stderr)
        raise
    _print_outcome(done, total)


def _print_outcome(runs: int, outcome: Outcome) -> None:
    print(
        f"{runs} Dag runs: {outcome.added} tries added, {outcome.closed} closed, "
        f"{outcome.claimed} waiting reports taken"
    )


def db_migrate(args: Any) -> None:
    """Make the tables or bring them up to date."""
    from airflow_worker_insight.store import migrate

    if not args.show_sql_only and _schema() is migrate.Schema.NEWER:
        raise SystemExit(migrate.Schema.NEWER.explanation)
    migrate.upgrade(sql_only=args.show_sql_only)
    if not args.show_sql_only:
        print("The tables of Airflow Worker Insight are up to date.")


def db_check(args: Any) -> None:  # noqa: ARG001
    """Say what the database holds; exit with 1 unless the tables are up to date."""
    from airflow_worker_insight.store import migrate

    schema = _schema()
    print(schema.explanation)
    if schema is not migrate.Schema.READY:
        raise SystemExit(1)


def db_downgrade(args: Any) -> None:
    """Bring the tables back to an earlier version; this can remove recorded tries."""
    from alembic.util import CommandError

    from airflow_worker_insight.store import migrate

    question = f"Go back to {args.to_revision}? What was recorded may be lost. [y/N] "
    if not args.show_sql_only and not args.yes and _ask(question) != "y":
        raise SystemExit("Nothing was changed.")
    try:
        migrate.downgrade(args.to_revision, sql_only=args.show_sql_only)
    except CommandError as error:
        raise SystemExit(str(error)) from None


def _ask(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:
        return ""


def _schema() -> Any:
    from airflow_worker_insight import compat
    from airflow_worker_insight.store import migrate

    with compat.engine().connect() as connection:
        return migrate.check(connection)


def _require_tables() -> None:
    from airflow_worker_insight.store import migrate

    schema = _schema()
    if schema is not migrate.Schema.READY:
        raise SystemExit(schema.explanation)
