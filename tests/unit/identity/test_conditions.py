"""What the machine is like, from the processes that workers were seen to have and from files that tests wrote."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.identity import conditions, detection, machine, process
from airflow_worker_insight.identity.conditions import MAX_CHILDREN, memory_free, running_beside
from tests.unit.identity.recordings import TREES, Running, parse_tree, recorded, recorded_tree
from tests.unit.identity.test_process import write as write_process

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def write(proc: Path, running: list[Running]) -> None:
    """Write processes as proc(5) shows them, each with what its threads have started."""
    for ticks, one in enumerate(running):
        write_process(proc, one.pid, one.parent, ticks, "\0".join(one.argv).encode() + b"\0" * 50)
        for thread in {one.pid, *(child.thread for child in running if child.parent == one.pid)}:
            started = [str(child.pid) for child in running if (child.parent, child.thread) == (one.pid, thread)]
            directory = proc / str(one.pid) / "task" / str(thread)
            directory.mkdir(parents=True)
            (directory / "children").write_text("".join(f"{pid} " for pid in started), encoding="ascii")


def beside(proc: Path, running: list[Running], pid: int) -> int | None:
    """Ask as the process ``pid`` of a worker whose main process is the first one."""
    return running_beside(running[0].pid, process.lineage_from_proc(pid, str(proc)), str(proc))


def tasks(running: list[Running]) -> list[int]:
    return [one.pid for one in running if detection.is_task_process(one.argv)]


# --- other tries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_each_of_three_tries_has_two_beside_it(tmp_path: Path, name: str) -> None:
    running = recorded_tree(name)
    write(tmp_path, running)
    assert [beside(tmp_path, running, pid) for pid in tasks(running)] == [2, 2, 2]


def test_after_run_as_user_it_is_the_same(tmp_path: Path) -> None:
    """A new interpreter under ``sudo`` stands where the task process would."""
    running = parse_tree("""
    11708 [celeryd: w1@host-1:MainProcess] -active- (celery worker)
      11788 airflow supervisor: 01a20258-1afa-7631-a6a5-77f1c216440e
        12339 sudo|-E|-H|-u|etl|/opt/airflow/bin/python|-c|from airflow.sdk.execution_time.task_runner import main
          12340 airflow worker -- 01a20258-1afa-7631-a6a5-77f1c216440e
      11789 airflow supervisor: 01a20258-1afa-7631-a6a5-77f1c2164411
        12350 sudo|-E|-H|-u|etl|/opt/airflow/bin/python|-c|from airflow.sdk.execution_time.task_runner import main
    """)
    write(tmp_path, running)
    assert beside(tmp_path, running, 12340) == 1


@pytest.mark.parametrize("lineage", [recorded("pod-3.3.2"), recorded("pod-3.1.8")], ids=["3.3.2", "3.1.8"])
def test_a_pod_runs_one_try(tmp_path: Path, lineage: list[Any]) -> None:
    running = [Running(lineage[1].pid, lineage[1].argv), Running(lineage[0].pid, lineage[0].argv, lineage[1].pid, 1)]
    write(tmp_path, running)
    assert beside(tmp_path, running, lineage[0].pid) == 0


def test_a_worker_without_a_pool_runs_one_try(tmp_path: Path) -> None:
    """The solo pool of 3.3.2: the main process has taken its supervisor's title."""
    running = parse_tree("""
    15912 airflow supervisor: 01a20261-7f1f-7082-b221-f0e5cc67ab34
      15920 airflow serve-logs
      16047 airflow worker -- 01a20261-7f1f-7082-b221-f0e5cc67ab34
    """)
    write(tmp_path, running)
    assert beside(tmp_path, running, 16047) == 0


def test_each_try_of_sequential_executor_is_alone(tmp_path: Path) -> None:
    running = parse_tree("""
    11319 /opt/airflow/bin/python /opt/airflow/bin/airflow scheduler
      11322 airflow scheduler -- DagFileProcessorManager
        11323 airflow scheduler - DagFileProcessor /opt/airflow/dags/p.py
      11327 /opt/airflow/bin/python|/opt/airflow/bin/airflow|tasks|run|p|t0|scheduled__2024-01-01|--local
        11330 airflow task runner: p t0 scheduled__2024-01-01T00:00:00+00:00 2
    """)
    write(tmp_path, running)
    assert beside(tmp_path, running, 11330) == 0


