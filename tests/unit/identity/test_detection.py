"""Which worker is recognised in which ancestry: each recording, and what was not there to be recorded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.domain.names import executor_name, is_named_local
from airflow_worker_insight.identity.detection import (
    DetectedWorker,
    ProcessContext,
    detect_worker,
    kubernetes_labels,
    local_worker_environment,
)
from tests.unit.identity.recordings import BIN, EDGE_ENVIRON, OUTSIDE, process, recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.identity.process import Process

CELERY_ENVIRON = {"CELERY_LOG_LEVEL": "20", "CELERY_LOG_FILE": ""}
POD_ENVIRON = {"AIRFLOW_IS_K8S_EXECUTOR_POD": "True", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def around(lineage: Sequence[Process], **known: Any) -> ProcessContext:
    return ProcessContext(**{"environ": {}, "modules": {}, "host": "host-1", "lineage": lineage, **known})


def celery_modules(node: str | None, parent_pid: int | None) -> dict[str, Any]:
    """What a process forked by a Celery worker has in its memory."""
    task = SimpleNamespace(request=SimpleNamespace(hostname=node, id="5897021b")) if node else None
    return {
        "celery._state": SimpleNamespace(get_current_worker_task=lambda: task),
        "billiard.process": SimpleNamespace(_current_process=SimpleNamespace(_parent_pid=parent_pid)),
    }


@pytest.mark.parametrize(
    ("lineage", "kind", "name", "main_pid"),
    [
        pytest.param(recorded("celery-3.3.2-w1"), "celery", "w1@host-1", 11708, id="celery-3.3.2"),
        pytest.param(recorded("celery-3.3.2-w2"), "celery", "w2@host-1", 11709, id="celery-3.3.2-second-worker"),
        pytest.param(recorded("celery-3.3.2-w1-as-user"), "celery", "w1@host-1", 11708, id="celery-3.3.2-as-user"),
        pytest.param(recorded("celery-3.0.6"), "celery", "w1@host-1", 17443, id="celery-3.0.6"),
        pytest.param(recorded("celery-3.0.6-as-user"), "celery", "w1@host-1", 17443, id="celery-3.0.6-as-user"),
        pytest.param(recorded("celery-3.1.8-solo"), "celery", "solo@host-1", 24408, id="celery-3.1.8-solo"),
        pytest.param(recorded("celery-2.11.2"), "celery", "w1@host-1", 18951, id="celery-2.11.2"),
        pytest.param(recorded("celery-2.11.2-as-user"), "celery", "w1@host-1", 4699, id="celery-2.11.2-as-user"),
        pytest.param(recorded("local-3.3.2-a"), "local", "local@host-1", 10506, id="local-3.3.2"),
        pytest.param(recorded("local-3.3.2-forkserver"), "local", "local@host-1", 26239, id="local-forkserver"),
        pytest.param(recorded("local-3.0.6"), "local", "local@host-1", 11492, id="local-3.0.6"),
        pytest.param(recorded("local-2.11.2"), "local", "local@host-1", 14455, id="local-2.11.2"),
        pytest.param(recorded("local-3.3.2-standalone"), "local", "local@host-1", 17952, id="local-standalone"),
    ],
)
@pytest.mark.parametrize("outside", [OUTSIDE, []], ids=["under-a-shell", "in-a-container"])
def test_ancestry_alone_tells_the_worker(
    lineage: list[Process], outside: list[Process], kind: str, name: str, main_pid: int
) -> None:
    found = detect_worker(around([*lineage, *outside]))
    assert (found.kind, found.name) == (kind, name)
    assert found.main is not None
    assert found.main.pid == main_pid


def test_workers_of_one_host_differ_and_tasks_of_one_worker_do_not() -> None:
    w1, w2 = (
        detect_worker(around(recorded("celery-3.3.2-w1"))),
        detect_worker(around(recorded("celery-3.3.2-w2"))),
    )
    assert w1 != w2
    assert w1 == detect_worker(around(recorded("celery-3.3.2-w1-as-user")))
    assert detect_worker(around(recorded("local-3.3.2-a"))) == detect_worker(around(recorded("local-3.3.2-b")))


# --- Celery ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent_pid", [None, 15912], ids=["solo", "as-if-from-a-pool"])
def test_solo_pool_is_known_from_inherited_memory(parent_pid: int | None) -> None:
    lineage = [*recorded("celery-3.3.2-solo"), *OUTSIDE]
    found = detect_worker(around(lineage, modules=celery_modules("solo@host-1", parent_pid)))
    assert found == DetectedWorker("celery", "solo@host-1", recorded("celery-3.3.2-solo")[-1])


def test_solo_pool_after_run_as_user_is_the_same_worker_without_its_name() -> None:
    lineage = [*recorded("celery-3.3.2-solo-as-user"), *OUTSIDE]
    found = detect_worker(around(lineage, environ=CELERY_ENVIRON))
    assert found == DetectedWorker("celery", "host-1", recorded("celery-3.3.2-solo-as-user")[-1])


def test_supervisor_without_any_sign_of_celery_is_not_celery() -> None:
    assert detect_worker(around(recorded("celery-3.3.2-solo"), executor="EcsExecutor")) == DetectedWorker(
        "EcsExecutor", "host-1", None
    )


def test_worker_that_was_killed_meanwhile_keeps_its_name() -> None:
    orphan = [recorded("celery-3.3.2-w1")[0], OUTSIDE[-1]]
    found = detect_worker(around(orphan, modules=celery_modules("w1@host-1", 11708)))
    assert found == DetectedWorker("celery", "w1@host-1", None)


def test_celery_without_titles_keeps_its_command() -> None:
    main = process(11708, 157542, f"{BIN}/python", f"{BIN}/airflow", "celery", "worker", "--queues", "a,b")
    lineage = [*recorded("celery-3.3.2-w1")[:2], main]
    assert detect_worker(around(lineage)) == DetectedWorker("celery", "host-1", main)
    assert detect_worker(around(lineage, modules=celery_modules("w1@host-1", 11708))).name == "w1@host-1"


@pytest.mark.parametrize("node", ["w:1@host-1", "büro@host-1", "a b@host-1", "<b>@host-1"])
def test_node_names_may_hold_anything(node: str) -> None:
    main = process(11708, 157542, f"[celeryd: {node}:MainProcess] -active- (celery worker)")
    assert detect_worker(around([recorded("celery-3.3.2-w1")[0], main])).name == node


def test_celery_loaded_but_handling_no_message_says_nothing() -> None:
    found = detect_worker(around(recorded("local-3.3.2-a"), modules=celery_modules(None, None)))
    assert found.kind == "local"
    assert detect_worker(around(OUTSIDE, modules=celery_modules(None, None))).kind == "unknown"


# --- LocalExecutor and other executors in the scheduler ----------------------------------------------------


def test_worker_of_a_killed_scheduler_does_not_take_init_for_its_scheduler() -> None:
    found = detect_worker(around([*recorded("local-3.3.2-a")[:2], OUTSIDE[-1]]))
    assert found == DetectedWorker("local", "local@host-1", None)


def test_one_of_several_workers_of_a_scheduler_says_so_in_its_environment() -> None:
    scheduler = recorded("local-3.3.2-a")[-1]
    environ = local_worker_environment("etl@host-1", scheduler.pid)
    found = detect_worker(around(recorded("local-3.3.2-a"), environ=environ))
    assert found == DetectedWorker("local", "etl@host-1", scheduler, shares_main_process=True)
    assert is_named_local(found.kind, found.name)
    # Its scheduler was killed: init is its parent now.
    orphan = detect_worker(around([*recorded("local-3.3.2-a")[:2], OUTSIDE[-1]], environ=environ))
    assert orphan == DetectedWorker("local", "etl@host-1", None, shares_main_process=True)


def test_another_airflow_below_one_of_several_workers_is_none_of_them() -> None:
    environ = local_worker_environment("etl@host-1", 1234567)
    found = detect_worker(around(recorded("local-3.3.2-a"), environ=environ))
    assert found == detect_worker(around(recorded("local-3.3.2-a")))
    assert not is_named_local(found.kind, found.name)


def test_the_scheduler_of_several_workers_may_be_the_first_process_whatever_its_command() -> None:
    first = process(1, 130678, "my-scheduler")
    environ = local_worker_environment("etl@host-1", 1)
    assert detect_worker(around([*recorded("local-3.3.2-a")[:2], first], environ=environ)).main == first


def test_scheduler_may_be_the_first_process_of_a_container() -> None:
    scheduler = process(1, 130678, f"{BIN}/python", f"{BIN}/airflow", "scheduler")
    assert detect_worker(around([*recorded("local-3.3.2-a")[:2], scheduler])).main == scheduler


def test_team_executor_of_airflow_3_3() -> None:
    lineage = [
        recorded("local-3.3.2-a")[0],
        process(10563, 131697, "airflow worker -- LocalExecutor [blue]: 01a20253"),
        recorded("local-3.3.2-a")[-1],
    ]
    assert detect_worker(around(lineage)).main == recorded("local-3.3.2-a")[-1]


@pytest.mark.parametrize(
    ("executor", "kind", "name"),
    [
        ("SequentialExecutor", "SequentialExecutor", "host-1"),
        ("LocalExecutor", "local", "local@host-1"),  # where no titles are set
        ("WorkerInsightLocalExecutor", "local", "local@host-1"),
        ("", "unknown", "host-1"),
    ],
)
def test_what_a_scheduler_runs_itself_lives_as_long_as_the_scheduler(executor: str, kind: str, name: str) -> None:
    found = detect_worker(around([*recorded("sequential-2.11.2"), *OUTSIDE], executor=executor))
    assert found == DetectedWorker(kind, name, recorded("sequential-2.11.2")[-1])


def test_executor_of_its_own_below_a_scheduler() -> None:
    found = detect_worker(around(recorded("unknown-3.3.2"), executor="PodExecutor"))
    assert found == DetectedWorker("PodExecutor", "host-1", recorded("unknown-3.3.2")[-1])


# --- Edge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lineage", [recorded("edge-3.3.2"), recorded("edge-3.0.6")], ids=["4.3.2", "1.1.3"])
def test_edge_worker_is_named_by_its_environment(lineage: list[Process]) -> None:
    found = detect_worker(around([*lineage, *OUTSIDE], environ=EDGE_ENVIRON))
    assert found == DetectedWorker("edge", "e1", lineage[-1])


def test_edge_worker_without_its_environment() -> None:
    assert detect_worker(around([*recorded("edge-3.3.2"), *OUTSIDE])).name == "e1"
    # HOSTNAME is every shell's variable: it counts only where the Edge worker has set it.
    found = detect_worker(around([*recorded("edge-3.0.6"), *OUTSIDE], environ={"HOSTNAME": "not-me"}))
    assert found == DetectedWorker("edge", "host-1", recorded("edge-3.0.6")[-1])


def test_edge_worker_in_a_task_of_an_edge_worker() -> None:
    lineage = [*recorded("edge-3.0.6"), process(15023, 210640, "bash"), recorded("edge-3.3.2")[-1]]
    assert detect_worker(around(lineage)).main == recorded("edge-3.0.6")[-1]


# --- Kubernetes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lineage", [recorded("pod-3.3.2"), recorded("pod-3.1.8")], ids=["3.3.2", "3.1.8"])
def test_pod_is_named_by_its_host_name(lineage: list[Process]) -> None:
    known = {"environ": POD_ENVIRON, "host": "p-t0-abc123", "service_account_namespace": "etl"}
    found = detect_worker(around(lineage, **known))
    assert found == DetectedWorker("kubernetes", "p-t0-abc123", lineage[-1], pod="etl/p-t0-abc123")
    assert kubernetes_labels(around(lineage, **known)) == {"namespace": "etl"}


@pytest.mark.parametrize("prefix", ["", "K8S_", "KUBERNETES_", "MY_"])
def test_downward_api_describes_the_pod(prefix: str) -> None:
    facts = {"POD_NAME": "p-1", "POD_NAMESPACE": "etl", "POD_UID": "2f3c", "NODE_NAME": "node-7"}
    environ = POD_ENVIRON | {prefix + key: value for key, value in facts.items()}
    pod = around(recorded("pod-3.3.2"), environ=environ, service_account_namespace="other")
    assert detect_worker(pod) == DetectedWorker("kubernetes", "p-1", recorded("pod-3.3.2")[-1], pod="2f3c")
    assert kubernetes_labels(pod) == {"namespace": "etl", "node": "node-7", "pod": "p-1"}


def test_celery_worker_in_a_pod_is_celery_with_the_pods_labels() -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MY_NODE_NAME": "node-7", "POD_NAME": "airflow-worker-0"}
    worker = around(recorded("celery-3.3.2-w1"), environ=environ, service_account_namespace="etl")
    assert detect_worker(worker).kind == "celery"
    assert kubernetes_labels(worker) == {"namespace": "etl", "node": "node-7", "pod": "airflow-worker-0"}


def test_outside_of_kubernetes_there_are_no_labels() -> None:
    environ = {"NAMESPACE": "of-something-else", "HOSTNAME": "host-1"}
    assert kubernetes_labels(around(recorded("local-3.3.2-a"), environ=environ)) == {}


@pytest.mark.parametrize("value", ["", "False", "0"])
def test_variable_may_say_no(value: str) -> None:
    assert detect_worker(around([], environ={"AIRFLOW_IS_K8S_EXECUTOR_POD": value})).kind == "unknown"


# --- The order of the answers ----------------------------------------------------------------------------


def test_nearest_worker_counts() -> None:
    """A task that starts another Airflow: its tasks belong to that one, with the outer one's variables around."""
    outer = [process(20000, 300000, "bash", "-c", "airflow standalone"), *recorded("celery-3.3.2-w1")]
    lineage = [*recorded("local-3.3.2-a"), *outer]
    assert detect_worker(around(lineage, environ=POD_ENVIRON | CELERY_ENVIRON)).main == recorded("local-3.3.2-a")[-1]


