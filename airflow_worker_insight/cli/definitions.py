"""Definitions of the commands: names, help texts, options and the functions that run them."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand, GroupCommand, lazy_load_command

from airflow_worker_insight.cli import arguments as a

if TYPE_CHECKING:
    from collections.abc import Callable

DESCRIPTION = "Airflow Worker Insight: which worker ran each try of each task"

RECONCILE_HOURS = 24
"""How far back ``reconcile`` goes without options."""

_LIST_ARGS = (a.ARG_LIMIT, a.ARG_ALL, ARG_OUTPUT, ARG_VERBOSE)
_NOT_ENFORCED = (
    "The decision is kept with its note, its author and its time, and shown. By itself it keeps no task off the "
    "worker: Airflow's own executors do not ask, only an executor of this package does. With any Celery what works is "
    "`airflow celery remove-queue -H NODE -q QUEUE`, until the worker restarts, or SIGTERM, after which it finishes "
    "what it runs."
)


def _command(name: str) -> Callable[..., None]:
    """Return a function that imports and runs a command.

    It runs within :func:`.process.command_process`.

    :param name: the module in this package and its function, such as ``workers.show``
    """
    load = lazy_load_command(f"airflow_worker_insight.cli.{name}")

    @wraps(load)
    def run(args: Any) -> None:
        from airflow_worker_insight.cli.common import exit_on_timeout
        from airflow_worker_insight.cli.process import command_process

        with command_process(), exit_on_timeout():
            load(args)

    return run


_WORKERS = GroupCommand(
    name="workers",
    help="The workers: who they are, who is alive, what they ran",
    subcommands=(
        ActionCommand(
            name="list",
            help="List workers, the latest first",
            func=_command("workers.list_workers"),
            args=(
                a.ARG_WORKER_STATE,
                a.ARG_KIND,
                a.ARG_NAME,
                a.ARG_HOSTNAME,
                a.ARG_LABEL,
                a.ARG_QUEUE,
                a.ARG_AVAILABILITY,
                a.ARG_SEARCH,
                *_LIST_ARGS,
            ),
        ),
        ActionCommand(
            name="show",
            help="Show a worker and its history",
            func=_command("workers.show"),
            args=(a.ARG_WORKER, ARG_OUTPUT, ARG_VERBOSE),
        ),
        ActionCommand(
            name="attempts",
            help="List the tries that a worker ran, the latest first",
            func=_command("attempts.list_worker_attempts"),
            args=(a.ARG_WORKER, a.ARG_TRY_STATE, a.ARG_STARTED_AT_GTE, a.ARG_STARTED_AT_LTE, *_LIST_ARGS),
        ),
        ActionCommand(
            name="drain",
            help="Note that a worker is to get no new tasks until it restarts or is released",
            description=(
                f"Note that a worker is to get no new tasks until it restarts or is released. {_NOT_ENFORCED}"
            ),
            func=_command("workers.drain"),
            args=(a.ARG_WORKER, a.ARG_NOTE, a.ARG_YES),
        ),
        ActionCommand(
            name="quarantine",
            help="Note that a worker, and those of its name after it, are to get no new tasks until it is released",
            description=(
                "Note that a worker is to get no new tasks until it is released. A worker of the same name that "
                f"follows it begins in quarantine too. {_NOT_ENFORCED}"
            ),
            func=_command("workers.quarantine"),
            args=(a.ARG_WORKER, a.ARG_NOTE),
        ),
        ActionCommand(
            name="release",
            help="Note that a worker may get tasks again",
            func=_command("workers.release"),
            args=(a.ARG_WORKER, a.ARG_NOTE),
        ),
    ),
)

_ATTEMPTS = GroupCommand(
    name="attempts",
    help="The tries and who ran them",
    subcommands=(
        ActionCommand(
            name="list",
            help="List tries, the latest start first",
            func=_command("attempts.list_attempts"),
            args=(
                a.ARG_DAG_ID,
                a.ARG_RUN_ID,
                a.ARG_TASK_ID,
                a.ARG_MAP_INDEX,
                a.ARG_TRY_NUMBER,
                a.ARG_WORKER_ID,
                a.ARG_WORKER_NAME,
                a.ARG_HOSTNAME,
                a.ARG_TRY_STATE,
                a.ARG_STARTED_AT_GTE,
                a.ARG_STARTED_AT_LTE,
                *_LIST_ARGS,
            ),
        ),
    ),
)

_PLACEMENTS = GroupCommand(
    name="placements",
    help="What waits for a worker, and what is placed",
    subcommands=(
        ActionCommand(
            name="list",
            help="List tries that wait for a worker, and those that are placed and have not ended, the earliest first",
            func=_command("placements.list_placements"),
            args=(
                a.ARG_PLACEMENT_STATE,
                a.ARG_DAG_ID,
                a.ARG_RUN_ID,
                a.ARG_TASK_ID,
                a.ARG_PLACEMENT_WORKER_ID,
                a.ARG_REASON,
                *_LIST_ARGS,
            ),
        ),
    ),
)

_SERVICES = GroupCommand(
    name="services",
    help="The processes of the deployment",
    subcommands=(
        ActionCommand(
            name="list",
            help="List schedulers, triggerers, Dag processors and workers",
            func=_command("services.list_services"),
            args=(a.ARG_SERVICE_KIND, a.ARG_SERVICE_STATE, *_LIST_ARGS),
        ),
    ),
)

_DB = GroupCommand(
    name="db",
    help="The tables",
    subcommands=(
        ActionCommand(
            name="migrate",
            help="Make the tables or bring them up to date",
            func=_command("db.migrate_tables"),
            args=(a.ARG_SQL_ONLY,),
        ),
        ActionCommand(
            name="check",
            help="Exit with 1 unless the tables are up to date",
            func=_command("db.check_tables"),
            args=(),
        ),
        ActionCommand(
            name="downgrade",
            help="Bring the tables back to an earlier version",
            func=_command("db.downgrade_tables"),
            args=(a.ARG_TO_REVISION, a.ARG_SQL_ONLY, a.ARG_YES),
        ),
    ),
)

SUBCOMMANDS: tuple[ActionCommand | GroupCommand, ...] = (
    _WORKERS,
    _ATTEMPTS,
    _PLACEMENTS,
    _SERVICES,
    ActionCommand(
        name="refresh",
        help="Look at the fleet: who is alive",
        description=(
            "Asks every engine which workers are alive, and writes what has changed. An API server of Airflow 3 does "
            "this by itself; on Airflow 2.11 run `refresh --every 30` as a service. With --every several such "
            "processes share the work: one look per interval, whoever is first. Without it the look is made at once; "
            "from cron, set [worker_insight] refresh_interval to the seconds between two runs."
        ),
        func=_command("fleet.refresh_fleet"),
        args=(a.ARG_EVERY,),
    ),
    ActionCommand(
        name="reconcile",
        help="Close recorded tries and account for those that no worker reported",
        description=(
            "Goes through finished Dag runs: takes reports that wait in the xcom table, gives every recorded try "
            "its final state and adds the tries that no worker reported. The scheduler does this by itself when "
            f"a Dag run ends. Without options: the Dag runs of the last {RECONCILE_HOURS} hours."
        ),
        func=_command("history.reconcile"),
        args=(a.ARG_DAG_ID, a.ARG_RECONCILE_RUN_ID, a.ARG_SINCE),
    ),
    ActionCommand(
        name="backfill",
        help="Build attempts from the history before the installation",
        description=(
            "Goes through all finished Dag runs and adds the tries that are not recorded. Safe to run twice; an "
            "interrupted run prints how to go on."
        ),
        func=_command("history.backfill"),
        args=(a.ARG_DAG_ID, a.ARG_SINCE, a.ARG_AFTER),
    ),
    ActionCommand(
        name="prune",
        help="Remove old tries, and the workers that no try names any more",
        description=(
            "Removes the tries that ended before a time, then the workers that no kept try names and that were last "
            "seen before it, with their history. Works in small batches beside a running Airflow; safe to interrupt "
            "and to run again."
        ),
        func=_command("history.prune"),
        args=(a.ARG_OLDER_THAN, a.ARG_DRY_RUN, a.ARG_YES),
    ),
    _DB,
)
