"""Call functions that may never return: in a thread, with a time limit, and one at a time."""

from __future__ import annotations

from threading import Lock, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class CallTimeoutError(TimeoutError):
    """The call did not return in time, or the previous one is still running."""


class TimeLimitedCaller(Generic[T]):
    """Runs one call at a time in a thread.

    It abandons a thread that hangs; such a thread cannot keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._thread: Thread | None = None

    def call(self, func: Callable[[], T], *, seconds: float) -> T:
        """Return what the function returns, or raise what it raises.

        :param seconds: the time limit
        :raises CallTimeoutError: when the call does not return in time
        """
        results: list[T] = []
        errors: list[Exception] = []

        def answer() -> None:
            try:
                results.append(func())
            except Exception as error:  # noqa: BLE001 - raised in the calling thread
                errors.append(error)

        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise CallTimeoutError(f"{self._name} has still not answered the previous call.")
            self._thread = thread = Thread(target=answer, name=f"worker-insight-{self._name}", daemon=True)
            thread.start()
        thread.join(seconds)
        if errors:
            raise errors[0]
        if not results:
            raise CallTimeoutError(f"{self._name} did not answer within {seconds:g} seconds.")
        return results[0]
