"""Call a function again and again in a daemon thread."""

from __future__ import annotations

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
"""Seconds that :meth:`PeriodicThread.stop` waits for the thread."""


class PeriodicThread:
    """Thread that calls a function, waits, and calls it again until it is stopped.

    An error does not end it. Each type of error is logged once.
    """

    def __init__(
        self,
        run_once: Callable[[], float | None],
        *,
        name: str,
        purpose: str,
        interval: float,
        stop_timeout: float = STOP_SECONDS,
        at_end: Callable[[], object] | None = None,
    ) -> None:
        """Prepare the thread.

        :param run_once: does what is due; returns the seconds to the next call, or ``None`` for the interval
        :param name: the thread's name
        :param purpose: what the function does, for the log: ``poll the workers``
        :param interval: seconds to the next call, also after an error
        :param stop_timeout: seconds that :meth:`stop` waits
        :param at_end: is called last, in the thread as well
        """
        self._run_once = run_once
        self._name = name
        self._purpose = purpose
        self._interval = interval
        self._stop_timeout = stop_timeout
        self._at_end = at_end
        self._stopping = Event()
        self._thread: Thread | None = None
        self._logged: set[type[Exception]] = set()

    @property
    def is_started(self) -> bool:
        """Return whether :meth:`start` was called."""
        return self._thread is not None

    @property
    def is_running(self) -> bool:
        """Return whether the function may be called, or is being called."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; a second call changes nothing."""
        if self._thread is None:
            self._thread = Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the current call and the last one; abandon it if that takes too long."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._stop_timeout)

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._stopping.wait(self._try_once())
        if self._at_end is not None:
            self._at_end()

    def _try_once(self) -> float:
        """Call the function; return the seconds to the next call."""
        try:
            seconds = self._run_once()
        except Exception as error:
            log.debug("Cannot %s", self._purpose, exc_info=True)
            if type(error) not in self._logged:
                self._logged.add(type(error))
                log.warning(
                    "Airflow Worker Insight cannot %s now and will try again: %s: %s",
                    self._purpose,
                    type(error).__name__,
                    error,
                )
            return self._interval
        return self._interval if seconds is None else seconds
