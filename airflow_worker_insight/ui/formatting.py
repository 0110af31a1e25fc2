"""Numbers, times and Airflow's words as a reader wants them. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

KINDS = {
    "celery": "Celery",
    "local": "Local",
    "kubernetes": "Kubernetes",
    "edge": "Edge",
    "unknown": "unknown kind",
}

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time for a ``<time>`` element: ``iso`` for programs, ``text`` in UTC for people."""

    iso: str
    text: str

    @property
    def bare(self) -> str:
        """The same without the zone, for a column whose heading names it."""
        return self.text.removesuffix(" UTC")


def moment(value: datetime | None) -> Moment | None:
    """Return a point in time as the pages write it, or ``None`` for none."""
    if value is None:
        return None
    utc = value.astimezone(timezone.utc)
    iso = utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Moment(iso=iso, text=utc.strftime("%Y-%m-%d %H:%M:%S UTC"))


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units: ``0.42 s``, ``7.5 s``, ``2 min 5 s``, ``3 d 4 h``."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds:.2f} s" if seconds >= 0.005 else "0 s"  # noqa: PLR2004
    if seconds < 9.95:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    left = round(seconds)
    for index, (size, unit) in enumerate(_UNITS):
        if left >= size:
            smaller, smaller_unit = _UNITS[index + 1] if index + 1 < len(_UNITS) else (1, "s")
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{left} s"


def ago(value: datetime, now: datetime) -> str:
    """Return how long ago a point in time is, in its largest unit: ``just now``, ``12 s ago``, ``3 min ago``."""
    seconds = (now - value).total_seconds()
    if seconds < 1:
        return "just now"
    for size, unit in (*_UNITS, (1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    raise AssertionError(seconds)


def count(number: int, singular: str, plural: str) -> str:
    """Return ``1 try``, ``2 tries``, ``5,000 processes``."""
    return f"{number:,} {singular if number == 1 else plural}"


def state(value: str | None) -> str:
    """Return a task instance's state as Airflow's UI writes it: ``Up For Retry``."""
    return (value or "no_status").replace("_", " ").title()


def worker_state(value: str | None) -> str:
    """Return a worker's state as a page writes it; ``None`` is one of which nothing tells."""
    return (value or "unknown").capitalize()


def kind(value: str) -> str:
    """Return a worker's kind as a page writes it; an unknown one is an executor's own name."""
    return KINDS.get(value, value)


def size(number: float) -> str:
    """Return a number of bytes in binary units: ``15.6 GiB``."""
    for unit in _BINARY[:-1]:
        if abs(number) < 1024:  # noqa: PLR2004
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} {_BINARY[-1]}"
