"""Definitions of the commands: names, help texts, options and the functions that run them."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand, GroupCommand, lazy_load_command

from airflow_worker_insight.cli import arguments as a
from airflow_worker_insight.domain.filters import (
    AttemptFilter,
    FindingFilter,
    PlacementFilter,
    ServiceFilter,
    WorkerFilter,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DESCRIPTION = "Airflow Worker Insight: which worker ran each try of each task"

RECONCILE_HOURS = 24
"""How far back ``reconcile`` goes without options."""

_WORKER_ATTEMPT_FILTERS = ("state", "started_at_gte", "started_at_lte")
_LIST_ARGS = (a.ARG_LIMIT, a.ARG_ALL, ARG_OUTPUT, ARG_VERBOSE)
_ENFORCED = (
    "The decision is stored with its note, author and time. A Celery worker stops consuming its queues at the next "
    "poll, and an Edge worker goes into maintenance mode. An executor of this package gives the worker no new tasks. "
    "With other executors nothing keeps work off it. `workers show` says whether the decision holds."
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
    help="Worker instances, their states and their tries",
    subcommands=(
        ActionCommand(
            name="list",
            help="List workers, latest first",
            func=_command("workers.list_workers"),
            args=(*a.filter_args(WorkerFilter), *_LIST_ARGS),
        ),
        ActionCommand(
            name="show",
            help="Show a worker and its history",
            func=_command("workers.show"),
            args=(a.ARG_WORKER, ARG_OUTPUT, ARG_VERBOSE),
        ),
        ActionCommand(
            name="attempts",
            help="List the tries that a worker ran, latest first",
            func=_command("attempts.list_worker_attempts"),
            args=(a.ARG_WORKER, *a.filter_args(AttemptFilter, *_WORKER_ATTEMPT_FILTERS), *_LIST_ARGS),
        ),
        ActionCommand(
            name="drain",
            help="Mark a worker as draining: no new tasks until it restarts or is released",
            description=f"Marks a worker as draining: no new tasks until it restarts or is released. {_ENFORCED}",
            func=_command("workers.drain"),
            args=(a.ARG_WORKER, a.ARG_NOTE, a.ARG_YES),
        ),
        ActionCommand(
            name="quarantine",
            help="Mark a worker as quarantined: no new tasks, also for its later instances, until it is released",
            description=(
                "Marks a worker as quarantined: no new tasks until it is released. Later instances of its name begin "
                f"in quarantine too. {_ENFORCED}"
            ),
            func=_command("workers.quarantine"),
            args=(a.ARG_WORKER, a.ARG_NOTE),
        ),
        ActionCommand(
            name="release",
            help="Mark a worker as available again",
            func=_command("workers.release"),
            args=(a.ARG_WORKER, a.ARG_NOTE),
        ),
    ),
)

_ATTEMPTS = GroupCommand(
    name="attempts",
    help="Tries and the workers that ran them",
    subcommands=(
        ActionCommand(
            name="list",
            help="List tries, latest start first",
            func=_command("attempts.list_attempts"),
            args=(*a.filter_args(AttemptFilter), *_LIST_ARGS),
        ),
    ),
)

_PLACEMENTS = GroupCommand(
    name="placements",
    help="Waiting and placed tries",
    subcommands=(
        ActionCommand(
            name="list",
            help="List tries that wait for a worker, and placed tries that have not ended, earliest first",
            func=_command("placements.list_placements"),
            args=(*a.filter_args(PlacementFilter), *_LIST_ARGS),
        ),
    ),
)

_FINDINGS = GroupCommand(
    name="findings",
    help="What fails, loses or slows more tries than its peers",
    subcommands=(
        ActionCommand(
            name="list",
            help="List findings: first those that are not closed, then the latest found",
            func=_command("findings.list_findings"),
            args=(*a.filter_args(FindingFilter), *_LIST_ARGS),
        ),
        ActionCommand(
            name="show",
            help="Show a finding and its history",
            func=_command("findings.show"),
            args=(a.ARG_FINDING_ID, ARG_OUTPUT, ARG_VERBOSE),
        ),
        ActionCommand(
            name="dismiss",
            help="Close a finding that needs no action",
            description=(
                "Closes a finding that needs no action and stores the note, the author and the time in its history. "
                "The evidence is forgotten: the subject is found again if later tries speak against it."
            ),
            func=_command("findings.dismiss"),
            args=(a.ARG_FINDING_ID, a.ARG_DISMISS_NOTE),
        ),
    ),
)

_SERVICES = GroupCommand(
    name="services",
    help="Processes of the deployment",
    subcommands=(
        ActionCommand(
            name="list",
            help="List schedulers, triggerers, Dag processors and workers",
            func=_command("services.list_services"),
            args=(*a.filter_args(ServiceFilter), *_LIST_ARGS),
        ),
    ),
)

_INSIGHT = GroupCommand(
    name="insight",
    help="The analysis: is it the worker?",
    subcommands=(
        ActionCommand(
            name="run",
            help="Analyse the recorded tries",
            description=(
                "Reads the tries that have started or ended since the last run and compares each worker's with those "
                "of its peers on the same tasks. An API server of Airflow 3 does this by itself, and so does "
                "`refresh --every` on Airflow 2.11. One process at a time does so; another one has nothing to do. "
                "With --recompute this process takes over and begins anew from the recorded tries of the last 30 "
                "days, those that `backfill` has added included; findings are brought up to date once it is through."
            ),
            func=_command("insight.run"),
            args=(a.ARG_ANALYSE_EVERY, a.ARG_RECOMPUTE),
        ),
    ),
)

_DB = GroupCommand(
    name="db",
    help="Tables of this package",
    subcommands=(
        ActionCommand(
            name="migrate",
            help="Create or upgrade the tables",
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
            help="Downgrade the tables to an earlier version",
            func=_command("db.downgrade_tables"),
            args=(a.ARG_TO_REVISION, a.ARG_SQL_ONLY, a.ARG_YES),
        ),
    ),
)

SUBCOMMANDS: tuple[ActionCommand | GroupCommand, ...] = (
    _WORKERS,
    _ATTEMPTS,
    _PLACEMENTS,
    _FINDINGS,
    _SERVICES,
    _INSIGHT,
    ActionCommand(
        name="refresh",
        help="Poll the workers",
        description=(
            "Polls every worker source and records changes. An API server of Airflow 3 does this by itself; on "
            "Airflow 2.11 run `refresh --every 30` as a service, which also analyses the tries. With --every several "
            "such processes share the work: one of them polls per interval. Without --every the command polls at "
            "once; if cron runs it, set [worker_insight] refresh_interval to the seconds between two runs."
        ),
        func=_command("fleet.refresh_fleet"),
        args=(a.ARG_EVERY,),
    ),
    ActionCommand(
        name="reconcile",
        help="Close recorded tries and add those that no worker reported",
        description=(
            "Goes through finished Dag runs: claims the reports that are still in the xcom table, gives every "
            "recorded try its final state and adds the tries that no worker reported. The scheduler does this by "
            f"itself when a Dag run ends. Without options: the Dag runs of the last {RECONCILE_HOURS} hours."
        ),
        func=_command("history.reconcile"),
        args=(a.ARG_DAG_ID, a.ARG_RUN_ID, a.ARG_SINCE),
    ),
    ActionCommand(
        name="backfill",
        help="Record the tries from before the installation",
        description=(
            "Goes through all finished Dag runs and adds the tries that are not recorded. Safe to run twice; an "
            "interrupted run prints how to continue."
        ),
        func=_command("history.backfill"),
        args=(a.ARG_DAG_ID, a.ARG_SINCE, a.ARG_AFTER),
    ),
    ActionCommand(
        name="prune",
        help="Remove old tries, and workers without tries",
        description=(
            "Removes the tries that ended before a time, then the workers that were last seen before it and ran none "
            "of the remaining tries, with their history. Works in small batches beside a running Airflow; safe to "
            "interrupt and to run again."
        ),
        func=_command("history.prune"),
        args=(a.ARG_OLDER_THAN, a.ARG_DRY_RUN, a.ARG_YES),
    ),
    _DB,
)
