"""Split what one statement could not take into batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of at most ``size``, in their order."""
    as_list = list(items)
    for start in range(0, len(as_list), size):
        yield as_list[start : start + size]
