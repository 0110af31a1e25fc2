"""What is counted and warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.compat import stats as airflow_stats

if TYPE_CHECKING:
    import pytest
    from pytest_mock import MockerFixture

    from airflow_worker_insight.capture.counters import Counters


def test_counts_add_up(counters: Counters) -> None:
    for name in ("reports.claimed", "reports.dropped.malformed", "reports.claimed"):
        counters.count(name)
    counters.count("tries.inferred", 5)
    assert counters.snapshot() == {"reports.claimed": 2, "reports.dropped.malformed": 1, "tries.inferred": 5}


def test_snapshot_does_not_change(counters: Counters) -> None:
    counters.count("reports.claimed")
    before = counters.snapshot()
    counters.count("reports.claimed")
    assert before == {"reports.claimed": 1}


def test_airflows_stats_get_the_counts_too(counters: Counters, mocker: MockerFixture) -> None:
    stats = mocker.patch.object(airflow_stats, "stats").return_value
    counters.count("reports.claimed")
    counters.count("tries.inferred", 5)
    assert stats.incr.call_args_list == [
        mocker.call("worker_insight.reports.claimed", 1),
        mocker.call("worker_insight.tries.inferred", 5),
    ]


def test_stats_that_fail_lose_no_count(counters: Counters, mocker: MockerFixture) -> None:
    mocker.patch.object(airflow_stats, "stats", side_effect=OSError("no StatsD"))
    counters.count("reports.claimed")
    assert counters.snapshot() == {"reports.claimed": 1}


def test_each_topic_is_warned_of_once(counters: Counters, caplog: pytest.LogCaptureFixture) -> None:
    for topic in ("tables", "reports", "tables"):
        counters.warn_once(topic, "something of %s", topic)
    assert [record.getMessage() for record in caplog.records] == ["something of tables", "something of reports"]
