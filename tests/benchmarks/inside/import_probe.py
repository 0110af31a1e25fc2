"""Import one plugin as a task process does, after Airflow's imports, and print the cost."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

# What the task process has imported by the time it looks for plugins, the plugins' manager included.
BEFORE = {
    "3": ["airflow.sdk.execution_time.task_runner", "airflow.sdk.plugins_manager", "airflow.sdk.listener"],
    "2": [
        "airflow.task.task_runner.standard_task_runner",
        "airflow.models.taskinstance",
        "airflow.cli.commands.task_command",
        "airflow.plugins_manager",
        "airflow.listeners.listener",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--major", choices=BEFORE, required=True)
    parser.add_argument("--plugin", required=True, help="module:class")
    parser.add_argument("--then", help="a module that the first call of the listener imports as well")
    args = parser.parse_args()

    for name in BEFORE[args.major]:
        importlib.import_module(name)
    if args.major == "3":
        # By this a plugin can tell a task process: there is a supervisor to talk to.
        comms = importlib.import_module("airflow.sdk.execution_time.comms")
        runner = sys.modules["airflow.sdk.execution_time.task_runner"]
        vars(runner)["SUPERVISOR_COMMS"] = object.__new__(comms.CommsDecoder)
    known = set(sys.modules)

    module, _, attribute = args.plugin.partition(":")
    begin = time.perf_counter()
    plugin = getattr(importlib.import_module(module), attribute)
    listeners = list(plugin().listeners)
    imported = time.perf_counter()
    added = set(sys.modules) - known
    found: dict[str, object] = {"ms": (imported - begin) * 1000, "modules": sorted(added), "listeners": len(listeners)}

    if args.then:
        begin = time.perf_counter()
        importlib.import_module(args.then)
        found["then_ms"] = (time.perf_counter() - begin) * 1000
        found["then_modules"] = sorted(set(sys.modules) - known - added)
    args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
