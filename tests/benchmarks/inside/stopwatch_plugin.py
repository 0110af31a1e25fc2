"""Time the listener in each task process of a real deployment, apart from the channel.

Beside the report it sends an ordinary XCom with the same value over the same channel, before or after it by turns.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin

from airflow_worker_insight.capture import listener

FOLDER = Path(os.environ["AIRFLOW_HOME"], "stopwatch")
ORDINARY_KEY = "an_ordinary_xcom_of_the_same_size"

_report_start = listener._report_start


class Stopwatch(AirflowPlugin):
    """Nothing to add to Airflow."""

    name = "stopwatch"


def _timed(task_instance: Any) -> None:
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import SetXCom

    channel = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if channel is None:
        return _report_start(task_instance)
    kind = type(channel)
    send = kind.send
    sent: list[tuple[Any, float]] = []

    def measured(self: Any, message: Any) -> Any:
        begin = time.perf_counter()
        answer = send(self, message)
        sent.append((message, time.perf_counter() - begin))
        return answer

    def ordinary(value: Any) -> float:
        message = SetXCom(
            key=ORDINARY_KEY,
            value=value,
            dag_id=task_instance.dag_id,
            run_id=task_instance.run_id,
            task_id=task_instance.task_id,
            map_index=task_instance.map_index,
        )
        begin = time.perf_counter()
        send(channel, message)
        return time.perf_counter() - begin

    report_first = task_instance.map_index % 2 == 0
    # Of the size that this worker's report had in an earlier process.
    size = FOLDER / "value.json"
    value = json.loads(size.read_text()) if size.exists() else None
    beside = ordinary(value) if value is not None and not report_first else None
    kind.send = measured
    try:
        begin = time.perf_counter()
        _report_start(task_instance)
        total = time.perf_counter() - begin
    finally:
        kind.send = send
    ((message, round_trip),) = sent
    if report_first:
        beside = ordinary(message.value)
    FOLDER.mkdir(exist_ok=True)
    found = {
        "work_ms": (total - round_trip) * 1000,
        "round_trip_ms": round_trip * 1000,
        "ordinary_ms": None if beside is None else beside * 1000,
        "map_index": task_instance.map_index,
        "kind": message.value["worker"]["kind"],
    }
    (FOLDER / f"{os.getpid()}.{time.time_ns()}.txt").write_text(json.dumps(found))
    size.write_text(json.dumps(message.value))
    return None


listener._report_start = _timed
