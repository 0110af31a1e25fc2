"""Ask for a fact and do without it where there is no answer: none about a worker is worth a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def safe_call(question: Callable[[], _T], otherwise: _T) -> _T:
    """Return the answer to ``question``, or ``otherwise`` where asking fails."""
    try:
        return question()
    except Exception:  # noqa: BLE001
        return otherwise
