"""Ask what may never answer: in a thread of its own, for a limited time, and never twice at once."""

from __future__ import annotations

from threading import Lock, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class NoAnswerError(TimeoutError):
    """The answer did not come in time, or the question before still waits for its own."""


class Bounded(Generic[T]):
    """Asks one question at a time. A thread that hangs is left behind; it cannot keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._thread: Thread | None = None

    def ask(self, question: Callable[[], T], *, seconds: float) -> T:
        """Return the answer, or raise what the question raises.

        :raises NoAnswerError: when there is no answer within so many seconds
        """
        answers: list[T] = []
        errors: list[Exception] = []

        def answer() -> None:
            try:
                answers.append(question())
            except Exception as error:  # noqa: BLE001
                errors.append(error)

        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise NoAnswerError(f"The look before still waits for an answer of {self._name}.")
            self._thread = thread = Thread(target=answer, name=f"worker-insight-{self._name}", daemon=True)
            thread.start()
        thread.join(seconds)
        if errors:
            raise errors[0]
        if not answers:
            raise NoAnswerError(f"{self._name} did not answer within {seconds:g} seconds.")
        return answers[0]
