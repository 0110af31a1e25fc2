"""``db …``: create, check and downgrade the tables."""

from __future__ import annotations

from typing import Any

from airflow_worker_insight.cli.common import confirm, schema
from airflow_worker_insight.cli.process import answer, print_answer, set_resume_hint
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.migrate import IncompleteTablesError, RevisionError, Schema


def migrate_tables(args: Any) -> None:
    """Create or upgrade the tables."""
    if not args.show_sql_only and schema() is Schema.NEWER:
        raise SystemExit(Schema.NEWER.explanation)
    set_resume_hint("Run the same command again: it repeats the unfinished migration.")
    try:
        migrate.upgrade(sql_only=args.show_sql_only, printed_to=answer())
    except IncompleteTablesError as error:
        raise SystemExit(str(error)) from None
    if not args.show_sql_only:
        print_answer("The tables of Airflow Worker Insight are up to date.")


def check_tables(args: Any) -> None:  # noqa: ARG001 - the signature of all commands
    """Print the state of the tables; exit with 1 unless they are up to date."""
    tables = schema()
    print_answer(tables.explanation)
    if tables is not Schema.READY:
        raise SystemExit(1)


def downgrade_tables(args: Any) -> None:
    """Downgrade the tables to an earlier revision; this can remove recorded attempts."""
    consequence = "are lost" if args.to_revision == "base" else "may be lost"
    question = f"Downgrade to {args.to_revision}? Recorded tries {consequence}."
    if not args.show_sql_only and not args.yes and not confirm(question):
        raise SystemExit("Nothing was changed.")
    try:
        migrate.downgrade(args.to_revision, sql_only=args.show_sql_only, printed_to=answer())
    except RevisionError as error:
        raise SystemExit(str(error)) from None
