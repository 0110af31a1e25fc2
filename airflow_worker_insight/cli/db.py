"""``db …``: the tables."""

from __future__ import annotations

from typing import Any

from airflow_worker_insight.cli.common import confirmed, schema
from airflow_worker_insight.cli.process import answer, go_on_with, say
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.migrate import IncompleteTablesError, RevisionError, Schema


def migrate_tables(args: Any) -> None:
    """Make the tables or bring them up to date."""
    if not args.show_sql_only and schema() is Schema.NEWER:
        raise SystemExit(Schema.NEWER.explanation)
    go_on_with("Run the same command again: a migration that was not finished is run again.")
    try:
        migrate.upgrade(sql_only=args.show_sql_only, printed_to=answer())
    except IncompleteTablesError as error:
        raise SystemExit(str(error)) from None
    if not args.show_sql_only:
        say("The tables of Airflow Worker Insight are up to date.")


def check_tables(args: Any) -> None:  # noqa: ARG001
    """Say what the database holds; exit with 1 unless the tables are up to date."""
    found = schema()
    say(found.explanation)
    if found is not Schema.READY:
        raise SystemExit(1)


def downgrade_tables(args: Any) -> None:
    """Bring the tables back to an earlier version; this can remove recorded tries."""
    lost = "is lost" if args.to_revision == "base" else "may be lost"
    question = f"Go back to {args.to_revision}? What was recorded {lost}."
    if not args.show_sql_only and not args.yes and not confirmed(question):
        raise SystemExit("Nothing was changed.")
    try:
        migrate.downgrade(args.to_revision, sql_only=args.show_sql_only, printed_to=answer())
    except RevisionError as error:
        raise SystemExit(str(error)) from None
