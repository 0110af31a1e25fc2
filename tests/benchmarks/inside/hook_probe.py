"""Measure the listener's first call in fresh task processes below a fake Celery worker.

Above each task process stand its supervisor and the worker's main process, titled as Airflow and Celery title them, so
that the walk through the ancestors is the real one. The channel answers at once: its time is taken out in any case.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from uuid import uuid4

from setproctitle import setproctitle


class CommsDecoder:
    """Stands for the channel to the supervisor: takes a message and answers nothing."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.messages: list[Any] = []

    def send(self, message: Any) -> None:
        """Take a message: the listener has built it, the channel would encode and send it."""
        begin = time.perf_counter()
        self.messages.append(message)
        self.seconds += time.perf_counter() - begin


def task_process() -> dict[str, Any]:
    """Be a task process up to the moment when its task is about to run, and call the listener."""
    from airflow.sdk.execution_time import supervisor, task_runner
    from airflow.sdk.listener import get_listener_manager

    supervisor.block_orm_access()
    try_id = uuid4()
    setproctitle(f"airflow worker -- {try_id}")
    get_listener_manager()  # loads the plugins, ours among them
    listener = sys.modules["airflow_worker_insight.capture.listener"]
    comms = CommsDecoder()
    task_runner.SUPERVISOR_COMMS = comms  # type: ignore[assignment]
    task_instance = task_runner.RuntimeTaskInstance.model_construct(
        id=try_id,
        dag_id="billing_export_hour_00",
        run_id="scheduled__2026-03-01T00:00:00+00:00",
        task_id="extract_line_items",
        map_index=-1,
        try_number=1,
        hostname=socket.gethostname(),
    )
    begin = time.perf_counter()
    listener.on_task_instance_running(task_instance)
    total = time.perf_counter() - begin
    (message,) = comms.messages
    value = message.value
    return {
        "work_ms": (total - comms.seconds) * 1000,
        "kind": value["worker"]["kind"],
        "name": value["worker"]["name"],
        "report_bytes": len(json.dumps(value)),
    }


def supervise(processes: int, output: int) -> None:
    """Fork one task process after the other, as a supervisor does, and pass on what each says."""
    setproctitle("airflow supervisor: id=0 dag_id=billing_export_hour_00")
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            try:
                os.write(output, (json.dumps(task_process()) + "\n").encode())
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            os._exit(1)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--processes", type=int, required=True)
    args = parser.parse_args()
    setproctitle("[celeryd: w1@benchmark:MainProcess] -active- (celery worker --celery-hostname w1@benchmark)")
    # What a supervisor has imported; plugins it has not.
    for name in ("celery", "airflow.sdk.execution_time.supervisor", "airflow.sdk.execution_time.task_runner"):
        importlib.import_module(name)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        supervise(args.processes, write)
    os.close(write)
    with os.fdopen(read) as lines:
        found = [json.loads(line) for line in lines]
    if os.waitpid(pid, 0)[1] or len(found) != args.processes:
        raise SystemExit("a task process failed")
    args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
