"""The setting for a scheduler's local workers."""

from __future__ import annotations

import pytest

from airflow_worker_insight.executors.local.settings import LocalWorker, parse_local_workers
from airflow_worker_insight.executors.placement.rules import PlacementConfigError


@pytest.mark.parametrize(
    ("setting", "parallelism", "expected"),
    [
        ("etl:8, reports:2", 32, [("etl", 8), ("reports", 2)]),
        ("local-1,local-2", 32, [("local-1", 16), ("local-2", 16)]),
        ("a,b,c", 8, [("a", 3), ("b", 3), ("c", 2)]),
        ("a\nb", 4, [("a", 2), ("b", 2)]),
        ("big:6,a,b", 8, [("big", 6), ("a", 1), ("b", 1)]),
        # Each runs at least one, and a given number overrides Airflow's limit.
        ("a,b", 1, [("a", 1), ("b", 1)]),
        ("big:40,a", 8, [("big", 40), ("a", 1)]),
        ("a,b", 0, [("a", 16), ("b", 16)]),
        ("A.b_c-9 : 1", 8, [("A.b_c-9", 1)]),
    ],
)
def test_workers_without_a_number_share_the_slots_left(
    setting: str, parallelism: int, expected: list[tuple[str, int]]
) -> None:
    assert parse_local_workers(setting, parallelism) == [LocalWorker(*item) for item in expected]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("", "item without a name"),
        ("etl:8,,reports:2", "item without a name"),
        (":8", "item without a name"),
        ("etl:8,etl:2", "names the worker etl twice"),
        ("etl,ETL", "names the worker ETL twice"),
        ("etl:0", "whole number from 1 to"),
        ("etl:-1", "whole number from 1 to"),
        ("etl:1.5", "whole number from 1 to"),
        ("etl:", "whole number from 1 to"),
        ("etl:many", "slots in etl:many must be"),
        ("etl:8:zone=a", "whole number from 1 to"),
        ("etl:100000", "whole number from 1 to"),
        ("zone=a", "'zone=a' is not a valid worker name"),
        ("etl@host:2", "'etl@host' is not a valid worker name"),
        ("two words", "'two words' is not a valid worker name"),
        ("x" * 64, "is not a valid worker name"),
        ("local:4", "Airflow's own LocalExecutor"),
        (",".join(f"w{number}" for number in range(65)), "at most 64"),
    ],
)
def test_invalid_setting_is_rejected(setting: str, says: str) -> None:
    with pytest.raises(PlacementConfigError, match=says) as error:
        parse_local_workers(setting, 8)
    assert str(error.value).startswith("[worker_insight] local_workers")
