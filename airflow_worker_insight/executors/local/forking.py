"""Start of processes from a scheduler: set their environment and lose no signal to end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a scheduler to end; its handler raises ``SystemExit``."""


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes started within the context."""
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
def defer_signals() -> Iterator[dict[int, Any]]:
    """Defer signals that ask to end; yield the handlers that a child process must restore.

    A signal that arrives during a fork is handled by the first Python code after it, which is the function that
    :mod:`logging` has registered for the parent. Exceptions raised there are ignored (``run_at_forkers`` in CPython's
    posixmodule.c), so the scheduler would miss the signal. Blocking the signal is not enough: another thread may
    receive it.
    """
    if threading.current_thread() is not threading.main_thread() or multiprocessing.get_start_method() != "fork":
        yield {}
        return
    received: list[int] = []
    handlers: dict[int, Any] = {
        number: signal.signal(number, lambda number, _: received.append(number)) for number in STOP_SIGNALS
    }
    try:
        yield handlers
    finally:
        restore_handlers(handlers)
        for number in received:
            signal.raise_signal(number)


def restore_handlers(handlers: Mapping[int, Any]) -> None:
    """Restore signal handlers; the system's default replaces those not set from Python."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def run_with_environment(
    values: Mapping[str, str], handlers: Mapping[int, Any], run: Callable[..., None], **arguments: Any
) -> None:
    """Run a function in a new process, with restored signal handlers and its environment.

    :param values: the environment variables to set
    :param handlers: the handlers that :func:`defer_signals` yielded
    :param arguments: the keyword arguments of ``run``
    """
    restore_handlers(handlers)
    os.environ.update(values)
    run(**arguments)