def test_processes_of_no_known_kind_are_not_counted_wrongly(tmp_path: Path) -> None:
    """An executor of one's own: other jobs run, and nothing tells which of them are tries."""
    running = parse_tree("""
    100 /opt/airflow/bin/python|/opt/airflow/bin/airflow|scheduler
      101 my-runner one
        102 airflow worker -- 01a20258-1afa-7631-a6a5-77f1c216440e
      103 my-runner two
        104 something
    """)
    write(tmp_path, running)
    assert beside(tmp_path, running, 102) is None


@pytest.mark.parametrize(("others", "counted"), [(MAX_CHILDREN - 1, True), (MAX_CHILDREN, False)])
def test_number_of_processes_read_is_bounded(tmp_path: Path, others: int, counted: bool) -> None:
    pairs = [
        one
        for number in range(others + 1)
        for one in (
            Running(1000 + number, ("airflow supervisor: x",), 10, 10),
            Running(5000 + number, ("airflow worker -- x",), 1000 + number, 1000 + number),
        )
    ]
    running = [Running(10, ("airflow edge worker: e1",)), *pairs]
    write(tmp_path, running)
    assert beside(tmp_path, running, 5000) == (others if counted else None)


def test_a_main_process_that_is_not_known_or_not_ours(tmp_path: Path) -> None:
    running = recorded_tree("celery-3.3.2")
    write(tmp_path, running)
    lineage = process.lineage_from_proc(26025, str(tmp_path))
    for main_pid in (None, 26025, 1, 99999):
        assert running_beside(main_pid, lineage, str(tmp_path)) is None


def test_what_ends_while_we_look_is_not_counted(tmp_path: Path) -> None:
    running = recorded_tree("celery-3.3.2")
    write(tmp_path, running)
    (tmp_path / "25944" / "cmdline").unlink()
    (tmp_path / "25943" / "task" / "25943" / "children").unlink()
    assert beside(tmp_path, running, 26025) == 0


# --- memory ----------------------------------------------------------------------------------------------------------

MEMINFO = """MemTotal:       16000000 kB
MemFree:          500000 kB
MemAvailable:   12000000 kB
Buffers:"""
GIB = 2**30


def group(root: Path, path: str, files: dict[str, str]) -> None:
    (root / path).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / path / name).write_text(text, encoding="ascii")


def free_within(root: Path, self_cgroup: str, meminfo: str = MEMINFO) -> float | None:
    return memory_free(meminfo, machine.memory_limits(machine.cgroup_directories(self_cgroup, str(root))))


def v2(limit: int | str, used: int, unread: int = 0) -> dict[str, str]:
    stat = f"anon 1\nfile 2\ninactive_anon 3\nactive_file 4\ninactive_file {unread}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def v1(limit: int, used: int, unread: int = 0) -> dict[str, str]:
    stat = f"cache 1\ninactive_file 7\ntotal_cache 2\ntotal_inactive_file {unread}\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    assert free_within(tmp_path, "") == 0.75
    group(tmp_path, "pod", v2("max", 15 * GIB))
    assert free_within(tmp_path, "0::/pod\n") == 0.75
    group(tmp_path, "memory/pod", v1(9223372036854771712, 15 * GIB))
    assert free_within(tmp_path, "4:memory:/pod\n") == 0.75


