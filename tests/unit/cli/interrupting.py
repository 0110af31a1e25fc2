"""Run a command again and again, each time in a process that gets a signal at another moment: a program.

It prints, as JSON, how each of them ended and what it wrote to its two outputs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from airflow_worker_insight import cli
from airflow_worker_insight.capture import backfill

# Each Dag run is a batch of its own. The command imports the function later.
backfill.reconcile_selected = partial(backfill.reconcile_selected, runs_per_read=1)  # type: ignore[assignment]


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(template: str, database: str, points: int, arguments: list[str]) -> None:
    """Run the command once to count the events that Python's profiler tells of, and then with a signal at some.

    The first of the events are those of its imports, unless they are named in front of the command.
    """
    while arguments[0].startswith("airflow_worker_insight."):
        import_module(arguments.pop(0))
    ended, events, *printed = _run(template, database, arguments)
    assert ended == 0, printed
    rows = []
    for point in range(1, points):
        number = SIGNALS[point % len(SIGNALS)]
        ended, _, out, error = _run(template, database, arguments, number, round(events * point / points))
        rows.append({"signal": number, "ended": ended, "out": out, "error": error})
    print(json.dumps(rows))


def _run(
    template: str, database: str, arguments: list[str], number: int = 0, after: int = -1
) -> tuple[int, int, str, str]:
    shutil.copyfile(template, database)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("count", "out", "error")]
        process = os.fork()
        if process == 0:
            _child(files, arguments, number, after)
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        count, out, error = (path.read_text() if path.exists() else "" for path in files)
        return ended, int(count or 0), out, error


def _child(files: list[Path], arguments: list[str], number: int, after: int) -> None:
    for target, path in zip((1, 2), files[1:], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), target)
    events = 0

    def count(_frame: Any, _event: str, _arg: Any) -> None:
        nonlocal events
        events += 1
        if events == after:
            sys.setprofile(None)
            os.kill(os.getpid(), number)

    code = 1
    try:
        sys.setprofile(count)
        cli.main(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        # As Python does with one that nobody has caught.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001  (the parent reads it)
        traceback.print_exc()
    finally:
        sys.setprofile(None)
        files[0].write_text(str(events))
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
