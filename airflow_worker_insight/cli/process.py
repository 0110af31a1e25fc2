"""Process setup of a command: standard output for its answer only, exit codes for signals.

This module does not import Airflow, which may log to the standard output during its import.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)

RERUN_HINT = "Progress is kept; run the same command again."
"""How to resume most commands after an interruption."""


class Interrupted(KeyboardInterrupt):
    """Raised on SIGINT (Ctrl-C) or SIGTERM; Python itself raises an exception for SIGINT only."""


class _State:
    """State of the whole process while a command runs in it."""

    def __init__(self) -> None:
        self.answer: TextIO | None = None
        self.is_guarded = False
        self.received: list[int] = []
        self.resume_hint: Callable[[], str] | None = None


_state = _State()


@contextmanager
def command_process() -> Iterator[None]:
    """Reserve the standard output for a command's answer, and handle signals while it runs.

    Within another such context it changes nothing.

    :raises SystemExit: with code 128 + n after signal n
    """
    with _exit_on_signal(), _reserved_stdout():
        yield


# --- the answer ------------------------------------------------------------------------------------------------------


def answer() -> TextIO:
    """Return the stream for a command's answer; other output goes to the standard error."""
    return _state.answer or sys.stdout


def print_answer(text: str) -> None:
    """Print a line of the answer and flush it."""
    print(text, file=answer(), flush=True)


@contextmanager
def _reserved_stdout() -> Iterator[None]:
    """Reserve the standard output for the answer.

    Log handlers hold ``sys.stdout`` from the import of Airflow on, structlog reads it for each line, and more is logged
    while the process ends. So this moves the file descriptor itself, and does not move it back.
    """
    if _state.answer is not None:
        yield
        return
    original = sys.stdout
    moved = _move_descriptor(original)
    if moved is not None:
        _state.answer = moved
        try:
            yield
        finally:
            _flush(moved)
        return
    # The process is not the command's own: replace sys.stdout only.
    _state.answer, sys.stdout = original, sys.stderr
    try:
        yield
    finally:
        sys.stdout = original
        _state.answer = None


def _move_descriptor(stdout: TextIO | None) -> TextIO | None:
    """Redirect the standard output to the standard error; return a stream to its old target.

    :return: ``None`` if either is missing, or ``stdout`` is not the process's own stream
    """
    if stdout is not sys.__stdout__ or stdout is None:
        return None
    try:
        number, error_number = stdout.fileno(), sys.stderr.fileno()
        stdout.flush()
        original = os.dup(number)
        os.dup2(error_number, number)
    except (AttributeError, OSError, ValueError):
        return None
    return os.fdopen(
        original, "w", encoding=stdout.encoding, errors=stdout.errors, buffering=1 if stdout.isatty() else -1
    )


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does: keep Python from flushing the rest again at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(1) from None


# --- signals ---------------------------------------------------------------------------------------------------------


def set_resume_hint(how: Callable[[], str] | str) -> None:
    """Set the hint that an interruption prints from now on.

    :param how: the hint, or a function that returns it at that time
    """
    _state.resume_hint = how if callable(how) else lambda: how


def raise_if_interrupted() -> None:
    """Raise :class:`Interrupted` if a signal was received.

    Its exception may be lost: Python drops those that are raised in a destructor or a callback.
    """
    if _state.received:
        raise Interrupted


def record_signal(number: int, _frame: Any = None) -> None:
    """Record a signal, so that the process exits with its code once the command returns."""
    _state.received.append(number)


@contextmanager
def _exit_on_signal() -> Iterator[None]:
    """Exit with code 128 + n after signal n, even if its exception was lost; print the hint."""
    if _state.is_guarded or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.is_guarded, _state.received, _state.resume_hint = True, [], None
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        try:
            install_handler(_interrupt)
            yield
        finally:
            install_handler(record_signal)
    except KeyboardInterrupt:
        # No signal was recorded, so another handler has replaced ours.
        _state.received = _state.received or [signal.SIGINT]
    except BaseException:
        if not _state.received:
            raise
    finally:
        # A second signal may have arrived before note_signal was installed.
        install_handler(record_signal)
        _state.is_guarded = False
        if _state.received:
            _print_hint(_state.received[0])
        for number, handler in previous.items():
            signal.signal(number, handler)
    if _state.received:
        raise SystemExit(128 + _state.received[0])


def install_handler(handler: Callable[[int, Any], None]) -> None:
    """Install a handler for the signals, except those that the shell has set to be ignored.

    :param handler: takes the number of the signal and the current stack frame
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, _frame: Any) -> None:
    _state.received.append(number)
    raise Interrupted


def _print_hint(number: int) -> None:
    # The standard error may be closed: the exit code matters all the same.
    with contextlib.suppress(Exception):
        hint = _state.resume_hint() if _state.resume_hint is not None else RERUN_HINT
        print(f"Interrupted by {signal.Signals(number).name}. {hint}", file=sys.stderr, flush=True)
