"""The walk up a ``/proc`` that a test wrote, and up the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.identity import process

if TYPE_CHECKING:
    from pathlib import Path

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def write(proc: Path, pid: int, parent: int, ticks: int, cmdline: bytes, comm: str = "python") -> None:
    """Write a process as proc(5) shows it: field 4 is the parent, field 22 the start."""
    directory = proc / str(pid)
    directory.mkdir()
    fields = ["S", str(parent), *["0"] * 17, str(ticks), *["0"] * 30]
    (directory / "stat").write_text(f"{pid} ({comm}) {' '.join(fields)}\n", encoding="utf-8")
    (directory / "cmdline").write_bytes(cmdline)


def test_walk_ends_at_the_first_process(tmp_path: Path) -> None:
    write(tmp_path, 30, 20, 900, b"airflow worker -- 01a2\0\0\0\0\0")
    write(tmp_path, 20, 1, 800, b"/bin/python\0/bin/airflow\0scheduler\0")
    write(tmp_path, 1, 0, 5, b"")
    found = process.lineage_from_proc(30, str(tmp_path))
    assert [(each.pid, each.argv, each.start) for each in found] == [
        (30, ("airflow worker -- 01a2",), "900"),
        (20, ("/bin/python", "/bin/airflow", "scheduler"), "800"),
        (1, ("",), "5"),
    ]
    assert found[1].title == "/bin/python /bin/airflow scheduler"


def test_command_name_may_imitate_the_fields_after_it(tmp_path: Path) -> None:
    write(tmp_path, 30, 20, 900, b"evil\0", comm="a) S 1 2 3 (b")
    write(tmp_path, 20, 0, 800, b"parent\0")
    assert [(each.pid, each.start) for each in process.lineage_from_proc(30, str(tmp_path))] == [
        (30, "900"),
        (20, "800"),
    ]


def test_hidden_or_broken_parent_ends_the_walk(tmp_path: Path) -> None:
    write(tmp_path, 30, 20, 900, b"task\0")
    assert [each.pid for each in process.lineage_from_proc(30, str(tmp_path))] == [30]
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "stat").write_text("20 (no", encoding="utf-8")
    (tmp_path / "20" / "cmdline").write_bytes(b"x")
    assert [each.pid for each in process.lineage_from_proc(30, str(tmp_path))] == [30]


def test_parent_younger_than_its_child_is_another_process(tmp_path: Path) -> None:
    write(tmp_path, 30, 20, 900, b"task\0")
    write(tmp_path, 20, 0, 901, b"reused pid\0")
    assert [each.pid for each in process.lineage_from_proc(30, str(tmp_path))] == [30]


def test_circle_ends(tmp_path: Path) -> None:
    write(tmp_path, 30, 20, 900, b"a\0")
    write(tmp_path, 20, 30, 900, b"b\0")
    assert len(process.lineage_from_proc(30, str(tmp_path))) == 64


def test_command_line_is_read_in_part_and_need_not_be_text(tmp_path: Path) -> None:
    write(tmp_path, 30, 0, 900, b"\xff\xfe" + b"x" * 100_000)
    (found,) = process.lineage_from_proc(30, str(tmp_path))
    assert found.title.startswith("��x")
    assert len(found.title) == 4096


@needs_proc
def test_real_ancestry() -> None:
    found = process.lineage()
    assert [each.pid for each in found[:2]] == [os.getpid(), os.getppid()]
    assert found[0].create_time is not None
    assert found[0].create_time <= time.time() < found[0].create_time + 86_400
    assert found == process.lineage()[: len(found)] or found[0].start == process.lineage()[0].start


@needs_proc
def test_start_is_the_kernels_and_the_same_for_every_observer() -> None:
    """A child sees the start of its parent exactly as the parent sees its own."""
    code = "from airflow_worker_insight.identity.process import lineage; print(lineage()[1].start)"
    seen = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert seen.stdout.strip() == process.lineage()[0].start


@needs_proc
def test_psutil_is_not_needed_and_not_loaded() -> None:
    """After ``run_as_user`` in 3.0 and 3.1 a task process has not loaded it."""
    code = (
        "import os, sys; from airflow_worker_insight import identity;"
        "identity.whoami(); facts = identity.conditions(os.getppid());"
        "print(len(identity.process_id()), facts['memory_free'] is not None, 'psutil' in sys.modules)"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert seen.stdout.split() == ["24", "True", "False"]


def test_without_proc_psutil_tells_the_same() -> None:
    psutil = pytest.importorskip("psutil")
    found = process.lineage_from_psutil()
    assert [each.pid for each in found[:2]] == [os.getpid(), os.getppid()]
    assert found[0].create_time == psutil.Process().create_time()
    # A test runner may have given the process another title.
    assert list(found[0].argv) == psutil.Process().cmdline()


@needs_proc
def test_boot_and_namespace_are_known() -> None:
    assert len(process.boot_id()) == 36
    assert process.pid_namespace().isdigit()
