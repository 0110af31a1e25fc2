"""What is counted and warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_worker_insight import compat
from airflow_worker_insight.capture.counters import count, snapshot, warn_once

if TYPE_CHECKING:
    import pytest


def test_they_add_up() -> None:
    for what in ("claimed", "dropped.malformed", "claimed"):
        count(what)
    assert snapshot() == {"claimed": 2, "dropped.malformed": 1}


def test_a_snapshot_does_not_change() -> None:
    count("claimed")
    before = snapshot()
    count("claimed")
    assert before == {"claimed": 1}


def test_airflows_metrics_get_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(compat, "count_metric", lambda name, _: sent.append(name))
    count("claimed")
    assert sent == ["worker_insight.reports.claimed"]


def test_airflow_takes_them() -> None:
    compat.count_metric("worker_insight.reports.claimed", {})


def test_metrics_that_fail_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no StatsD")

    monkeypatch.setattr(compat, "count_metric", fail)
    count("claimed")
    assert snapshot() == {"claimed": 1}


def test_a_warning_comes_once_for_each_topic(caplog: pytest.LogCaptureFixture) -> None:
    for topic in ("tables", "reports", "tables"):
        warn_once(topic, "something of %s", topic)
    assert [record.getMessage() for record in caplog.records] == ["something of tables", "something of reports"]
