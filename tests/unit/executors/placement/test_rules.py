"""Settings of operators and requests of Dags: valid ones, and messages for invalid ones."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.executors.placement.policy import UnknownStrategyError
from airflow_worker_insight.executors.placement.rules import (
    PlacementConfigError,
    Rules,
    parse_labels,
    read_rules,
    requested_labels,
    requested_worker,
)


def test_rules_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_rules() == Rules("least_loaded", None, "wait", {})
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__PLACEMENT_BACKLOG", "0")
    assert read_rules().backlog == 0


def test_operators_labels_override_reported_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__PLACEMENT_WORKER_LABELS", "*@gpu-*:gpu=yes,w1@gpu-1:zone=a")
    rules = read_rules()
    reported = {"zone": "secure", "region": "eu"}
    assert rules.labels_of_worker("w1@gpu-1", reported) == {"gpu": "yes", "zone": "a"}
    assert rules.labels_of_worker("w2@gpu-1", reported) == {"gpu": "yes"}
    assert rules.labels_of_worker("w1@etl-1", reported) == {}
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__PLACEMENT_TRUST_REPORTS", "True")
    assert read_rules().labels_of_worker("w1@gpu-1", reported) == {"gpu": "yes", "zone": "a", "region": "eu"}
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__PLACEMENT_WORKER_LABELS", "gpu=yes")
    with pytest.raises(PlacementConfigError, match="placement_worker_labels must be a list of node:key=value"):
        read_rules()


@pytest.mark.parametrize(
    ("backlog", "concurrency", "capacity"), [(None, 2, 6), (None, 16, 32), (0, 16, 16), (50, 4, 54)]
)
def test_capacity_is_concurrency_and_backlog(backlog: int | None, concurrency: int, capacity: int) -> None:
    assert Rules("least_loaded", backlog).capacity(concurrency) == capacity


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("strategy", "fastest", "least_loaded, round_robin, sticky"),
        ("backlog", "-1", "0 or more"),
        ("backlog", "many", "0 or more"),
        ("fallback", "drop", "wait, shared_queue"),
        ("slow_from", "often", "1.5 or more, or 0"),
        ("slow_from", "1.1", "1.5 or more, or 0"),
        ("slow_from", "-3", "1.5 or more, or 0"),
        ("slow_from", "nan", "1.5 or more, or 0"),
        ("slow_from", "inf", "1.5 or more, or 0"),
        ("labels", "gpu=yes", "pool:key=value"),
        ("labels", "pool:gpu", "pool:key=value"),
        ("labels", "pool:=yes", "not a valid label key"),
        ("labels", "pool:gpu=", "is not a valid label"),
        ("labels", '{"pool": ', "not valid JSON"),
        ("labels", '{"pool": "gpu"}', "pool 'pool', the labels must be a mapping"),
        ("labels", '{"pool": {"gpu": true}}', "gpu=True is not a valid label"),
    ],
)
def test_invalid_setting_is_rejected(monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str) -> None:
    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__PLACEMENT_{option.upper()}", value)
    with pytest.raises((PlacementConfigError, UnknownStrategyError), match=says):
        read_rules()


def test_when_workers_unseen_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_rules().when_workers_unseen == "send"
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__WHEN_WORKERS_UNSEEN", "hold")
    assert read_rules().when_workers_unseen == "hold"
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__WHEN_WORKERS_UNSEEN", "wait")
    with pytest.raises(PlacementConfigError, match="when_workers_unseen must be one of send, hold"):
        read_rules()


@pytest.mark.parametrize(("setting", "slow_from"), [("", 3.0), ("0", 0.0), ("1.5", 1.5), ("10", 10.0)])
def test_slow_from_is_read(monkeypatch: pytest.MonkeyPatch, setting: str, slow_from: float) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__PLACEMENT_SLOW_FROM", setting)
    assert read_rules().slow_from == slow_from


@pytest.mark.parametrize(
    "setting",
    [
        "gpu:gpu=yes, gpu:zone=a,\neu:region=eu",
        '{"gpu": {"gpu": "yes", "zone": "a"}, "eu": {"region": "eu"}}',
    ],
)
def test_labels_of_pools(setting: str) -> None:
    assert parse_labels(setting) == {"gpu": {"gpu": "yes", "zone": "a"}, "eu": {"region": "eu"}}


@pytest.mark.parametrize("nothing", [None, {}, {"KubernetesExecutor": {}}, "text", {"worker_insight": {}}])
def test_task_without_a_request_requires_no_labels(nothing: Any) -> None:
    assert requested_labels(nothing) == {}


@pytest.mark.parametrize(
    "requested",
    [
        "zone=a",
        ["zone"],
        {"label": {"zone": "a"}},
        {"labels": "zone=a"},
        {"labels": {"zone": 1}},
        {"labels": {"zone": "a\nb"}},
        {"labels": {1: "a"}},
        {"labels": {"": "a"}},
        {"labels": {f"key-{n}": "x" for n in range(33)}},
    ],
)
def test_invalid_labels_are_rejected(requested: Any) -> None:
    with pytest.raises(PlacementConfigError, match="executor_config"):
        requested_labels({"worker_insight": requested})


def test_task_may_request_a_worker() -> None:
    assert requested_worker({"worker_insight": {"worker": "etl-1"}}) == "etl-1"
    assert requested_worker({"worker_insight": {"labels": {}}}) is None


@pytest.mark.parametrize("name", ["", 1, ["etl-1"], "etl\n1", "x" * 300])
def test_invalid_worker_name_is_rejected(name: Any) -> None:
    with pytest.raises(PlacementConfigError, match="is not a valid name"):
        requested_worker({"worker_insight": {"worker": name}})


def test_labels_of_a_task_override_those_of_its_pool() -> None:
    rules = Rules("sticky", 4, pool_labels={"gpu": {"gpu": "yes", "zone": "a"}})
    requested = {"worker_insight": {"labels": {"zone": "b"}}}
    assert rules.labels_for_task("gpu", requested) == {"gpu": "yes", "zone": "b"}
    assert rules.labels_for_task("other", requested) == {"zone": "b"}
    assert rules.labels_for_task(None, None) == {}
