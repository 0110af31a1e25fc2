"""Load the recordings of real process trees in ``recorded/``.

They were taken inside ``on_task_instance_running`` from ``/proc``. Only host, user and path names were changed, and the
zero bytes removed that fill up a title.

``lineages.json`` has task processes and their ancestors up to the worker's main process, nearest first; :data:`OUTSIDE`
stands for the processes above that. ``trees`` has all processes of workers while three tries run, one of which has
started processes of its own; each worker could run five or eight.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from airflow_worker_insight.identity.process import Process

BIN = "/opt/airflow/bin"
RECORDED = Path(__file__).parent / "recorded"
LINEAGES = json.loads((RECORDED / "lineages.json").read_text(encoding="utf-8"))
TREES = sorted(path.stem for path in (RECORDED / "trees").iterdir())

EDGE_ENVIRON = {
    "HOSTNAME": "e1",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "airflow.providers.edge3.cli.worker._edge_hostname",
}


def process(pid: int, ticks: int, *argv: str) -> Process:
    return Process(pid=pid, argv=argv, start=str(ticks), create_time=1_700_000_000 + ticks / 100)


OUTSIDE = [
    process(7940, 9500, "bash"),
    process(1, 24, "/sbin/init", "splash"),
]


def recorded(name: str) -> list[Process]:
    """Return a recorded task process and its ancestors."""
    return [process(one["pid"], one["ticks"], *one["argv"]) for one in LINEAGES[name]["processes"]]


class Running(NamedTuple):
    """A process as ``/proc`` shows it, and which thread of which process has started it."""

    pid: int
    argv: tuple[str, ...]
    parent: int = 0
    thread: int = 0


def recorded_tree(name: str) -> list[Running]:
    """Return all processes of a recorded worker, the main process first."""
    return parse_tree((RECORDED / "trees" / f"{name}.txt").read_text(encoding="utf-8"))


def parse_tree(text: str) -> list[Running]:
    """Parse a tree: each line is a pid and a title (or a command, with ``|`` between its words).

    ``pid/thread`` is a process that another thread than the main one has started. ``#`` starts a comment line.
    """
    processes: list[Running] = []
    above: dict[int, int] = {0: 0}
    for line in dedent(text).strip().splitlines():
        if line.startswith("#"):
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        number, _, title = line.strip().partition(" ")
        pid, _, thread = number.partition("/")
        parent = above[depth]
        processes.append(Running(int(pid), tuple(title.split("|")), parent, int(thread or parent)))
        above[depth + 1] = int(pid)
    return processes
