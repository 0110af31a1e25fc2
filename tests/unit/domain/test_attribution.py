"""What is said of a try that no worker reported: one table of cases, no database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import AirflowTry
from airflow_worker_insight.domain.attribution import (
    AttributionResult,
    RecordedInstance,
    attribute,
    has_workers_of,
    host_worker,
    kind_of,
)
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.names import slug
from tests.unit.database import a_worker, at

if TYPE_CHECKING:
    from datetime import datetime

ALL_STATES = sorted(metadata_database.task_instance_states())


def a_try(**others: Any) -> AirflowTry:
    known: dict[str, Any] = {
        "key": TryKey("etl", "run-1", "extract", -1, 1),
        "state": "failed",
        "started_at": at(10),
        "ended_at": at(70),
        "hostname": "host-1",
        "pid": 4711,
        "queued_at": at(5),
        "executor": "CeleryExecutor",
        "queued_by_job_id": 1,
    }
    return AirflowTry(**{**known, **others})


def an_instance(ref: int, **others: Any) -> RecordedInstance:
    return RecordedInstance(ref=ref, record=a_worker(f"worker-{ref}", **others))


# --- run in a test: somebody's own process, and no scheduler queued it ------------------------------------------------


UNQUEUED: dict[str, Any] = {"queued_at": None, "queued_by_job_id": None, "external_executor_id": None}


@pytest.mark.parametrize("state", ["success", "failed", "running", "up_for_retry", "skipped"])
@pytest.mark.parametrize("backfilled", [False, True])
@pytest.mark.parametrize("started_at", [at(10), None])
def test_what_ran_in_a_test_is_on_no_worker(state: str, backfilled: bool, started_at: datetime | None) -> None:
    one = a_try(state=state, started_at=started_at, **UNQUEUED)
    pod = RecordedInstance(ref=1, record=a_worker("pod", kind="kubernetes", hostname="host-1"))
    for executor in ("CeleryExecutor", "LocalExecutor", "KubernetesExecutor"):
        assert attribute(one, [pod], default_executor=executor, backfilled=backfilled) == AttributionResult(
            "not_on_a_worker"
        )


@pytest.mark.parametrize(
    "left",
    [
        {"queued_at": at(5)},  # An orphan that the scheduler has reset (3.x).
        {"queued_by_job_id": 7},  # A stuck task that is queued again (2.11).
        {"external_executor_id": "6f1b"},  # A stuck task of Celery that is queued again (3.3); sent with use_executor.
    ],
)
def test_what_a_scheduler_has_queued_is_never_taken_for_a_test(left: dict[str, Any]) -> None:
    assert attribute(a_try(**{**UNQUEUED, **left}), []).attribution == "inferred"


def test_what_no_process_ran_is_no_test() -> None:
    assert not a_try(**{**UNQUEUED, "hostname": None, "pid": None}).ran_in_a_test


# --- no host in Airflow: the try never reached a worker, or Airflow lost it -------------------------------------------


@pytest.mark.parametrize("state", ["success", "skipped", "upstream_failed", "removed"])
@pytest.mark.parametrize("started_at", [None, at(10)])
def test_without_a_host_the_scheduler_or_triggerer_ended_it(state: str, started_at: datetime | None) -> None:
    one = a_try(hostname=None, pid=None, state=state, started_at=started_at)
    assert attribute(one, []) == AttributionResult("not_on_a_worker")


@pytest.mark.parametrize(
    ("started_at", "ended_at", "attribution"),
    [
        (None, None, "never_started"),
        (None, at(20), "never_started"),
        (at(20), at(20), "never_started"),
        (at(20), at(21), "never_started"),
        (at(20), at(21.001), "unknown"),
        (at(20), at(600), "unknown"),
        (at(20), None, "unknown"),
    ],
)
def test_a_failure_without_a_host(started_at: datetime | None, ended_at: datetime | None, attribution: str) -> None:
    one = a_try(hostname=None, pid=None, state="failed", started_at=started_at, ended_at=ended_at)
    assert attribute(one, []) == AttributionResult(attribution)


@pytest.mark.parametrize("pid", [None, 4711])
def test_a_process_without_a_host_names_no_worker(pid: int | None) -> None:
    assert attribute(a_try(hostname=None, pid=pid), [an_instance(1), an_instance(2)]).worker is None


@pytest.mark.parametrize("state", [None, *ALL_STATES])
@pytest.mark.parametrize("hostname", [None, "host-1"])
@pytest.mark.parametrize("pid", [None, 4711])
@pytest.mark.parametrize("started_at", [None, at(10)])
@pytest.mark.parametrize("backfilled", [False, True])
def test_there_is_always_a_word(
    state: str | None, hostname: str | None, pid: int | None, started_at: datetime | None, *, backfilled: bool
) -> None:
    one = a_try(state=state, hostname=hostname, pid=pid, started_at=started_at)
    verdict = attribute(one, [an_instance(1)], backfilled=backfilled)
    if hostname is None:
        assert verdict.attribution in {"not_on_a_worker", "never_started", "unknown"}
        assert verdict.worker is None
    else:
        assert verdict.attribution == ("backfilled" if backfilled else "inferred")
        assert verdict.worker is not None
        assert verdict.worker.hostname == hostname


# --- a host: one instance, or one of the workers of this host ---------------------------------------------------------

HOST = host_worker("host-1", "celery")


@pytest.mark.parametrize("instances", [[], [1], [1, 2]])
def test_of_a_celery_try_only_the_host_is_sure(instances: list[int]) -> None:
    """Beside the one that is known another worker of the host may have started, and died before it reported."""
    known = [an_instance(ref, job_id=1) for ref in instances]
    assert attribute(a_try(), known) == AttributionResult("inferred", HOST)
    assert attribute(a_try(), known, backfilled=True) == AttributionResult("backfilled", HOST)


def test_the_process_of_the_try_is_not_taken_for_that_of_the_worker() -> None:
    """Airflow keeps the pid of the task's process, which says nothing of which worker started it."""
    assert attribute(a_try(pid=100), [an_instance(1, pid=100), an_instance(2, pid=200)]).ref is None


