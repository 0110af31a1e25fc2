"""Call a function without raising: no fact about a worker is worth a failed task."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def safe_call(func: Callable[[], _T], default: _T) -> _T:
    """Return the result of ``func``, or ``default`` if it raises."""
    try:
        return func()
    except Exception:  # noqa: BLE001 - the purpose of this function
        return default
