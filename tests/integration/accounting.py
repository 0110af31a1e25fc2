"""Compare our attempts with Airflow's own tries and with what the tasks wrote themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.states import STATES, Attribution
from tests.support.fleet import Try

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.support.deployment import Deployment

REPORT_KEY = "__worker_insight_report__"


@dataclass(frozen=True)
class Worker:
    """A worker as an attempt names it."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    pid: int | None
    host_only: bool
    process_count: int


@dataclass(frozen=True)
class Attempt:
    """The record of one try."""

    state: str | None
    attribution: str
    closed: bool
    workers: tuple[Worker, ...]

    @property
    def worker(self) -> Worker:
        """The only worker of the try."""
        (worker,) = self.workers
        return worker


def attempts(airflow: Deployment, dag_id: str, run_id: str) -> dict[Try, Attempt]:
    """Return the attempts of a run, from the tables."""
    rows = airflow.sql(
        "SELECT a.task_id, a.map_index, a.try_number, a.state, a.attribution, a.process_count, a.ended_at, "
        "w.worker_id, w.name, w.kind, w.hostname, w.pid, w.host_only "
        "FROM worker_insight_attempt a LEFT JOIN worker_insight_worker w ON w.id = a.worker_ref "
        "WHERE a.dag_id = :dag_id AND a.run_id = :run_id ORDER BY a.ordinal",
        dag_id=dag_id,
        run_id=run_id,
    )
    by_try: dict[Try, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_try[Try.of(row)].append(row)
    return {key: _attempt(group) for key, group in by_try.items()}


def _attempt(rows: list[dict[str, Any]]) -> Attempt:
    attributions = {row["attribution"] for row in rows}
    assert len(attributions) == 1, f"one try, several attributions: {rows}"
    assert len({(row["state"], row["ended_at"]) for row in rows}) == 1, f"one try, several ends: {rows}"
    return Attempt(
        state=STATES[rows[0]["state"] - 1] if rows[0]["state"] else None,
        attribution=Attribution.values()[rows[0]["attribution"] - 1],
        closed=rows[0]["ended_at"] is not None,
        workers=tuple(
            Worker(
                worker_id=row["worker_id"],
                name=row["name"],
                kind=row["kind"],
                hostname=row["hostname"],
                pid=row["pid"],
                host_only=bool(row["host_only"]),
                process_count=row["process_count"],
            )
            for row in rows
            if row["worker_id"] is not None
        ),
    )


def rest_attempts(airflow: Deployment, dag_id: str, run_id: str) -> dict[Try, dict[str, Any]]:
    """Return the attempts of a run, from REST, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        answer = airflow.api(
            "GET",
            "/worker-insight/api/v1/attempts",
            params={"dag_id": dag_id, "run_id": run_id, "limit": 75, "offset": len(found)},
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["attempts"]
        if not page["attempts"] or len(found) >= page["total_entries"]:
            break
    keys = [Try.of(row) for row in found]
    assert len(keys) == len(set(keys)) == page["total_entries"]
    return dict(zip(keys, found, strict=True))


def assert_rest_agrees(airflow: Deployment, dag_id: str, run_id: str) -> None:
    """Compare the attempts from REST with those in the tables."""

    def described(attribution: str, state: object, workers: Iterable[tuple[str, str, int]]) -> tuple[object, ...]:
        return attribution, state, tuple(workers)

    assert {
        key: described(
            attempt["attribution"],
            attempt["state"],
            ((w["worker_id"], w["name"], w["process_count"]) for w in attempt["workers"]),
        )
        for key, attempt in rest_attempts(airflow, dag_id, run_id).items()
    } == {
        key: described(
            attempt.attribution, attempt.state, ((w.worker_id, w.name, w.process_count) for w in attempt.workers)
        )
        for key, attempt in attempts(airflow, dag_id, run_id).items()
    }


def airflow_tries(airflow: Deployment, dag_id: str, run_id: str) -> dict[Try, dict[str, Any]]:
    """Return all tries that Airflow knows, including those never queued (number 0)."""
    columns = "task_id, map_index, try_number, state, hostname, pid, external_executor_id"
    where = "WHERE dag_id = :dag_id AND run_id = :run_id"
    found: dict[Try, dict[str, Any]] = {}
    for table in ("task_instance", "task_instance_history"):
        for row in airflow.sql(f"SELECT {columns} FROM {table} {where}", dag_id=dag_id, run_id=run_id):
            found[Try.of(row)] = row
    return found


def all_tries(known: Mapping[Try, dict[str, Any]]) -> dict[Try, str | None]:
    """Return the state of each try, with None for tries that Airflow lost.

    Airflow keeps no row of a try when the scheduler fails a task that is still queued: only a later number tells.
    """
    lost = {Try(key.task_id, key.map_index, number): None for key in known for number in range(1, key.try_number)}
    return {**lost, **{key: row["state"] for key, row in known.items()}}


def wait_accounted(airflow: Deployment, dag_id: str, run_id: str, timeout: float = 60) -> dict[Try, Attempt]:
    """Wait until a finished run is accounted for, and return its attempts.

    A run is accounted for when its attempts are exactly its tries, each closed with Airflow's state, and each with a
    worker exactly where the attribution says so.
    """

    def settled() -> bool:
        recorded = attempts(airflow, dag_id, run_id)
        return {key: attempt.state for key, attempt in recorded.items()} == all_tries(
            airflow_tries(airflow, dag_id, run_id)
        )

    try:
        airflow.wait_for(settled, timeout, f"all tries of {dag_id}/{run_id} to be accounted for")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{difference(airflow, dag_id, run_id)}") from error
    recorded = attempts(airflow, dag_id, run_id)
    known = airflow_tries(airflow, dag_id, run_id)
    for key, attempt in recorded.items():
        assert bool(attempt.workers) == (attempt.attribution in {"reported", "inferred", "backfilled"}), (key, attempt)
        if key not in known:
            # Airflow has no row: only the worker's report can name it.
            assert attempt.attribution in {"reported", "unknown"}, (key, attempt)
            continue
        assert attempt.closed or attempt.attribution in {"not_on_a_worker", "never_started"}, (key, attempt)
        for worker in attempt.workers:
            # Must agree with Airflow's column, where that is not blank.
            assert known[key]["hostname"] in {worker.hostname, "", None}, (key, attempt, known[key])
    return recorded


def difference(airflow: Deployment, dag_id: str, run_id: str) -> str:
    """Describe where the attempts of a run differ from Airflow's tries."""
    known, recorded = airflow_tries(airflow, dag_id, run_id), attempts(airflow, dag_id, run_id)
    states = all_tries(known)
    lines = [
        f"{key}: Airflow {known.get(key)}, recorded {recorded.get(key)}"
        for key in sorted({*states, *recorded})
        if key not in states or key not in recorded or recorded[key].state != states[key]
    ]
    return "\n".join([*lines[:10], f"{len(lines)} tries differ"])


def attributions(recorded: Mapping[Try, Attempt]) -> Counter[str]:
    """Count the attributions."""
    return Counter(attempt.attribution for attempt in recorded.values())


def left_in_xcom(airflow: Deployment, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Return the XComs of a run: the keys and their tasks."""
    return airflow.sql(
        "SELECT task_id, map_index, key FROM xcom WHERE dag_id = :dag_id AND run_id = :run_id",
        dag_id=dag_id,
        run_id=run_id,
    )


def mentions(airflow: Deployment, text: str = "Worker Insight") -> list[str]:
    """Return the lines of all outputs and task logs that hold a text."""
    files = [*airflow.output_folder.glob("*.log"), *airflow.logs_folder.rglob("*.log")]
    return [
        f"{file.name}: {line}"
        for file in files
        for line in file.read_text(errors="replace").splitlines()
        if text in line
    ]
