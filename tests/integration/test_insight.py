"""Is it the worker? On four real workers, one of which fails what it runs, under Airflow's own executors and ours.

``WORKER_INSIGHT_PICTURES=docs/images`` renews the pictures of the documentation.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.integration.placing import EXECUTOR, wait_consuming
from tests.support.browser import BrowserUser
from tests.support.deployment import Deployment
from tests.support.fleet import INSTANCE, WITNESS, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

EXECUTORS = {"celery": "CeleryExecutor", "placing": EXECUTOR}
WORKERS = ("w1", "w2", "w3", "w4")
SICK = "w3"
SICK_NODE = f"{SICK}@{socket.gethostname()}"

DAG = (
    WITNESS
    + f"""
from airflow.sdk import dag, task


@dag(schedule=None)
def sales():
    for number in range(8):
        @task(task_id=f"load_{{number}}")
        def load(**context):
            witness(context)
            if os.environ[{INSTANCE!r}].startswith({SICK!r}):
                raise OSError("No space left on device")

        load()


sales()
"""
)


@pytest.fixture(scope="module", params=EXECUTORS)
def airflow(
    request: pytest.FixtureRequest, airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis
) -> Iterator[Deployment]:
    with Deployment(
        airflow_env("3.3.2"),
        executor=EXECUTORS[request.param],
        postgres=postgres,
        redis=redis,
        config={
            "worker_insight.refresh_interval": "3",
            "worker_insight.insight_interval": "5",
            "celery.worker_concurrency": "2",
            # What one worker fetches beyond what it runs would wait there although others are free.
            "celery.worker_prefetch_multiplier": "1",
            "dag_processor.min_file_process_interval": "600",
        },
    ) as deployment:
        deployment.write_dag("sales", DAG)
        deployment.migrate()
        deployment.start_all()
        for name in WORKERS:
            start_worker(deployment, name)
        for name in WORKERS:
            deployment.wait_ready(deployment.components[name])
        if request.param == "placing":
            wait_consuming(deployment, *WORKERS)
        yield deployment


def start_worker(airflow: Deployment, name: str, *, again: bool = False) -> None:
    """Start a worker of two slots, whose tasks write its name; wait for nothing."""
    airflow.start("celery worker", name=name, env={INSTANCE: f"{name}-again" if again else name}, wait=False)


@pytest.fixture
def person(browser: Browser, airflow: Deployment) -> Iterator[BrowserUser]:
    with BrowserUser(browser, airflow) as user:
        yield user
        assert not user.foreign_requests
        assert not user.uncaught


def pictures(airflow: Deployment, person: BrowserUser, name: str) -> None:
    folder = os.environ.get("WORKER_INSIGHT_PICTURES")
    if folder and airflow.executor == EXECUTORS["celery"]:
        person.screenshot(Path(folder) / f"{name}-light.png")
        person.screenshot(Path(folder) / f"{name}-dark.png", theme="dark")
        person.set_theme("light")


def run(airflow: Deployment) -> dict[str, int]:
    """Run the Dag; return how many of its tries each worker ran, by its own word."""
    run_id = airflow.trigger("sales")
    airflow.wait_run("sales", run_id)
    ran = [instance for instances in witnessed(airflow, "sales", run_id).values() for instance in instances]
    assert len(ran) == 8
    return {name: sum(str(instance).startswith(name) for instance in ran) for name in WORKERS}


def rest(airflow: Deployment, path: str, **params: Any) -> Any:
    answer = airflow.api("GET", f"/worker-insight/api/v1/{path}", params=params)
    assert answer.ok, answer.text
    return answer.json()


def found(airflow: Deployment) -> dict[str, Any] | None:
    """Return the finding, once there is one."""
    findings: list[dict[str, Any]] = rest(airflow, "findings")["findings"]
    return findings[0] if findings else None


def test_sick_worker_is_found_and_said_in_a_sentence(airflow: Deployment) -> None:
    assert rest(airflow, "findings")["total_entries"] == 0
    tries = dict.fromkeys(WORKERS, 0)
    # Some ten tries on the sick worker suffice; which worker gets how many is Celery's affair.
    while tries[SICK] < 16:
        for name, number in run(airflow).items():
            tries[name] += number
        if found(airflow):
            break
    finding = airflow.wait_for(lambda: found(airflow), 120, "the finding")
    assert finding is not None
    assert (finding["subject_kind"], finding["subject"], finding["outcome"]) == ("worker", SICK_NODE, "failed")
    # What still ran when it was found, or whose end had not been read, has not failed so far.
    assert 3 <= finding["failures"] <= finding["tries"]
    assert finding["peer_failures"] == 0
    assert finding["evidence"] >= finding["needed"]
    assert finding["title"] == f"{SICK_NODE} fails more than its peers on the same tasks"
    assert f"ran on {SICK_NODE}" in finding["text"]
    assert {task["dag_id"] for task in finding["tasks"]} == {"sales"}


def test_statistics_count_the_tries_of_each_worker(airflow: Deployment) -> None:
    def counted() -> dict[str, tuple[int, int]] | None:
        rows = rest(airflow, "statistics", group_by="worker")["statistics"]
        sums = {str(row["group"]).partition("@")[0]: (row["tries"], row["failed"]) for row in rows}
        (total,) = airflow.sql("SELECT count(*) AS n FROM task_instance")
        return sums if sum(tries for tries, _ in sums.values()) == total["n"] else None

    sums = airflow.wait_for(counted, 300, "all tries to be counted") or {}
    assert {name: failed for name, (_, failed) in sums.items() if failed} == {SICK: sums[SICK][0]}


def test_one_click_takes_it_out_and_a_restart_does_not_bring_it_back(airflow: Deployment, person: BrowserUser) -> None:
    person.open("/worker-insight/insight")
    card = person.page.locator("#wi-open")
    expect(card).to_contain_text(f"{SICK_NODE} fails more than its peers on the same tasks")
    pictures(airflow, person, "insight")
    card.get_by_role("button", name="Quarantine").first.click()
    person.page.wait_for_load_state()
    wait_enforced(airflow, "in_effect")
    assert run(airflow)[SICK] == 0

    before = latest(airflow)["worker_id"]
    airflow.stop(SICK)
    start_worker(airflow, SICK, again=True)
    airflow.wait_for(lambda: latest(airflow)["worker_id"] != before, 120, "the new instance")
    wait_enforced(airflow, "in_effect")
    assert run(airflow)[SICK] == 0

    worker_id = latest(airflow)["worker_id"]
    person.open(f"/worker-insight/workers/{worker_id}")
    expect(person.page.locator("#wi-availability")).to_contain_text("In effect")
    pictures(airflow, person, "worker-quarantined")
    person.page.get_by_role("radio", name="Gets new tasks").check()
    person.page.get_by_role("button", name="Save").click()
    wait_enforced(airflow, None)
    history = [event["action"] for event in rest(airflow, f"findings/{found_id(airflow)}")["history"]]
    assert history[-1] == "found"
    assert {"quarantined", "released"} <= set(history)


def found_id(airflow: Deployment) -> int:
    finding = found(airflow)
    assert finding is not None
    return int(finding["finding_id"])


def latest(airflow: Deployment) -> dict[str, Any]:
    """Return the sick worker's latest instance."""
    workers = rest(airflow, "workers", name=SICK_NODE, order_by="registered_at")["workers"]
    worker: dict[str, Any] = workers[-1]
    return worker


def wait_enforced(airflow: Deployment, state: str | None) -> None:
    def is_so() -> bool:
        worker = latest(airflow)
        enforcement = worker["enforcement"]
        return worker["state"] == "online" and (enforcement and enforcement["state"]) == state

    airflow.wait_for(is_so, 120, f"the decision to be {state}")
