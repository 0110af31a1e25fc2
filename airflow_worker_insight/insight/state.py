"""Store and restore a detector between any two events: parts of plain JSON values.

A part is a list or an object under a key: ``clock``, ``timeline`` and ``findings``; one for each worker, stratum and
unit. :func:`changes` returns only those that have changed, so that a step of a job writes little.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_worker_insight.insight import findings, units
from airflow_worker_insight.insight.blocks import RUNNING, Stratum, Try, WorkerRef
from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.insight.lanes import TASK, task_unit
from airflow_worker_insight.insight.population import Seen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_worker_insight.insight.settings import Settings

Parts: TypeAlias = "dict[str, str | None]"
"""JSON texts by key; ``None``: the part is no more."""

VERSION = 3


def dump(detector: Detector) -> dict[str, str]:
    """Return the whole state."""
    keys: set[tuple[str, ...]] = {("worker", worker_id) for worker_id in detector.population.workers}
    keys |= {("seen", str(d), v) for d, of_dimension in enumerate(detector.population.seen) for v in of_dimension}
    keys |= {("stratum", *key) for key in detector.strata}
    keys |= {("unit", str(lane.number), value) for lane in detector.lanes for value in lane.units}
    found = {_name(key): _part(detector, key) for key in keys}
    return {key: text for key, text in {**found, **_common(detector)}.items() if text is not None}


def changes(detector: Detector) -> Parts:
    """Return the parts that may have changed since this was called last, and start anew."""
    found = {_name(key): _part(detector, key) for key in detector.touched}
    detector.touched.clear()
    return {**found, **_common(detector)}


def restore(parts: Mapping[str, str], settings: Settings | None = None) -> Detector:
    """Return the detector that was stored.

    :param parts: what :func:`dump` returned, or all that :func:`changes` ever returned, the latest of each key
    :param settings: those with which it was stored
    :raises ValueError: if another version of this package, or other groups, stored it
    """
    detector = Detector(settings)
    clock = json.loads(parts["clock"])
    if clock["version"] != VERSION or tuple(clock["groups"]) != detector.settings.groups:
        raise ValueError(
            "The stored state is of another version or has other groups. Compute it anew from the history."
        )
    detector.now, detector.today, detector.last_lost_day = clock["now"], clock["today"], clock["last_lost_day"]
    detector.is_decided = clock["is_decided"]
    detector.findings_made, detector.strata_made = clock["findings_made"], clock["strata_made"]
    detector.population.last_index = clock["last_index"]
    stored = {tuple(json.loads(key)): json.loads(text) for key, text in parts.items() if key.startswith("[")}
    refs: dict[int, WorkerRef] = {}
    for (kind, *rest), value in stored.items():
        if kind == "worker":
            ref = WorkerRef(value[0], value[1], tuple(value[2]), value[3])
            refs[ref.index] = detector.population.workers[rest[0]] = ref
        elif kind == "seen":
            detector.population.seen[int(rest[0])][rest[1]] = Seen(*value)
        elif kind == "unit":
            detector.lanes[int(rest[0])].units[rest[1]] = units.from_json(value)
    _restore_tries(detector, stored, refs, json.loads(parts["timeline"]))
    detector.all_findings = [findings.from_json(each) for each in json.loads(parts["findings"])]
    detector.judge_groups()
    detector.count_tested()
    detector.evaluate_open_blocks()
    detector.note_strong()
    detector.schedule_all()
    return detector


def _name(key: tuple[str, ...]) -> str:
    return json.dumps(key, separators=(",", ":"))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _common(detector: Detector) -> dict[str, str]:
    return {
        "clock": _json(
            {
                "version": VERSION,
                "groups": detector.settings.groups,
                "now": detector.now,
                "is_decided": detector.is_decided,
                "today": detector.today,
                "last_lost_day": detector.last_lost_day,
                "findings_made": detector.findings_made,
                "strata_made": detector.strata_made,
                "last_index": detector.population.last_index,
            }
        ),
        "timeline": _json([_entry(detector, each) for each in detector.timeline]),
        "findings": _json([findings.as_json(each) for each in detector.all_findings]),
    }


def _part(detector: Detector, key: tuple[str, ...]) -> str | None:
    kind, *rest = key
    if kind == "worker":
        ref = detector.population.workers.get(rest[0])
        return None if ref is None else _json([ref.index, ref.name, ref.values, ref.last_day])
    if kind == "seen":
        seen = detector.population.seen[int(rest[0])].get(rest[1])
        return (
            None
            if seen is None
            else _json([seen.tries, seen.last_day, seen.first_member, seen.has_several, seen.is_judged])
        )
    if kind == "unit":
        unit = detector.lanes[int(rest[0])].units.get(rest[1])
        return None if unit is None else _json(units.as_json(unit))
    stratum = detector.strata.get(tuple(rest))
    return None if stratum is None else _json(_stratum(detector, stratum))


def _stratum(detector: Detector, stratum: Stratum) -> list[Any]:
    is_home = stratum.kind == TASK
    return [
        stratum.index,
        [_row(each)[:-1] if is_home else _entry(detector, each) for each in stratum.tries],
        stratum.usual,
        [[run, sorted(workers)] for run, workers in stratum.runs.items()],
        stratum.last_day,
        stratum.total,
        stratum.due,
    ]


def _row(each: Try) -> list[Any]:
    return [each.key, each.started, each.worker.index, each.status, each.dropped, each.duration, list(each.task)]


def _entry(detector: Detector, each: Try) -> Any:
    # A try that an open block has is stored there.
    return each.key if detector.tries.get(each.key) is each else _row(each)


def _restore_tries(
    detector: Detector, stored: Mapping[tuple[str, ...], Any], refs: Mapping[int, WorkerRef], timeline: list[Any]
) -> None:
    others: dict[int, Try] = {}

    def made(row: Any) -> Try:
        if isinstance(row, int):
            return detector.tries[row]
        key, started, index, status, dropped, duration, task = row
        known = detector.tries.get(key) or others.get(key)
        if known is None:
            worker = refs[index]
            values = (*worker.values, task_unit(task))
            known = Try(key, started, worker, tuple(task), values, status, duration, dropped)
        return known

    strata = {key[1:]: value for key, value in stored.items() if key[0] == "stratum"}
    for key, value in sorted(strata.items(), key=lambda each: each[0][0] != TASK):
        index, rows, usual, runs, last_day, total, due = value
        stratum = Stratum(index, key[0], key[1:], [], [], usual, {run: set(w) for run, w in runs}, last_day, total, due)
        detector.strata[key] = stratum
        for row in rows:
            # Of its own tries a task does not store its name.
            each = made([*row, key[1:]] if stratum.kind == TASK else row)
            each.strata = (*each.strata, stratum)
            stratum.tries.append(each)
            (detector.tries if stratum.kind == TASK else others).setdefault(each.key, each)
    detector.running = {key: each for key, each in detector.tries.items() if each.status == RUNNING}
    for row in timeline:
        detector.timeline.append(made(row))