@pytest.mark.parametrize(
    "command",
    [
        ("bash", "-c", "[celeryd: w1@host-1:MainProcess] airflow edge worker: e1"),
        ("tail", "airflow worker -- LocalExecutor"),
        ("grep", "airflow", "scheduler"),
        ("/usr/bin/dumb-init", "--", "/entrypoint", "airflow", "scheduler"),
        ("sudo", "airflow", "celery", "worker"),
        ("vim", f"{BIN}/airflow"),
        ("",),
        (),
    ],
)
def test_command_that_only_mentions_a_worker_is_none(command: tuple[str, ...]) -> None:
    assert detect_worker(around([process(7, 700, *command)])) == DetectedWorker("unknown", "host-1", None)


def test_nothing_known_is_the_host() -> None:
    assert detect_worker(around([])) == DetectedWorker("unknown", "host-1", None)
    assert detect_worker(around([], executor="EcsExecutor")) == DetectedWorker("EcsExecutor", "host-1", None)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("SequentialExecutor", "SequentialExecutor"),
        ("airflow.providers.edge3.executors.EdgeExecutor", "EdgeExecutor"),
        ("edge:airflow.providers.edge3.executors.EdgeExecutor", "EdgeExecutor"),
        ("CeleryExecutor,LocalExecutor", "CeleryExecutor"),
        ("LocalExecutor;blue=CeleryExecutor", "LocalExecutor"),
        ("blue=my.Executor,LocalExecutor", "Executor"),
        ("<script>alert(1)</script>", "scriptalert1script"),
        ("É" * 300 + "x", "x"[:0]),
        ("x" * 300, "x" * 32),
        ("", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_executor_names(written: object, name: str) -> None:
    assert executor_name(written) == name
