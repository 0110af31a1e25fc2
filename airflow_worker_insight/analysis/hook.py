"""Call the function of ``[worker_insight] on_finding`` with new and changed findings.

It runs in daemon threads of the process of the analysis, after the findings were committed. So it can neither block nor
fail the analysis; calls that are in the queue when the process ends are lost.
"""

from __future__ import annotations

import importlib
import time
from datetime import datetime, timezone
from queue import Full, Queue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.domain.filters import AllDags
from airflow_worker_insight.domain.findings import FindingState
from airflow_worker_insight.insight.disclosure import finding_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_worker_insight.domain.findings import FindingChanges, StoredFinding

QUEUE_SIZE = 100
"""Calls that wait at most."""

TIMEOUT = 30.0
"""Seconds after which further calls are skipped until the function returns."""


class FindingHook:
    """Calls a function with one finding after the other.

    :param timeout: seconds after which a call has taken too long
    """

    def __init__(self, *, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._queue: Queue[tuple[str, dict[str, Any]]] = Queue(QUEUE_SIZE)
        self._lock = Lock()
        self._thread: Thread | None = None
        self._call: Thread | None = None
        """The latest call."""

    def put(self, path: str, finding: dict[str, Any]) -> None:
        """Queue a call, or skip it if too many wait.

        :param path: dotted path of the function
        """
        try:
            self._queue.put_nowait((path, finding))
        except Full:
            self._skip(path)
            return
        with self._lock:
            # A process that was forked has the queue but not the thread.
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._run, name="worker-insight-on-finding", daemon=True)
                self._thread.start()

    def flush(self, seconds: float) -> bool:
        """Wait until all queued calls have ended; return whether they have.

        :param seconds: how long to wait at most
        """
        until = time.monotonic() + seconds
        while self._queue.unfinished_tasks:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        return True

    def _run(self) -> None:
        while True:
            path, finding = self._queue.get()
            try:
                self._call_or_skip(path, finding)
            finally:
                self._queue.task_done()

    def _call_or_skip(self, path: str, finding: dict[str, Any]) -> None:
        if self._call is not None and self._call.is_alive():
            self._skip(path)
            return
        self._call = Thread(target=_call, args=(path, finding), name="worker-insight-on-finding-call", daemon=True)
        self._call.start()
        self._call.join(self._timeout)
        if self._call.is_alive():
            count("findings.hook.failed")
            warn_once(
                f"hook {path} timeout",
                "[worker_insight] on_finding: %s has not returned for %d seconds. It is not called again until it "
                "returns. Let it hand over slow work, or set time-outs in it.",
                path,
                round(self._timeout),
            )

    def _skip(self, path: str) -> None:
        count("findings.hook.skipped")
        warn_once(
            f"hook {path} skipped",
            "[worker_insight] on_finding: calls of %s are skipped, because it takes too long. The page Insight and "
            "`airflow-worker-insight findings list` have all findings.",
            path,
        )


def _call(path: str, finding: dict[str, Any]) -> None:
    try:
        function = _load(path)
    except Exception as error:  # noqa: BLE001 - a module may raise anything when it is imported
        count("findings.hook.failed")
        warn_once(
            f"hook {path} path",
            "[worker_insight] on_finding: %r cannot be called (%s: %s). Set it to the dotted path of a function in a "
            "module that this process can import, such as my_company.alerts.on_finding, and restart this process.",
            path,
            type(error).__name__,
            error,
        )
        return
    try:
        function(finding)
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything
        count("findings.hook.failed")
        warn_once(
            f"hook {path} failed",
            "[worker_insight] on_finding: %s raised %s: %s. Later failures of it are only counted.",
            path,
            type(error).__name__,
            error,
        )


def _load(path: str) -> Callable[[dict[str, Any]], Any]:
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError("it names no module")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError("it is not callable")
    called: Callable[[dict[str, Any]], Any] = function
    return called


_hook = FindingHook()


def notify(changes: FindingChanges) -> None:
    """Count new findings and queue the calls of the hook; return at once and never raise.

    Call it after the transaction that stored the changes was committed. A finding that had ended when it was stored
    calls nothing: with the first analysis of an old history there may be many.
    """
    try:
        if changes.new:
            count("findings.found", len(changes.new))
        path = config.on_finding()
        if path is not None:
            for finding in _calls(changes):
                _hook.put(path, finding)
    except Exception as error:  # noqa: BLE001 - the analysis must not fail for it
        warn_once("hook", "[worker_insight] on_finding could not be called: %s", error)


def flush(seconds: float) -> bool:
    """Wait until all queued calls have ended, such as before the process ends; return whether they have.

    :param seconds: how long to wait at most
    """
    return _hook.flush(seconds)


def _calls(changes: FindingChanges) -> Iterable[dict[str, Any]]:
    fresh = [stored for stored in changes.new if stored.state != FindingState.CLOSED]
    for stored in (*fresh, *changes.changed):
        action = changes.actions.get(stored.finding_id)
        if action is not None:
            yield {"action": str(action), **_as_rest(stored)}


def _as_rest(stored: StoredFinding) -> dict[str, Any]:
    """Return a finding as the REST API answers it to a reader of all Dags."""
    fields = finding_fields(stored, dag_ids=AllDags(), now=datetime.now(timezone.utc)) or {}
    return {
        name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in fields.items()
    }
