"""Format numbers, times and Airflow's terms for the pages. Pure functions."""

from __future__ import annotations

from datetime import datetime, timezone

KINDS = {
    "celery": "Celery",
    "local": "Local",
    "kubernetes": "Kubernetes",
    "edge": "Edge",
    "unknown": "unknown kind",
}

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_KIBIBYTE = 1024
_TEN_SECONDS_ROUNDED = 9.95
"""Least seconds that one decimal would show as 10.0."""
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def iso_time(value: datetime) -> str:
    """Return a point in time for programs: ``2026-01-31T08:00:12.000Z``."""
    return value.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_time(value: datetime) -> str:
    """Return a point in time for users: ``2026-01-31 08:00:12 UTC``."""
    return value.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """Return a duration in seconds as text in its two largest units.

    Examples: ``0.42 s``, ``7.5 s``, ``2 min 5 s``, ``3 d 4 h``.
    """
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds:.2f} s" if round(seconds, 2) else "0 s"
    if seconds < _TEN_SECONDS_ROUNDED:
        return f"{seconds:.1f} s"
    remaining = round(seconds)
    for index, (size, unit) in enumerate(_UNITS):
        if remaining >= size:
            smaller, smaller_unit = _UNITS[index + 1] if index + 1 < len(_UNITS) else (1, "s")
            smaller_count = remaining % size // smaller
            return f"{remaining // size} {unit}" + (f" {smaller_count} {smaller_unit}" if smaller_count else "")
    return f"{remaining} s"


def ago(value: datetime, now: datetime) -> str:
    """Return how long ago a point in time was, in the largest unit.

    Examples: ``just now``, ``12 s ago``, ``3 min ago``.
    """
    seconds = (now - value).total_seconds()
    if seconds < 1:
        return "just now"
    for size, unit in (*_UNITS, (1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    raise AssertionError(seconds)


def count(number: int, singular: str, plural: str) -> str:
    """Return a number with its noun: ``1 try``, ``2 tries``, ``5,000 processes``."""
    return f"{number:,} {singular if number == 1 else plural}"


def percent(part: float, whole: float) -> str:
    """Return a share in percent: ``83 %``, ``0.4 %``; empty if there is no whole."""
    if not whole:
        return ""
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 1 or not share else f"{share:.1f} %"


def sentence(text: str) -> list[tuple[str, bool]]:
    """Split a sentence at its backticks into parts, each with whether it is code."""
    return [(part, bool(index % 2)) for index, part in enumerate(text.split("`")) if part]


def state(value: str | None) -> str:
    """Return the state of a task instance as Airflow's UI shows it: ``Up For Retry``."""
    return (value or "no_status").replace("_", " ").title()


def worker_state(value: str | None) -> str:
    """Return the state of a worker as a page shows it; ``None`` means unknown."""
    return (value or "unknown").capitalize()


def kind(value: str) -> str:
    """Return the kind of a worker as a page shows it; an unlisted kind is an executor's name."""
    return KINDS.get(value, value)


def size(number: float) -> str:
    """Return a number of bytes in binary units: ``15.6 GiB``."""
    for unit in _BINARY[:-1]:
        if abs(number) < _KIBIBYTE:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= _KIBIBYTE
    return f"{number:.1f} {_BINARY[-1]}"