def test_of_a_lost_try_nothing_is_said() -> None:
    one = AirflowTry(TryKey("etl", "run-1", "extract", -1, 1), is_lost=True)
    assert attribute(one, [an_instance(1)]) == AttributionResult("unknown")


def test_local_executor_is_known_by_the_job_that_queued_the_try() -> None:
    instances = [an_instance(1, kind="local", job_id=1), an_instance(2, kind="local", job_id=2)]
    one = a_try(executor="LocalExecutor", queued_by_job_id=2)
    assert attribute(one, instances).ref == 2
    assert attribute(a_try(executor="LocalExecutor", queued_by_job_id=2, hostname="host-2"), instances).ref is None


def test_local_executor_of_another_scheduler_is_not_guessed() -> None:
    instances = [an_instance(1, kind="local", job_id=1)]
    verdict = attribute(a_try(executor="LocalExecutor", queued_by_job_id=3), instances)
    assert verdict == AttributionResult("inferred", host_worker("host-1", "local"))


def test_local_executor_without_a_job_is_not_guessed() -> None:
    instances = [an_instance(1, kind="local", job_id=None)]
    assert attribute(a_try(executor="LocalExecutor", queued_by_job_id=None), instances).ref is None


def test_a_pod_is_a_host_with_one_worker() -> None:
    pod = an_instance(1, kind="kubernetes", hostname="etl-extract-x7f2q")
    one = a_try(executor="KubernetesExecutor", hostname="etl-extract-x7f2q")
    assert attribute(one, [pod]).ref == 1
    dead_before_it_reported = attribute(a_try(executor="KubernetesExecutor", hostname="etl-load-a1b2c"), [pod])
    assert dead_before_it_reported.worker is not None
    assert (dead_before_it_reported.worker.name, dead_before_it_reported.worker.kind) == (
        "etl-load-a1b2c",
        "kubernetes",
    )


def test_a_try_that_names_no_executor_ran_on_the_default_one() -> None:
    one, local = a_try(executor=None), an_instance(1, kind="local", job_id=1)
    assert attribute(one, [local], default_executor="LocalExecutor,CeleryExecutor").ref == 1
    assert attribute(one, [local], default_executor="CeleryExecutor").ref is None
    assert attribute(one, [local]) == AttributionResult("inferred", host_worker("host-1", "unknown"))


def test_the_executor_of_the_try_goes_before_the_default() -> None:
    local = an_instance(1, kind="local", job_id=1)
    assert attribute(a_try(executor="CeleryExecutor"), [local], default_executor="LocalExecutor").ref is None


moments = st.integers(-1000, 1000).map(at)
instances = st.builds(
    an_instance,
    st.integers(1, 99),
    kind=st.sampled_from(["celery", "local"]),
    hostname=st.sampled_from(["host-1", "host-2"]),
    job_id=st.none() | st.integers(1, 3),
)
tries = st.builds(
    a_try,
    state=st.sampled_from([None, *ALL_STATES]),
    started_at=st.none() | moments,
    hostname=st.sampled_from([None, "host-1", "host-2"]),
    executor=st.sampled_from([None, "CeleryExecutor", "LocalExecutor"]),
    queued_by_job_id=st.none() | st.integers(1, 3),
)


