"""The public face: IDs, bounds, and that nothing ever goes wrong for the caller."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_worker_insight.domain.names import executor_name
from airflow_worker_insight.identity import Worker, detection, local_worker, machine, process, versions, whoami
from airflow_worker_insight.identity import worker as worker_module
from airflow_worker_insight.identity.detection import DetectedWorker, ProcessContext
from airflow_worker_insight.identity.process import Process
from airflow_worker_insight.identity.worker import instance_id
from tests.unit.identity.recordings import OUTSIDE, recorded
from tests.unit.identity.recordings import process as process_at

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

WORKER_ID = re.compile(r"[A-Za-z0-9._@:-]{1,64}")
BOOT = "84176416-4b43-4eb0-8b46-76454382119d"

any_text = st.text(st.characters(codec=None, categories=None), max_size=400)
odd_text = st.one_of(st.none(), any_text, st.sampled_from(["", "<script>", "👩‍💻" * 100, "x" * 300, "\x00", "a,b=c"]))
processes = st.builds(
    Process,
    pid=st.integers(1, 2**22),
    argv=st.one_of(
        st.lists(any_text, max_size=4).map(tuple),
        st.sampled_from(
            [each.argv for each in recorded("celery-3.3.2-w1") + recorded("local-3.3.2-a") + recorded("edge-3.0.6")]
        ),
    ),
    start=st.integers(0, 2**40).map(str),
    create_time=st.one_of(st.none(), st.floats()),
)
environments = st.dictionaries(
    st.one_of(
        any_text,
        st.sampled_from(["AIRFLOW_IS_K8S_EXECUTOR_POD", "POD_NAME", "POD_UID", "HOSTNAME", "CELERY_LOG_LEVEL"]),
    ),
    st.one_of(any_text, st.just("True")),
    max_size=6,
)


def id_of(lineage: list[Process], *, boot: str = BOOT, namespace: str = "4026531836", **known: Any) -> str:
    around = ProcessContext(
        **{"environ": {}, "modules": {}, "host": "host-1", "lineage": [*lineage, *OUTSIDE], **known}
    )
    return instance_id(detection.detect_worker(around), around, boot, namespace)


@pytest.fixture(autouse=True)
def outside_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests may themselves run in a pod."""
    for name in list(os.environ):
        if name.startswith(("KUBERNETES_", "K8S_", "MY_", "POD_", "NODE_", "AIRFLOW_IS_K8S")):
            monkeypatch.delenv(name)


# --- IDs -------------------------------------------------------------------------------------------------


def test_task_processes_of_an_instance_have_its_id() -> None:
    assert id_of(recorded("celery-3.3.2-w1")) == id_of(recorded("celery-3.3.2-w1-as-user"))
    assert id_of(recorded("local-3.3.2-a")) == id_of(recorded("local-3.3.2-b"))
    solo = id_of(recorded("celery-3.3.2-solo"), environ={"CELERY_LOG_LEVEL": "20"})
    assert solo == id_of(recorded("celery-3.3.2-solo-as-user"), environ={"CELERY_LOG_LEVEL": "20"})


def test_ids_are_the_same_in_every_release() -> None:
    """An ID is stored with each try: another way to make it would show every running worker a second time."""
    assert id_of(recorded("celery-3.3.2-w1")) == "celery-8c6e987bf5414aed222fbe2b"
    assert id_of(recorded("local-3.3.2-a")) == "local-116200ebfa1506df75a958e6"


def test_several_workers_of_one_scheduler_have_different_ids() -> None:
    pid = recorded("local-3.3.2-a")[-1].pid
    names = ("etl@host-1", "reports@host-1")
    ids = {
        id_of(lineage, environ=detection.local_worker_environment(name, pid))
        for name in names
        for lineage in (recorded("local-3.3.2-a"), recorded("local-3.3.2-b"))
    }
    assert len(ids) == 2
    assert id_of(recorded("local-3.3.2-a")) not in ids


def test_a_scheduler_knows_what_its_workers_will_say() -> None:
    worker, environment = local_worker("etl", hostname="host.example.com", labels="zone=a")
    assert (worker.name, worker.kind, worker.hostname) == ("etl", "local", "host.example.com")
    assert (worker.engine_name, worker.pid) == ("etl@host.example.com", os.getpid())
    assert worker.labels == {"zone": "a"}
    assert WORKER_ID.fullmatch(worker.worker_id)
    assert environment == detection.local_worker_environment("etl@host.example.com", os.getpid())
    other, _ = local_worker("reports", hostname="host.example.com")
    assert other.worker_id != worker.worker_id


