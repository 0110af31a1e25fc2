"""What a command does with its process: a standard output for the answer only, and an end that tells of signals.

It imports nothing of Airflow, which may log to the standard output while it is imported.
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

RUN_AGAIN = "What is done is kept; run the same command again."
"""How most commands go on after they were interrupted."""


class Interrupted(KeyboardInterrupt):
    """The process was told to end: by Ctrl-C, or by SIGTERM, which Python itself does not make an exception of."""


class _State:
    """What is so of the whole process, while a command runs in it."""

    def __init__(self) -> None:
        self.answer: TextIO | None = None
        self.is_guarded = False
        self.received: list[int] = []
        self.how_to_go_on: Callable[[], str] | None = None


_state = _State()


@contextmanager
def command_process() -> Iterator[None]:
    """Run a command: only its answer goes to the standard output, and signal n ends it with 128 + n.

    Within another one it changes nothing.
    """
    with _ends_as_told(), _reserved_stdout():
        yield


# --- the answer ------------------------------------------------------------------------------------------------------


def answer() -> TextIO:
    """Return the stream for what a command answers; everything else that is printed goes to the standard error."""
    return _state.answer or sys.stdout


def say(text: str) -> None:
    """Print a line of the answer, at once."""
    print(text, file=answer(), flush=True)


@contextmanager
def _reserved_stdout() -> Iterator[None]:
    """Keep the standard output for the answer.

    Handlers of logs have kept ``sys.stdout`` since Airflow was imported, structlog looks for it with each line, and
    there are more at the end of the process. So the file descriptor itself is moved, and stays so.
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
    # In a process that is not the command's own.
    _state.answer, sys.stdout = original, sys.stderr
    try:
        yield
    finally:
        sys.stdout = original
        _state.answer = None


def _move_descriptor(stdout: TextIO | None) -> TextIO | None:
    """Let the standard output be another name of the standard error; return a stream of what it was before.

    There may be neither: then it returns ``None``, as for a stream that is not the process's own.
    """
    if stdout is not sys.__stdout__ or stdout is None:
        return None
    try:
        number, error_number = stdout.fileno(), sys.stderr.fileno()
        stdout.flush()
        kept = os.dup(number)
        os.dup2(error_number, number)
    except (AttributeError, OSError, ValueError):
        return None
    return os.fdopen(kept, "w", encoding=stdout.encoding, errors=stdout.errors, buffering=1 if stdout.isatty() else -1)


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except BrokenPipeError:
        # Who reads has read enough, as `head` has; what is left is not flushed again when Python ends.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(1) from None


# --- signals ---------------------------------------------------------------------------------------------------------


def go_on_with(how: Callable[[], str] | str) -> None:
    """Say what a person is told when the command is interrupted from now on."""
    _state.how_to_go_on = how if callable(how) else lambda: how


def raise_if_interrupted() -> None:
    """Raise again what may have been lost: Python drops an exception that a destructor or a callback raises."""
    if _state.received:
        raise Interrupted


def note_signal(number: int, _frame: Any = None) -> None:
    """Note a signal, so that the process ends as it tells once the command returns."""
    _state.received.append(number)


@contextmanager
def _ends_as_told() -> Iterator[None]:
    """End with 128 + n after signal n, whatever became of the exception that it raised, and say how to go on."""
    if _state.is_guarded or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.is_guarded, _state.received, _state.how_to_go_on = True, [], None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        try:
            listen(_interrupt)
            yield
        finally:
            listen(note_signal)
    except KeyboardInterrupt:
        # Without a signal of ours somebody else listens for it.
        _state.received = _state.received or [signal.SIGINT]
    except BaseException:
        if not _state.received:
            raise
    finally:
        # A second signal may have come before the first was only noted.
        listen(note_signal)
        _state.is_guarded = False
        if _state.received:
            _say_how_to_go_on(_state.received[0])
        for number, handler in before.items():
            signal.signal(number, handler)
    if _state.received:
        raise SystemExit(128 + _state.received[0])


def listen(handler: Callable[[int, Any], None]) -> None:
    """Let a function handle the signals, but for those that a shell has set to be ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, _frame: Any) -> None:
    _state.received.append(number)
    raise Interrupted


def _say_how_to_go_on(number: int) -> None:
    # Nobody may read it: that it was interrupted counts all the same.
    with contextlib.suppress(Exception):
        hint = _state.how_to_go_on() if _state.how_to_go_on is not None else RUN_AGAIN
        print(f"Interrupted by {signal.Signals(number).name}. {hint}", file=sys.stderr, flush=True)
