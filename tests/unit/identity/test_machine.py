"""CPUs, memory and system, with the limits of cgroups of both versions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.identity import machine

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

CPUS = machine.cpus({})
MEMORY = machine.memory_bytes([])


def memory_bytes(groups: dict[str, list[str]]) -> int | None:
    return machine.memory_bytes(machine.memory_limits(groups))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_without_limits_it_is_the_machine() -> None:
    assert CPUS is not None
    assert 1 <= CPUS <= (os.cpu_count() or 1)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert physical == MEMORY


@pytest.mark.parametrize(("quota", "cpus"), [("50000 100000", 0.5), ("33333 100000", 0.33), ("100000 100000", 1)])
def test_limits_of_cgroup_v2(tmp_path: Path, quota: str, cpus: float) -> None:
    write(tmp_path / "kubepods/pod1/cpu.max", f"{quota}\n")
    write(tmp_path / "kubepods/pod1/memory.max", "1048576\n")
    groups = machine.cgroup_directories("0::/kubepods/pod1\n", str(tmp_path))
    assert machine.cpus(groups) == cpus
    assert isinstance(machine.cpus(groups), type(cpus))
    assert memory_bytes(groups) == 1048576


def test_limit_of_an_ancestor_applies(tmp_path: Path) -> None:
    write(tmp_path / "a/b/memory.max", "max\n")
    write(tmp_path / "a/memory.max", "2097152\n")
    write(tmp_path / "a/b/cpu.max", "max 100000\n")
    write(tmp_path / "cpu.max", "25000 100000\n")
    groups = machine.cgroup_directories("0::/a/b\n", str(tmp_path))
    assert memory_bytes(groups) == 2097152
    assert machine.cpus(groups) == 0.25


def test_limits_of_cgroup_v1_in_a_container(tmp_path: Path) -> None:
    """The paths are the host's, the mount shows only the container's own group."""
    write(tmp_path / "cpu/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "memory/memory.limit_in_bytes", "4194304\n")
    text = "9:name=systemd:/docker/1f\n5:memory:/docker/1f\n2:cpuset:/x\n1:cpu,cpuacct:/docker/1f\n0::/\n"
    groups = machine.cgroup_directories(text, str(tmp_path))
    assert groups["memory"] == [f"{tmp_path}/memory/docker/1f", f"{tmp_path}/memory/docker", f"{tmp_path}/memory"]
    assert machine.cpus(groups) == 0.5
    assert memory_bytes(groups) == 4194304


@pytest.mark.parametrize(
    ("cpu", "memory"),
    [
        ("max 100000", "max"),
        ("-1 100000", "9223372036854771712"),
        ("0 0", "0"),
        ("", ""),
        ("100000", "x"),
        ("9999999 1", "-5"),
    ],
)
def test_no_limit_and_nonsense_leave_the_machine(tmp_path: Path, cpu: str, memory: str) -> None:
    write(tmp_path / "cpu.max", cpu)
    write(tmp_path / "memory.max", memory)
    write(tmp_path / "cpu/cpu.cfs_quota_us", "-1")
    write(tmp_path / "memory/memory.limit_in_bytes", "9223372036854771712")
    groups = machine.cgroup_directories("0::/\n1:cpu:/\n2:memory:/\n", str(tmp_path))
    assert machine.cpus(groups) == CPUS
    assert memory_bytes(groups) == MEMORY


def test_no_limit_is_not_taken_for_a_size(tmp_path: Path, mocker: MockerFixture) -> None:
    def unknown(name: str) -> int:
        raise ValueError(name)

    mocker.patch.object(os, "sysconf", unknown)
    write(tmp_path / "memory/memory.limit_in_bytes", "9223372036854771712")
    groups = machine.cgroup_directories("2:memory:/\n", str(tmp_path))
    assert memory_bytes(groups) is None
    write(tmp_path / "memory/memory.limit_in_bytes", "4194304")
    assert memory_bytes(groups) == 4194304


@pytest.mark.parametrize("text", ["", "\n", "nonsense", "1", "0::", "0::/../../etc", "::::", "1:cpu"])
def test_any_cgroup_file_is_read_without_leaving_the_mount(text: str) -> None:
    for directories in machine.cgroup_directories(text, "/mount").values():
        assert all(path.startswith("/mount") and ".." not in path for path in directories)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n', "Debian GNU/Linux 12 (bookworm)"),
        ("PRETTY_NAME=Alpine\n", "Alpine"),
        ("PRETTY_NAME='Wolfi' \n", "Wolfi"),
        (f'PRETTY_NAME="{"x" * 300}"', "x" * 64),
        ("NOT_PRETTY_NAME=x\n", ""),
        ("", ""),
    ],
)
def test_name_of_the_system(text: str, name: str) -> None:
    assert machine.os_name(text) == name


def test_resources_are_complete_and_plain() -> None:
    found = machine.resources()
    assert set(found) == {"cpus", "memory_bytes", "os", "architecture"}
    assert found["architecture"] == os.uname().machine
    assert found["os"]
