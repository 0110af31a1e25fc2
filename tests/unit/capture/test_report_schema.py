"""What of a report is believed."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.capture.report import MAX_REPORT_BYTES, build_report
from airflow_worker_insight.capture.report_schema import RejectedReportError, conditions, parse_report, worker_record
from airflow_worker_insight.domain.attempts import Conditions
from tests.unit.capture.reports import a_report
from tests.unit.database import at

TRY_ID = UUID("0198c5a0-0000-7000-8000-000000000001")


def reason(value: Any) -> str:
    with pytest.raises(RejectedReportError) as rejected:
        parse_report(value)
    return rejected.value.reason


def test_a_report_as_values_and_as_text_are_the_same() -> None:
    report = a_report(TRY_ID)
    assert parse_report(report) == parse_report(json.dumps(report))
    assert parse_report(report).try_id == TRY_ID


def test_report_of_this_process_is_valid() -> None:
    task_instance = SimpleNamespace(id=TRY_ID, hostname="host-1", executor=None)
    report = build_report(task_instance)
    assert parse_report(json.loads(json.dumps(report))).worker.worker_id == report["worker"]["worker_id"]


def test_optional_fields_may_be_missing() -> None:
    worker = {"worker_id": "w", "name": "w", "kind": "celery", "hostname": "h"}
    record = worker_record(parse_report({"version": 1, "try_id": str(TRY_ID), "worker": worker}).worker, job_id=None)
    assert (record.pid, record.started_at, record.engine_name) == (None, None, None)
    assert (record.labels, record.resources, record.versions) == ({}, {}, {})


@pytest.mark.parametrize("missing", ["version", "try_id", "worker"])
def test_a_part_is_missing(missing: str) -> None:
    report = a_report(TRY_ID)
    del report[missing]
    assert reason(report) == "malformed"


@pytest.mark.parametrize("missing", ["worker_id", "name", "kind", "hostname"])
def test_a_part_of_the_worker_is_missing(missing: str) -> None:
    report = a_report(TRY_ID)
    del report["worker"][missing]
    assert reason(report) == "malformed"


@pytest.mark.parametrize("value", [None, 5, 1.5, True, [], {}, "", "hello", "null", "[]", "{", b"{}", object()])
def test_what_is_no_report_at_all(value: Any) -> None:
    assert reason(value) == "malformed"


@pytest.mark.parametrize("version", [0, 2, 99, -1, 10**30])
def test_another_version(version: int) -> None:
    assert reason({**a_report(TRY_ID), "version": version}) == "unknown_version"
    assert reason({"version": version, "anything": "else"}) == "unknown_version"


@pytest.mark.parametrize("version", [None, "1", "2", 1.5, []])
def test_a_version_that_is_none(version: Any) -> None:
    assert reason({**a_report(TRY_ID), "version": version}) == "malformed"


@pytest.mark.parametrize(
    "worker",
    [
        {"worker_id": ""},
        {"worker_id": "x" * 65},
        {"worker_id": "a b"},
        {"worker_id": "a\n"},
        {"worker_id": "ä"},
        {"worker_id": "<b>"},
        {"worker_id": None},
        {"worker_id": "host-abc"},
        {"name": ""},
        {"name": "x" * 251},
        {"name": "two\nlines"},
        {"name": "nul\0"},
        {"name": "tab\t"},
        {"name": "\x7f"},
        {"name": "\x85"},
        {"name": 5},
        {"kind": "x" * 33},
        {"hostname": "x" * 256},
        {"pid": -1},
        {"pid": 2**31},
        {"pid": "many"},
        {"started_at": "yesterday"},
        {"started_at": "2026-03-01T12:00:00"},
        {"started_at": 1e300},
        {"labels": None},
        {"labels": ["zone"]},
        {"labels": {"": "v"}},
        {"labels": {"x" * 65: "v"}},
        {"labels": {"k": "x" * 251}},
        {"labels": {"k\0": "v"}},
        {"labels": {"k": {"nested": "v"}}},
        {"labels": {f"k{number}": "" for number in range(33)}},
        {"resources": {"cpus": -1}},
        {"resources": {"cpus": 2**63}},
        {"resources": {"cpus": float("nan")}},
        {"resources": {"cpus": float("inf")}},
        {"resources": {"cpus": [4]}},
        {"versions": {"airflow": 3}},
        {"engine_name": ""},
        {"engine_name": "x" * 251},
        {"engine_name": "nul\0"},
        {"job_id": 1},
    ],
    ids=lambda worker: json.dumps(worker)[:40],
)
def test_what_a_worker_may_not_say(worker: dict[str, Any]) -> None:
    assert reason(a_report(TRY_ID, **worker)) == "malformed"


def test_a_lone_surrogate_is_no_text() -> None:
    assert reason(a_report(TRY_ID, name="\ud800")) == "malformed"
    assert reason(a_report(TRY_ID, labels={"\udfff": ""})) == "malformed"
    assert reason(json.dumps(a_report(TRY_ID, hostname="a\udc80"))) == "malformed"


@pytest.mark.parametrize(
    "worker",
    [
        {"worker_id": "Aa0._@:-" * 8},
        {"name": "x" * 250},
        {"name": "<script>alert(1)</script> 'quoted' \"twice\" 🐘 ä"},
        {"pid": None},
        {"pid": 0},
        {"labels": {}},
        {"labels": {f"k{number}": "" for number in range(32)}},
        {"resources": {"cpus": 0.5, "memory_bytes": 2**63 - 1, "os": "Debian"}},
        {"engine_name": "w1@büro"},
        {"engine_name": None},
    ],
    ids=lambda worker: json.dumps(worker)[:40],
)
def test_valid_worker_fields_are_stored_unchanged(worker: dict[str, Any]) -> None:
    record = worker_record(parse_report(a_report(TRY_ID, **worker)).worker, job_id=None)
    for name, value in worker.items():
        assert getattr(record, name) == value


@pytest.mark.parametrize(
    "given_conditions",
    [
        {"load": 0, "memory_free": 0, "running_beside": 0},
        {"load": 1e6, "memory_free": 1, "running_beside": 2**31 - 1},
        {"load": None, "memory_free": None, "running_beside": None},
        {"memory_free": 0.25},
        {},
    ],
    ids=str,
)
def test_valid_conditions_are_stored_unchanged(given_conditions: dict[str, Any]) -> None:
    report = parse_report({**a_report(TRY_ID), "conditions": given_conditions})
    assert conditions(report.conditions) == Conditions(**given_conditions)


def test_a_report_may_leave_out_what_the_machine_is_like() -> None:
    report = a_report(TRY_ID)
    del report["conditions"]
    assert conditions(parse_report(report).conditions) == Conditions()


@pytest.mark.parametrize(
    "given_conditions",
    [
        {"load": -0.1},
        {"load": 1e7},
        {"load": float("nan")},
        {"load": float("inf")},
        {"load": "high"},
        {"memory_free": -0.001},
        {"memory_free": 1.001},
        {"memory_free": [0.5]},
        {"running_beside": -1},
        {"running_beside": 2**31},
        {"running_beside": 1.5},
        {"temperature": 60},
        None,
        [],
        "fine",
    ],
    ids=str,
)
def test_what_no_machine_is_like(given_conditions: Any) -> None:
    assert reason({**a_report(TRY_ID), "conditions": given_conditions}) == "malformed"


def test_oversized_is_distinguished_from_malformed() -> None:
    padded = a_report(TRY_ID, name="🐘" * 250, engine_name="🐘" * 250)
    room = MAX_REPORT_BYTES - len(json.dumps(padded))
    assert room > 0
    padded["worker"]["hostname"] = "x" * min(room, 200)
    assert parse_report(padded).worker.hostname == padded["worker"]["hostname"]
    assert reason({**a_report(TRY_ID), "more": "x" * MAX_REPORT_BYTES}) == "oversized"
    assert reason("x" * (MAX_REPORT_BYTES + 1)) == "oversized"
    assert reason(json.dumps({**a_report(TRY_ID), "more": "x" * MAX_REPORT_BYTES})) == "oversized"
    assert reason(["x"] * MAX_REPORT_BYTES) == "oversized"


def test_deep_nesting_and_huge_numbers_end_in_a_word() -> None:
    assert reason("[" * 8000) == "malformed"
    assert reason("[" * 4000 + "]" * 4000) == "malformed"
    nested: Any = []
    for _ in range(50_000):
        nested = [nested]
    assert reason(nested) in {"malformed", "oversized"}
    assert reason(a_report(TRY_ID, resources={"cpus": 10**5000})) in {"malformed", "oversized"}
    assert reason("1" * 6000) == "malformed"


def test_a_value_that_no_json_holds() -> None:
    assert reason({("a", "tuple"): 1}) == "malformed"
    endless: list[Any] = []
    endless.append(endless)
    assert reason(endless) == "malformed"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("2026-03-01T12:00:10+00:00", at(10)),
        ("2026-03-01T13:00:10+01:00", at(10)),
        ("2026-03-01T12:00:10Z", at(10)),
        ("0001-01-01T00:00:00+00:00", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("1999-12-31T00:00:00Z", None),
        ("9999-12-31T23:59:59-23:59", None),
        (None, None),
    ],
)
def test_a_start_that_no_worker_can_have_is_left_out(written: str | None, kept: Any) -> None:
    assert worker_record(parse_report(a_report(TRY_ID, started_at=written)).worker, job_id=None).started_at == kept


def test_only_a_local_worker_belongs_to_a_job() -> None:
    for kind, job_id in (("local", 7), ("celery", None), ("kubernetes", None)):
        assert worker_record(parse_report(a_report(TRY_ID, kind=kind)).worker, job_id=7).job_id == job_id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None, categories=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
PARTS = tuple(a_report(TRY_ID)["worker"])
CONDITIONS = tuple(a_report(TRY_ID)["conditions"])
nearly_reports = st.fixed_dictionaries(
    {"version": st.just(1), "try_id": st.just(str(TRY_ID))},
    optional={
        "worker": st.fixed_dictionaries({}, optional=dict.fromkeys(PARTS, json_values)),
        "conditions": st.fixed_dictionaries({}, optional=dict.fromkeys(CONDITIONS, json_values)),
    },
)


@given(json_values | nearly_reports)
def test_any_value_is_valid_or_rejected_with_a_known_reason(value: Any) -> None:
    try:
        outcome = str(parse_report(value).version)
    except RejectedReportError as rejected:
        outcome = rejected.reason
    assert outcome in {"1", "malformed", "oversized", "unknown_version"}


fit = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=40)


@given(
    st.from_regex(r"[A-Za-z0-9._@:-]{1,64}", fullmatch=True).filter(
        lambda worker_id: not worker_id.startswith("host-")
    ),
    fit,
    st.dictionaries(fit, fit, max_size=5),
    st.none() | st.integers(0, 2**31 - 1),
)
def test_every_valid_description_is_stored_unchanged(
    worker_id: str, name: str, labels: dict[str, str], pid: int | None
) -> None:
    report = a_report(TRY_ID, worker_id=worker_id, name=name, labels=labels, pid=pid)
    for value in (report, json.dumps(report)):
        record = worker_record(parse_report(value).worker, job_id=None)
        assert (record.worker_id, record.name, record.labels, record.pid) == (worker_id, name, labels, pid)