def test_workers_of_one_host_have_different_ids() -> None:
    lineages = [
        recorded("celery-3.3.2-w1"),
        recorded("celery-3.3.2-w2"),
        recorded("local-3.3.2-a"),
        recorded("edge-3.3.2"),
    ]
    assert len({id_of(lineage) for lineage in lineages}) == len(lineages)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"start": "157543"}, id="restarted-with-the-same-pid"),
        pytest.param({"pid": 11999}, id="restarted-within-a-tick"),
    ],
)
@pytest.mark.parametrize("lineage", [recorded("celery-3.3.2-w1"), recorded("local-3.3.2-a"), recorded("edge-3.0.6")])
def test_restart_is_a_new_instance(lineage: list[Process], change: dict[str, Any]) -> None:
    again = [*lineage[:-1], lineage[-1]._replace(**change)]
    assert id_of(again) != id_of(lineage)


def test_other_machine_boot_or_container_is_another_worker() -> None:
    lineage = recorded("celery-3.3.2-w1")
    ids = {
        id_of(lineage),
        id_of(lineage, boot="0d9a"),
        id_of(lineage, namespace="4026532000"),
        id_of(lineage, host="host-2"),
    }
    assert len(ids) == 4


def test_correction_of_the_clock_changes_nothing() -> None:
    corrected = [each._replace(create_time=(each.create_time or 0) + 3600) for each in recorded("celery-3.3.2-w1")]
    assert id_of(corrected) == id_of(recorded("celery-3.3.2-w1"))


def test_pod_is_one_instance_whatever_runs_in_it() -> None:
    environ = {"AIRFLOW_IS_K8S_EXECUTOR_POD": "True", "POD_NAME": "p-1", "POD_UID": "2f3c"}
    pod = id_of(recorded("pod-3.3.2"), environ=environ)
    assert pod == id_of(recorded("pod-3.1.8"), environ=environ, boot="", namespace="")
    assert pod != id_of(recorded("pod-3.3.2"), environ=environ | {"POD_UID": "2f3d"})
    assert pod.startswith("kubernetes-")


def test_unknown_executor_lives_as_long_as_its_host_or_container() -> None:
    one, other = ([process_at(pid, pid, "python", "-c", "job")] for pid in (70, 80))
    assert id_of(one, executor="EcsExecutor") == id_of(other, executor="EcsExecutor")
    assert id_of(one, executor="EcsExecutor") != id_of(one, executor="BatchExecutor")
    around = ProcessContext([*one, OUTSIDE[-1]._replace(start="25")], {}, {}, "host-1", "EcsExecutor")
    restarted = instance_id(detection.detect_worker(around), around, BOOT, "4026531836")
    assert restarted != id_of(one, executor="EcsExecutor")


def test_facts_do_not_run_into_each_other() -> None:
    around = ProcessContext([], {}, {}, "ab")
    assert instance_id(DetectedWorker("x", "c", None), around, "d", "e") != instance_id(
        DetectedWorker("x", "c", None), around, "de", ""
    )


@given(st.lists(processes, max_size=5), environments, any_text, odd_text, any_text)
def test_any_context_gives_a_valid_id(
    lineage: list[Process], environ: dict[str, str], host: str, executor: str | None, boot: str
) -> None:
    around = ProcessContext(lineage, environ, {}, host, executor_name(executor), host)
    found = detection.detect_worker(around)
    worker_id = instance_id(found, around, boot, "")
    assert WORKER_ID.fullmatch(worker_id)
    assert worker_id == instance_id(found, around, boot, "")
    assert 0 < len(found.kind) <= 32


# --- whoami ----------------------------------------------------------------------------------------------


def pretend(mocker: MockerFixture, lineage: list[Process]) -> None:
    mocker.patch.object(process, "lineage", return_value=[*lineage, *OUTSIDE])


def test_describes_the_worker(mocker: MockerFixture) -> None:
    pretend(mocker, recorded("celery-3.3.2-w1"))
    worker = whoami(hostname="host-1.internal", labels="region=eu,zone=b")
    assert isinstance(worker, Worker)
    assert (worker.name, worker.kind, worker.hostname, worker.pid) == ("w1@host-1", "celery", "host-1.internal", 11708)
    assert worker.labels == {"region": "eu", "zone": "b"}
    assert worker.started_at == "2023-11-14T22:39:35+00:00"
    assert datetime.fromisoformat(worker.started_at).tzinfo == timezone.utc
    assert set(worker.resources) == {"cpus", "memory_bytes", "os", "architecture"}
    assert {"python", "provider"} <= set(worker.versions)


def test_operators_name_replaces_the_name_and_not_the_id(mocker: MockerFixture) -> None:
    pretend(mocker, recorded("celery-3.3.2-w1"))
    named = whoami(name="Büro <1> 🚀")
    assert named.name == "Büro <1> 🚀"
    assert named.worker_id == whoami().worker_id
    assert whoami(name=" \n ").name == "w1@host-1"


