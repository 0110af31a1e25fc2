"""What is counted and warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.capture.counters import count, snapshot, warn_once
from airflow_worker_insight.compat import stats as airflow_stats

if TYPE_CHECKING:
    import pytest


def test_they_add_up() -> None:
    for what in ("reports.claimed", "reports.dropped.malformed", "reports.claimed"):
        count(what)
    count("tries.inferred", 5)
    assert snapshot() == {"reports.claimed": 2, "reports.dropped.malformed": 1, "tries.inferred": 5}


def test_a_snapshot_does_not_change() -> None:
    count("reports.claimed")
    before = snapshot()
    count("reports.claimed")
    assert before == {"reports.claimed": 1}


def test_airflows_stats_get_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, int]] = []

    class Stats:
        def incr(self, name: str, number: int) -> None:
            sent.append((name, number))

    monkeypatch.setattr(airflow_stats, "stats", Stats)
    count("reports.claimed")
    count("tries.inferred", 5)
    assert sent == [("worker_insight.reports.claimed", 1), ("worker_insight.tries.inferred", 5)]


def test_stats_that_fail_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no StatsD")

    monkeypatch.setattr(airflow_stats, "stats", fail)
    count("reports.claimed")
    assert snapshot() == {"reports.claimed": 1}


def test_a_warning_comes_once_for_each_topic(caplog: pytest.LogCaptureFixture) -> None:
    for topic in ("tables", "reports", "tables"):
        warn_once(topic, "something of %s", topic)
    assert [record.getMessage() for record in caplog.records] == ["something of tables", "something of reports"]
