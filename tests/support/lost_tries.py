"""
Tell a try that Airflow itself lost from one that failed for another reason.

On a machine that is busy enough Airflow's own limits end tries: its client waits for the API server in vain, a Dag is
not imported in time. A test whose numbers of tries matter may run its Dag again then, but only where Airflow's logs
prove it, and what was repeated is printed and counted at the end of the session.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tests.support.processes import tail

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.deployment import Component

REPEATS = 2
"""How often a run is repeated before its test fails."""

#: What the session repeated and why; see ``tests/integration/conftest.py``.
repeated: list[str] = []

_REASONS = (
    # The name of the error and, in the same entry of the log, that it is Airflow's client that raised it.
    (
        "Airflow's client waited in vain for the API server",
        re.compile(
            r"(httpx\.|API_SERVER_ERROR.*exception_type.{1,6}|raised unexpected: )(Read|Connect|Write|Pool)Timeout\b"
            r"|\"exc_type\": ?\"(Read|Connect|Write|Pool)Timeout\".*(httpx|airflow/sdk/api/client)"
        ),
    ),
    ("the Dag was not imported in time", re.compile(r"DagBag import timeout for ")),
)
#: In the log of a try: a line of ours in a traceback, or a message of ours.
_OURS = re.compile(r"airflow_worker_insight[/.]")
_ERROR = re.compile(r"\"level\": ?\"(error|critical)\"|\b(ERROR|CRITICAL)\b|^\w*(Error|Exception|Timeout)\b|^Traceback")


class Airflow(Protocol):
    """The part of a deployment that this module uses."""

    logs_folder: Path
    components: dict[str, Component]

    def tries(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return every try of a run."""

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the current try of each task of a run."""

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None) -> str:
        """Start a run."""

    def wait_run(self, dag_id: str, run_id: str, timeout: float) -> str:
        """Wait until a run ends and return its state."""


@dataclass(frozen=True)
class FailedTry:
    """A try that did not succeed, with its log."""

    task_id: str
    map_index: int
    try_number: int
    state: str | None
    log: str
    #: How Airflow lost it, if its logs prove that.
    lost: str | None

    def __str__(self) -> str:
        """Return a heading, the first error, and the end of the log."""
        return (
            f"----- {self.task_id}[{self.map_index}], try {self.try_number}: {self.state}; "
            f"{f'Airflow lost it: {self.lost}' if self.lost else 'Airflow says nothing of having lost it'}\n"
            f"first error: {_first_error(self.log)}\n" + "\n".join(self.log.splitlines()[-30:])
        )


class UnexpectedEndError(AssertionError):
    """A run did not end as expected; the message holds the failed tries and their logs."""


def failed_tries(airflow: Airflow, dag_id: str, run_id: str) -> list[FailedTry]:
    """Return the tries of a run that failed, in Airflow's order."""
    outputs = {name: component.output() for name, component in airflow.components.items() if component.log.exists()}
    # A path, as tracebacks have it: our name with dots is in configurations too.
    ours = any("airflow_worker_insight/" in text for text in outputs.values())
    return [
        _examine(airflow, row, dag_id, run_id, outputs, ours=ours)
        for row in airflow.tries(dag_id, run_id)
        if row["state"] not in {"success", "skipped", "upstream_failed", "removed", "running", "queued"}
    ]


def explain(airflow: Airflow, dag_id: str, run_id: str) -> str:
    """Describe the failed tries of a run, with their logs and each service's first error."""
    parts = [str(failed) for failed in failed_tries(airflow, dag_id, run_id)]
    for name, component in airflow.components.items():
        if error := _first_error(component.output()):
            parts.append(f"----- {name}: first error: {error}\n{tail(component.log, 15)}")
    return "\n".join(parts)


def run_to_end(
    airflow: Airflow,
    dag_id: str,
    *,
    expect: str = "success",
    tries: int | None = None,
    conf: Mapping[str, object] | None = None,
    timeout: float = 180,
) -> str:
    """
    Run a Dag until it ends as expected, after ``tries`` tries if given; return the run ID.

    The run is repeated only if Airflow's logs prove that Airflow lost each of the tries that were too many, or that
    made it fail.
    """
    for repeat in range(REPEATS + 1):
        run_id = airflow.trigger(dag_id, conf)
        state = airflow.wait_run(dag_id, run_id, timeout)
        had = len(airflow.tries(dag_id, run_id))
        if state == expect and tries in (None, had):
            return run_id
        failed = failed_tries(airflow, dag_id, run_id)
        lost = [failed_try for failed_try in failed if failed_try.lost]
        if state == expect:
            explained = tries == had - len(lost)
        else:
            explained = _lost_is_all_that_failed(airflow.task_instances(dag_id, run_id), lost)
        if repeat == REPEATS or not lost or not explained:
            wanted = expect if tries is None else f"{expect} after {tries} tries"
            raise UnexpectedEndError(
                f"{dag_id}/{run_id} is {state} after {had} tries, not {wanted}\n{explain(airflow, dag_id, run_id)}"
            )
        reasons = ", ".join(
            f"{failed_try.task_id} (try {failed_try.try_number}): {failed_try.lost}" for failed_try in lost
        )
        repeated.append(f"{dag_id}/{run_id}: {reasons}")
        sys.stderr.write(f"REPEATED {repeated[-1]}\n{explain(airflow, dag_id, run_id)}\n")
    raise AssertionError("unreachable")


def _lost_is_all_that_failed(last_tries: list[dict[str, Any]], lost: list[FailedTry]) -> bool:
    keys = {(failed_try.task_id, failed_try.map_index, failed_try.try_number) for failed_try in lost}
    failed = [row for row in last_tries if row["state"] == "failed"]
    return all((row["task_id"], row["map_index"], row["try_number"]) in keys for row in failed)


def _examine(
    airflow: Airflow, row: Mapping[str, Any], dag_id: str, run_id: str, outputs: Mapping[str, str], *, ours: bool
) -> FailedTry:
    log = _task_log(airflow.logs_folder, dag_id, run_id, row)
    # One that failed before it had a log is known to its executor or worker by this ID.
    workload = row["external_executor_id"]
    elsewhere = [line for text in outputs.values() for line in text.splitlines() if workload and workload in line]
    lines = [*log.splitlines(), *elsewhere]
    lost = None
    if not ours and not any(_OURS.search(line) for line in lines):
        lost = next((reason for reason, pattern in _REASONS if any(map(pattern.search, lines))), None)
    return FailedTry(
        row["task_id"], row["map_index"], row["try_number"], row["state"], "\n".join([log, *elsewhere]), lost
    )


def _task_log(folder: Path, dag_id: str, run_id: str, row: Mapping[str, Any]) -> str:
    place = folder / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={row['task_id']}"
    if row["map_index"] >= 0:
        place /= f"map_index={row['map_index']}"
    path = place / f"attempt={row['try_number']}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def _first_error(text: str) -> str | None:
    return next((line[:600] for line in text.splitlines() if _ERROR.search(line)), None)