def test_a_limit_counts_where_it_leaves_less(tmp_path: Path) -> None:
    group(tmp_path, "tight", v2(4 * GIB, 3 * GIB))
    assert free_within(tmp_path, "0::/tight\n") == 0.25
    group(tmp_path, "wide", v2(4 * GIB, GIB // 2))
    assert free_within(tmp_path, "0::/wide\n") == 0.75
    group(tmp_path, "memory/tight", v1(4 * GIB, 3 * GIB))
    assert free_within(tmp_path, "4:memory:/tight\n") == 0.25


def test_the_tightest_of_all_groups_counts(tmp_path: Path) -> None:
    group(tmp_path, "kubepods", v2(8 * GIB, 7 * GIB))
    group(tmp_path, "kubepods/pod1", v2(4 * GIB, 2 * GIB))
    assert free_within(tmp_path, "0::/kubepods/pod1\n") == 0.125


def test_inactive_file_cache_counts_as_free(tmp_path: Path) -> None:
    """A worker that has written large logs is not short of memory."""
    group(tmp_path, "pod", v2(4 * GIB, 4 * GIB, unread=3 * GIB))
    assert free_within(tmp_path, "0::/pod\n") == 0.75
    group(tmp_path, "memory/pod", v1(4 * GIB, 4 * GIB, unread=GIB))
    assert free_within(tmp_path, "4:memory:/pod\n") == 0.25


def test_more_than_allowed_is_used_up_and_no_less_than_nothing(tmp_path: Path) -> None:
    group(tmp_path, "pod", v2(4 * GIB, 5 * GIB))
    assert free_within(tmp_path, "0::/pod\n") == 0
    group(tmp_path, "odd", v2(4 * GIB, GIB, unread=2 * GIB))
    assert free_within(tmp_path, "0::/odd\n") == 0.75


def test_a_limit_without_what_is_used_of_it_says_nothing(tmp_path: Path) -> None:
    group(tmp_path, "pod", {"memory.max": "1048576\n"})
    assert free_within(tmp_path, "0::/pod\n") == 0.75


@pytest.mark.parametrize("meminfo", ["", "MemTotal: 16 kB", "MemTotal: 0 kB\nMemAvailable: 0 kB", "MemTotal\n\nx y z"])
def test_a_machine_that_says_nothing(tmp_path: Path, meminfo: str) -> None:
    assert free_within(tmp_path, "", meminfo) is None


# --- all of it -------------------------------------------------------------------------------------------------------


@needs_proc
def test_this_machine_says_what_it_is_like() -> None:
    found = conditions(os.getppid())
    assert set(found) == {"load", "memory_free", "running_beside"}
    assert found["load"] is not None
    assert 0 <= found["load"] < 10_000
    assert found["memory_free"] is not None
    assert 0 < found["memory_free"] <= 1


def test_no_failure_reaches_the_task(mocker: MockerFixture) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("the machine is on fire")

    before = conditions(None)
    mocker.patch.object(os, "getloadavg", fail)
    assert conditions(None) == {**before, "load": None}
    mocker.patch.object(machine, "own_memory_limits", fail)
    mocker.patch.object(process, "lineage", fail)
    assert conditions(os.getppid()) == {"load": None, "memory_free": None, "running_beside": None}


def test_where_the_number_of_cpus_is_not_known(mocker: MockerFixture) -> None:
    mocker.patch.object(os, "cpu_count", return_value=None)
    assert conditions(None)["load"] is None


def test_the_load_is_that_of_one_cpu(mocker: MockerFixture) -> None:
    mocker.patch.object(os, "getloadavg", return_value=(6.0, 1.0, 1.0))
    mocker.patch.object(os, "cpu_count", return_value=4)
    assert conditions(None)["load"] == 1.5


# --- for real --------------------------------------------------------------------------------------------------------


@needs_proc
def test_children_are_those_of_all_threads() -> None:
    """A process started by another thread than the main one is in that thread's list."""
    import subprocess
    import threading

    known = set(process.children(os.getpid()))
    started: list[subprocess.Popen[bytes]] = []
    seen, done = threading.Event(), threading.Event()

    def start() -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        seen.set()
        done.wait(60)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        assert seen.wait(60)
        assert set(process.children(os.getpid())) - known == {started[0].pid}
        assert not process.has_children(started[0].pid)
    finally:
        done.set()
        thread.join()
        for one in started:
            one.communicate(b"\n")
    assert set(process.children(os.getpid())) == known


@needs_proc
def test_a_kernel_that_tells_of_no_children(tmp_path: Path) -> None:
    running = recorded_tree("celery-3.3.2")
    write(tmp_path, running)
    for one in running:
        (tmp_path / str(one.pid) / "task" / str(one.pid) / "children").unlink()
    with pytest.raises(OSError, match="children"):
        beside(tmp_path, running, 26025)
