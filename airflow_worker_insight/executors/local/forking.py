"""Start processes from a scheduler: with variables of their own, and without losing the signal to end meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TO_END = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a scheduler to end; its handler raises ``SystemExit``."""


@contextmanager
def with_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Have processes that are started meanwhile begin with these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def late_signals() -> Iterator[dict[int, Any]]:
    """Have signals that ask to end act only after this; yield the handlers that a child has to put back.

    A signal that comes during a fork is handled by the first Python code after it, which is what :mod:`logging` has
    registered for the parent, and what is raised there is ignored (``run_at_forkers`` in CPython's posixmodule.c): the
    scheduler would never hear of it. Blocking the signal is not enough, as another thread may receive it.
    """
    if threading.current_thread() is not threading.main_thread() or multiprocessing.get_start_method() != "fork":
        yield {}
        return
    came: list[int] = []
    handlers: dict[int, Any] = {
        number: signal.signal(number, lambda number, _: came.append(number)) for number in TO_END
    }
    try:
        yield handlers
    finally:
        put_back(handlers)
        for number in came:
            signal.raise_signal(number)


def put_back(handlers: Mapping[int, Any]) -> None:
    """Handle signals as before; one whose handler was not Python's is left to the system's."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def run_as(values: Mapping[str, str], handlers: Mapping[int, Any], run: Callable[..., None], **arguments: Any) -> None:
    """Run something in a new process.

    :param values: the variables of its environment
    :param handlers: what :func:`late_signals` has yielded
    """
    put_back(handlers)
    os.environ.update(values)
    run(**arguments)
