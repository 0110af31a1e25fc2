"""Read the small files in which Linux describes itself: one open, one read, one close."""

from __future__ import annotations

import os


def read_start(path: str, length: int) -> bytes:
    """Return at most ``length`` bytes from the start of a file; an ``OSError`` where it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, length)
    finally:
        os.close(descriptor)


def read_text(path: str, length: int = 16384) -> str:
    """Return the same as text without the blanks around it; nothing where it cannot be read."""
    try:
        return read_start(path, length).decode("utf-8", "replace").strip()
    except OSError:
        return ""
