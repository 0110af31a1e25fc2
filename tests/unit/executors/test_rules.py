"""What an operator and a Dag's author may write, and what they are told when it makes no sense."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.executors.placement import UnknownStrategy
from airflow_worker_insight.executors.rules import BadRules, Rules, asked_labels, parse_pool_labels, read_rules


def test_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_rules() == Rules("least_loaded", 4, "wait", {})
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__PLACEMENT_BACKLOG", "-1")
    assert read_rules().backlog == 0


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("strategy", "fastest", "least_loaded, round_robin, sticky"),
        ("fallback", "drop", "wait, shared_queue"),
        ("labels", "gpu=yes", "pool:key=value"),
        ("labels", "pool:gpu", "pool:key=value"),
        ("labels", "pool:=yes", "no key"),
        ("labels", "pool:gpu=", "is no label"),
        ("labels", '{"pool": ', "no JSON"),
        ("labels", '{"pool": "gpu"}', "pool 'pool', the labels are no mapping"),
        ("labels", '{"pool": {"gpu": true}}', "gpu=True is no label"),
    ],
)
def test_a_setting_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str) -> None:
    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__PLACEMENT_{option.upper()}", value)
    with pytest.raises((BadRules, UnknownStrategy), match=says):
        read_rules()


@pytest.mark.parametrize(
    "setting",
    [
        "gpu:gpu=yes, gpu:zone=a,\neu:region=eu",
        '{"gpu": {"gpu": "yes", "zone": "a"}, "eu": {"region": "eu"}}',
    ],
)
def test_labels_of_pools(setting: str) -> None:
    assert parse_pool_labels(setting) == {"gpu": {"gpu": "yes", "zone": "a"}, "eu": {"region": "eu"}}


@pytest.mark.parametrize("nothing", [None, {}, {"KubernetesExecutor": {}}, "text", {"worker_insight": {}}])
def test_a_task_that_asks_for_nothing(nothing: Any) -> None:
    assert asked_labels(nothing) == {}


@pytest.mark.parametrize(
    "asked",
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
def test_a_task_that_asks_for_nonsense_is_told_so(asked: Any) -> None:
    with pytest.raises(BadRules, match="executor_config"):
        asked_labels({"worker_insight": asked})


def test_what_a_task_asks_for_counts_before_its_pool() -> None:
    rules = Rules("sticky", 4, pool_labels={"gpu": {"gpu": "yes", "zone": "a"}})
    asked = {"worker_insight": {"labels": {"zone": "b"}}}
    assert rules.labels_for("gpu", asked) == {"gpu": "yes", "zone": "b"}
    assert rules.labels_for("other", asked) == {"zone": "b"}
    assert rules.labels_for(None, None) == {}
