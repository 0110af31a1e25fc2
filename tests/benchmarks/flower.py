"""Start a real Flower with ``airflow celery flower``, and feed it a fleet."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import requests

from tests.benchmarks.requesting import Route
from tests.benchmarks.setting import probe
from tests.support.processes import free_port, stop, tail, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.deployment import Deployment

KEEPS = 100_000
"""Flower's own default of ``max_tasks``."""


@contextmanager
def running_flower(airflow: Deployment) -> Iterator[str]:
    """Start a Flower with its own defaults beside a deployment, and yield its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = airflow.output_folder / "flower.log"
    environment = {
        **airflow.env,
        "FLOWER_UNAUTHENTICATED_API": "true",
        # All workers of this fleet answer from one process, which takes longer than a second.
        "FLOWER_INSPECT_TIMEOUT": "15000",
    }
    with log.open("ab") as output:
        command = [airflow.environment.command("airflow"), "celery", "flower", "--hostname", "127.0.0.1"]
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=environment,
            cwd=airflow.home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"Flower ended with {process.returncode}:\n{tail(log)}")
        try:
            return requests.get(f"{url}/healthcheck", timeout=5).ok
        except requests.RequestException:
            return False

    try:
        wait_for(answers, 120, "Flower to answer")
        yield url
    finally:
        stop(process)


def feed(airflow: Deployment, url: str, workers: int, tasks: int) -> dict[str, Any]:
    """Send the events of a fleet, let Flower inspect it once, and return what Flower keeps."""
    found: dict[str, Any] = probe(
        airflow, "flower_feed", "--url", url, "--workers", str(workers), "--tasks", str(tasks), timeout=3600
    )
    if found["workers"] != workers or found["kept"] != min(tasks, KEEPS):
        raise RuntimeError(f"of {workers} workers Flower knows {found['workers']}, of {tasks} tasks {found['kept']}")
    return found


def routes(found: dict[str, Any]) -> list[Route]:
    """Return the routes of Flower to measure: its default lists, and pages of 50."""

    def holds(answer: requests.Response) -> bool:
        return bool(re.match(r"\{\s*\"", answer.text[:20]))

    names = [f"/api/tasks?limit=50&workername={name}" for name in found["names"]]
    return [
        Route("Flower", name, paths, holds)
        for name, paths in (
            ("/api/workers", ["/api/workers"]),
            ("/api/workers, states alone", ["/api/workers?status=true"]),
            ("/api/tasks, 50", ["/api/tasks?limit=50"]),
            ("/api/tasks, 50 latest", ["/api/tasks?limit=50&sort_by=-received"]),
            ("/api/tasks, 50 of one worker", names),
            ("/api/tasks, 50 failed", ["/api/tasks?limit=50&state=FAILURE"]),
            ("/api/tasks", ["/api/tasks"]),
        )
    ]
