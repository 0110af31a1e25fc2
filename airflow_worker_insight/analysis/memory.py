"""What the analysis knows between two steps, and how it is stored: no I/O.

The stored state is the detector's parts (:mod:`~airflow_worker_insight.insight.state`) and, under names that begin with
``job:``, what follows of the tries that the detector does not know: those that run, of any try number, and those that
have ended but whose starts will be read again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.insight import state
from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.store.tables import start_slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_worker_insight.domain.attempts import AirflowTry
    from airflow_worker_insight.domain.keys import RowKey
    from airflow_worker_insight.domain.tries import AnalyzedTry
    from airflow_worker_insight.insight.settings import Settings

_MICROSECOND = timedelta(microseconds=1)

OPEN, SEEN, TIMES, UNCOUNTED = "job:open:", "job:seen", "job:times", "job:uncounted"


@dataclass(slots=True)
class OpenTry:
    """A try whose end the detector has not been told."""

    analyzed: AnalyzedTry
    slot: int
    """The ten minutes of its start: open tries are stored by it, so that those that run for long stay as they are."""
    asked_at: datetime | None = None
    """When Airflow was asked for its state last."""
    end: AirflowTry | None = None
    """Set once it has ended."""


@dataclass(slots=True)
class Memory:
    """The state of a lease."""

    detector: Detector
    read_until: datetime
    """All tries that started before have been read. Starts after it are read again in the next step."""
    live_since: datetime
    """When the state was begun anew: what was recorded before is history."""
    counted_until: datetime | None = None
    """Statistics have the tries that ended until then, of the state that this one replaces."""
    uncounted: set[RowKey] = field(default_factory=set)
    """Tries that ended before then and that statistics still lack: they were open in that state, or recorded later."""
    fed_until: datetime | None = None
    """The tries that ended until then have ended here too, but for those that are open."""
    slots_until: datetime | None = None
    """Until when the slots of workers have been counted."""
    is_current: bool = False
    """Whether the latest step has read up to its time: while history is read, findings come and go."""
    is_new: bool = False
    """Whether to delete what is stored before this is."""
    open: dict[RowKey, OpenTry] = field(default_factory=dict)
    seen: dict[int, datetime] = field(default_factory=dict)
    """Tries that were read and started at or after ``read_until``, by the detector's key, with their starts."""
    late: set[RowKey] = field(default_factory=set)
    """Notes of late attempts that were read since the state was stored."""
    by_slot: dict[int, set[RowKey]] = field(default_factory=lambda: defaultdict(set))
    """The open tries."""
    dirty: set[int] = field(default_factory=set)
    """Slots whose open tries differ from the stored ones."""

    def add_open(self, analyzed: AnalyzedTry) -> None:
        """Follow a try until it ends."""
        slot = start_slot(analyzed.started_at) or 0
        self.add_stored(analyzed, slot)
        self.dirty.add(slot)

    def add_stored(self, analyzed: AnalyzedTry, slot: int) -> None:
        """Follow a try that is stored as open."""
        self.open[analyzed.row_key] = OpenTry(analyzed, slot)
        self.by_slot[slot].add(analyzed.row_key)

    def remove_open(self, row_key: RowKey) -> None:
        """Forget a try that has ended."""
        slot = self.open.pop(row_key).slot
        self.by_slot[slot].discard(row_key)
        self.dirty.add(slot)

    def is_counted(self, ended: AnalyzedTry) -> bool:
        """Return whether statistics have a try that has ended; if not, count it now."""
        if ended.row_key in self.uncounted:
            self.uncounted.discard(ended.row_key)
            return False
        return self.counted_until is not None and ended.ended_at is not None and ended.ended_at <= self.counted_until

    def advance(self, read_until: datetime) -> None:
        """Move the cursor; it never goes back."""
        if read_until > self.read_until:
            self.read_until = read_until
            self.seen = {key: started_at for key, started_at in self.seen.items() if started_at >= read_until}

    def changes(self) -> dict[str, str | None]:
        """Return the parts that differ from those of the last call, and start anew."""
        parts = state.changes(self.detector)
        for slot in sorted(self.dirty):
            keys = self.by_slot[slot]
            parts[f"{OPEN}{slot}"] = json.dumps(sorted(keys)) if keys else None
            if not keys:
                del self.by_slot[slot]
        self.dirty.clear()
        seen = sorted((key, round((at - self.read_until) / _MICROSECOND)) for key, at in self.seen.items())
        parts[SEEN] = json.dumps(seen, separators=(",", ":"))
        parts[UNCOUNTED] = json.dumps(sorted(self.uncounted), separators=(",", ":"))
        times = (self.live_since, self.counted_until, self.slots_until, self.fed_until)
        parts[TIMES] = json.dumps([each and each.isoformat() for each in times])
        return parts


def new(read_until: datetime, *, now: datetime, settings: Settings | None) -> Memory:
    """Return the state before the first try.

    :param read_until: the start of the history to read
    """
    return Memory(Detector(settings), read_until, live_since=now, slots_until=now, is_new=True)


def counted(parts: Mapping[str, str]) -> tuple[datetime | None, set[RowKey]]:
    """Return what statistics have when a stored state is replaced: see ``Memory.counted_until`` and ``uncounted``.

    :raises Exception: of any type, if it is damaged
    """
    _, counted_until, _, fed_until = _times(parts)
    uncounted = {_row_key(each) for each in json.loads(parts[UNCOUNTED])}
    if fed_until is not None and (counted_until is None or fed_until >= counted_until):
        return fed_until, uncounted | {*_open(parts)}
    # It was itself behind the state that it replaced.
    return counted_until, uncounted


def restore(
    parts: Mapping[str, str], read_until: datetime, settings: Settings | None
) -> tuple[Memory, dict[RowKey, int]]:
    """Return the stored state, and the keys of its open tries with the slots by which they are stored.

    The caller reads these tries and adds them (:meth:`Memory.add_stored`).

    :raises ValueError: if it is of another version or other groups
    :raises KeyError: if a part is missing
    :raises Exception: of any other type, if it is damaged
    """
    ours = {name: text for name, text in parts.items() if name.startswith("job:")}
    detector = state.restore({name: text for name, text in parts.items() if name not in ours}, settings)
    live_since, counted_until, slots_until, fed_until = _times(ours)
    if live_since is None:
        raise KeyError(TIMES)
    memory = Memory(detector, read_until, live_since, counted_until, slots_until=slots_until, fed_until=fed_until)
    memory.uncounted = {_row_key(each) for each in json.loads(ours[UNCOUNTED])}
    memory.seen = {key: read_until + offset * _MICROSECOND for key, offset in json.loads(ours[SEEN])}
    return memory, _open(ours)


def _times(parts: Mapping[str, str]) -> list[datetime | None]:
    return [None if each is None else datetime.fromisoformat(each) for each in json.loads(parts[TIMES])]


def _open(parts: Mapping[str, str]) -> dict[RowKey, int]:
    """Return the keys of the open tries with the slots by which they are stored."""
    return {
        _row_key(each): int(name.removeprefix(OPEN))
        for name, text in parts.items()
        if name.startswith(OPEN)
        for each in json.loads(text)
    }


def _row_key(stored: Sequence[int]) -> RowKey:
    run_key, instance, try_number = stored
    return run_key, instance, try_number