def test_pods_environment_becomes_labels_below_the_settings(
    monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture
) -> None:
    pretend(mocker, recorded("celery-3.3.2-w1"))
    monkeypatch.setenv("POD_NAME", "airflow-worker-0")
    monkeypatch.setenv("NODE_NAME", "node-7")
    assert whoami(labels="node=mine").labels == {"node": "mine", "pod": "airflow-worker-0"}


@pytest.mark.parametrize(
    ("setting", "image"),
    [
        ("registry.example.com:5000/data/airflow:3.3.2-7", "registry.example.com:5000/data/airflow:3.3.2-7"),
        ("airflow@sha256:" + "0" * 64, "airflow@sha256:" + "0" * 64),
        (" apache/airflow ", "apache/airflow"),
        ("x" * 300, "x" * 250),
        ("büro/airflow", None),
        (" \n", None),
        (None, None),
    ],
)
def test_the_image_is_what_an_operator_says(setting: str | None, image: str | None) -> None:
    assert whoami(image=setting).resources.get("image") == image


def test_as_dict_is_json_and_a_copy() -> None:
    worker = whoami(labels="a=1")
    document = worker.as_dict()
    assert json.loads(json.dumps(document)) == document
    assert list(document) == list(Worker.__dataclass_fields__)
    document["labels"]["a"] = "2"
    assert worker.labels == {"a": "1"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(processes, max_size=3),
    st.fixed_dictionaries(dict.fromkeys(["hostname", "executor", "name", "labels", "image"], odd_text)),
)
def test_any_input_gives_a_bounded_answer(
    mocker: MockerFixture, lineage: list[Process], known: dict[str, str | None]
) -> None:
    pretend(mocker, lineage)
    worker = whoami(**known)
    assert WORKER_ID.fullmatch(worker.worker_id)
    assert 0 < len(worker.name) <= 250
    assert 0 < len(worker.hostname) <= 255
    assert 0 < len(worker.kind) <= 32
    assert len(json.dumps(worker.as_dict())) < 8192 - 256
    json.dumps(worker.as_dict(), ensure_ascii=False).encode()


@pytest.mark.parametrize("value", [7, b"x", object(), ["LocalExecutor"], {"a": "b"}, True])
def test_what_is_no_text_is_as_good_as_nothing(value: Any) -> None:
    assert whoami(hostname=value, executor=value, name=value, labels=value, image=value) == whoami()


def fail(*_args: object, **_kwargs: object) -> Any:
    raise RuntimeError("the machine is on fire")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (process, "lineage"),
        (process, "boot_id"),
        (detection, "detect_worker"),
        (detection, "kubernetes_labels"),
        (machine, "resources"),
        (versions, "versions"),
        (worker_module, "instance_id"),
        (worker_module, "parse_labels"),
        (worker_module, "_iso"),
    ],
)
def test_no_failure_reaches_the_task(mocker: MockerFixture, module: Any, name: str) -> None:
    pretend(mocker, recorded("celery-3.3.2-w1"))
    before = whoami()
    mocker.patch.object(module, name, fail)
    worker = whoami(executor="CeleryExecutor")
    assert WORKER_ID.fullmatch(worker.worker_id)
    assert worker.hostname == before.hostname
    assert json.dumps(worker.as_dict())
    # Only what failed is missing.
    if module in (machine, versions):
        assert (worker.worker_id, worker.name) == (before.worker_id, before.name)


def test_signals_of_airflow_are_not_swallowed(mocker: MockerFixture) -> None:
    """A timeout or a kill that hits the task just now is for Airflow to see."""

    def killed() -> list[Process]:
        raise SystemExit(1)

    mocker.patch.object(process, "lineage", killed)
    with pytest.raises(SystemExit):
        whoami()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
def test_forked_task_processes_of_one_worker_agree() -> None:
    """For real: a worker titled like Celery's starts two tasks one after the other, and is then restarted."""
    child = "from airflow_worker_insight.identity import whoami; import json; print(json.dumps(whoami().as_dict()))"
    # exec -a gives a process a title without setproctitle; the shell stays the parent of both tasks.
    script = f'"$0" -c "{child}"; "$0" -c "{child}"; true'
    title = "[celeryd: w1@host-1:MainProcess] -active- (celery worker)"
    command = ["bash", "-c", 'exec -a "$0" bash -c "$1" "$2"', title, script, sys.executable]
    path = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    lives = []
    for _ in range(2):
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=path)
        first, second = map(json.loads, done.stdout.splitlines())
        assert first == second
        assert first["kind"] == "celery"
        lives.append(first["worker_id"])
    assert lives[0] != lives[1]