@given(tries, st.lists(instances, max_size=5))
def test_a_named_instance_never_contradicts_airflow(one: AirflowTry, known: list[RecordedInstance]) -> None:
    verdict = attribute(one, known, default_executor="CeleryExecutor")
    if verdict.worker is None:
        assert one.hostname is None
        return
    assert verdict.worker.hostname == one.hostname
    assert verdict.worker.host_only == (verdict.ref is None)
    assert verdict.worker.kind == kind_of(one.executor or "CeleryExecutor")


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (None, "unknown"),
        ("", "unknown"),
        ("LocalExecutor", "local"),
        ("CeleryExecutor", "celery"),
        ("KubernetesExecutor", "kubernetes"),
        ("EdgeExecutor", "edge"),
        ("SequentialExecutor", "SequentialExecutor"),
        ("airflow.executors.local_executor.LocalExecutor", "local"),
        ("airflow.providers.celery.executors.celery_executor.CeleryExecutor", "celery"),
        ("airflow_worker_insight.executors.local.WorkerInsightLocalExecutor", "local"),
        ("airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor", "celery"),
        ("mine:airflow.providers.celery.executors.celery_executor.CeleryExecutor", "celery"),
        ("company.executors.FancyExecutor", "FancyExecutor"),
        ("company_alias", "company_alias"),
        ("CeleryExecutor,KubernetesExecutor", "celery"),
        (" LocalExecutor , CeleryExecutor", "local"),
        ("team_a=CeleryExecutor", "celery"),
        ("LocalExecutor;team_a=CeleryExecutor", "local"),
        ("team_a=mine:company.executors.FancyExecutor", "FancyExecutor"),
        ("x" * 100, "x" * 32),
        (",", "unknown"),
        ("company.", "unknown"),
    ],
)
def test_the_kind_of_an_executor(written: str | None, kind: str) -> None:
    assert kind_of(written) == kind


@pytest.mark.parametrize(
    ("named", "kind"), [("placed", "celery"), ("teams", "local"), ("LocalExecutor", "local"), ("gone", "gone")]
)
def test_an_alias_is_no_kind(named: str, kind: str) -> None:
    setting = "LocalExecutor, placed:its.path.WorkerInsightCeleryExecutor;billing=teams:its.path.LocalExecutor"
    verdict = attribute(a_try(executor=named), instances=(), default_executor=setting)
    assert verdict.worker is not None
    assert verdict.worker.kind == kind


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=400))
def test_a_host_of_any_name_can_be_stored(hostname: str) -> None:
    record = host_worker(hostname, "celery")
    assert record.worker_id.startswith("host-")
    assert slug(record.worker_id, 64) == record.worker_id
    assert len(record.name) <= 250
    assert len(record.hostname) <= 255
    assert record == host_worker(hostname, "celery")


def test_hosts_and_kinds_are_told_apart() -> None:
    ids = {host_worker(host, kind).worker_id for host in ("a", "b", "a" * 300) for kind in ("celery", "local")}
    assert len(ids) == 6


@pytest.mark.parametrize(
    ("kind", "executor", "setting", "expected"),
    [
        ("celery", None, "CeleryExecutor", True),
        ("celery", None, "CeleryExecutor,KubernetesExecutor", True),
        ("celery", "KubernetesExecutor", "CeleryExecutor,KubernetesExecutor", False),
        ("celery", "pods", "CeleryExecutor,pods:airflow.providers.cncf.kubernetes.executors.KubernetesExecutor", False),
        ("local", None, "airflow_worker_insight.executors.local.WorkerInsightLocalExecutor", True),
        ("local", None, "CeleryExecutor", False),
        # Which team's the try is, is not said.
        ("celery", None, "LocalExecutor;team1=CeleryExecutor", True),
        ("edge", None, "LocalExecutor;team1=CeleryExecutor", False),
        ("celery", None, "acme.AcmeExecutor", None),
        ("celery", None, "CeleryKubernetesExecutor", None),
        ("celery", None, None, None),
        ("AcmeExecutor", None, "acme.AcmeExecutor", True),
    ],
)
def test_which_executors_have_workers_of_a_kind(
    kind: str, executor: str | None, setting: str | None, expected: bool | None
) -> None:
    assert has_workers_of(kind, executor=executor, setting=setting) is expected
