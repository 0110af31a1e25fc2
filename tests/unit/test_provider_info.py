"""What Airflow learns of this package, checked by Airflow's own schema and against the code."""

from __future__ import annotations

import ast
import importlib
import json
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

import airflow_worker_insight
from airflow_worker_insight import compat, config, options
from airflow_worker_insight.provider_info import get_provider_info

PACKAGE = Path(airflow_worker_insight.__file__).parent
OPTIONS: dict[str, dict[str, Any]] = get_provider_info()["config"][config.SECTION]["options"]


def test_airflows_schema_takes_it() -> None:
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_airflow_finds_the_provider() -> None:
    from airflow.providers_manager import ProvidersManager

    assert "airflow-worker-insight" in ProvidersManager().providers


def test_the_entry_points_are_installed() -> None:
    (provider,) = entry_points(group="apache_airflow_provider", name="provider_info").select(
        value="airflow_worker_insight.provider_info:get_provider_info"
    )
    assert provider.load() is get_provider_info
    (plugin,) = entry_points(group="airflow.plugins", name="worker_insight")
    assert plugin.load().name == "worker_insight"


def test_the_version_is_that_of_the_package() -> None:
    assert get_provider_info()["versions"] == [airflow_worker_insight.__version__]


@pytest.mark.parametrize("kind", ["db-managers", "cli", "executors"])
def test_what_it_names_is_there(kind: str) -> None:
    if kind == "db-managers" and not compat.is_airflow_3():
        pytest.skip("Airflow 2.11 has no DB managers and does not read the key")
    for path in get_provider_info()[kind]:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


# --- the options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_typed_and_described(name: str) -> None:
    option = OPTIONS[name]
    assert option.keys() == {"description", "version_added", "type", "example", "default"}
    assert option["type"] in {"boolean", "string", "integer", "float"}
    assert option["description"].endswith(".")
    assert isinstance(option["default"], str)


def test_every_declared_option_is_listed_once() -> None:
    declared = [value for value in vars(options).values() if isinstance(value, options.Option)]
    assert sorted(declared) == sorted(options.OPTIONS)
    assert len(OPTIONS) == len(options.OPTIONS)


def test_limits_fit_the_type_and_the_default() -> None:
    for option in options.OPTIONS:
        assert option.minimum is None or option.type == "integer"
        assert option.minimum is None or not option.default or int(option.default) >= option.minimum
        assert not option.choices or option.default in option.choices
        assert not option.choices or option.example is None or option.example in option.choices


def test_the_choices_are_those_that_executors_take() -> None:
    from airflow_worker_insight.domain.reasons import PlacementStrategy
    from airflow_worker_insight.executors.placement import rules

    assert options.PLACEMENT_STRATEGY.choices == tuple(PlacementStrategy.values())
    assert options.PLACEMENT_FALLBACK.choices == rules.FALLBACKS
    assert options.WHEN_WORKERS_UNSEEN.choices == rules.WHEN_WORKERS_UNSEEN


def read_options() -> set[str]:
    """Return the options that ``config`` reads, from its source."""
    return {
        getattr(options, node.attr).name
        for node in ast.walk(ast.parse((PACKAGE / "config.py").read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "options"
    }


def test_what_is_declared_is_read_and_what_is_read_is_declared() -> None:
    assert read_options() == set(OPTIONS)


def test_options_are_read_in_one_place_only() -> None:
    elsewhere = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"get", "getboolean", "getint", "getfloat", "getlist"}
        and any(
            (isinstance(argument, ast.Constant) and argument.value == config.SECTION)
            or (isinstance(argument, ast.Attribute) and argument.attr == "SECTION")
            for argument in node.args
        )
    ]
    assert elsewhere == []


def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPTIONS:
        monkeypatch.delenv(f"AIRFLOW__WORKER_INSIGHT__{name.upper()}", raising=False)


def as_read() -> dict[str, Any]:
    return {name: getattr(config, name)() for name in OPTIONS}


def test_a_default_counts_whether_or_not_airflow_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task process does not load the providers' configuration."""
    unset(monkeypatch)
    without = as_read()
    for name, option in OPTIONS.items():
        monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__{name.upper()}", option["default"])
    assert as_read() == without
    assert without == {
        "enabled": True,
        "worker_name": None,
        "worker_labels": None,
        "worker_image": None,
        "refresh_interval": 30,
        "heartbeat_timeout": 60,
        "lost_timeout": 180,
        "retention_days": 0,
        "metrics_per_worker": False,
        "placement_strategy": "least_loaded",
        "placement_backlog": None,
        "placement_fallback": "wait",
        "when_workers_unseen": "send",
        "placement_slow_from": "3.0",
        "placement_labels": None,
        "placement_worker_labels": None,
        "placement_trust_reports": False,
        "local_workers": "local-1,local-2",
        "enforce_availability": True,
        "on_finding": None,
        "auto_quarantine": False,
        "insight_enabled": True,
        "insight_interval": 30,
    }


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("enabled", "False", False),
        ("enabled", "true", True),
        ("worker_name", "etl-large-1", "etl-large-1"),
        ("worker_name", "100% ä", "100% ä"),
        ("worker_labels", "region=eu,zone=a", "region=eu,zone=a"),
        ("retention_days", "365", 365),
        ("metrics_per_worker", "True", True),
        ("placement_trust_reports", "True", True),
        ("placement_worker_labels", "*@gpu-*:gpu=yes", "*@gpu-*:gpu=yes"),
    ],
)
def test_what_an_operator_sets_is_read(monkeypatch: pytest.MonkeyPatch, name: str, written: str, read: object) -> None:
    unset(monkeypatch)
    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__{name.upper()}", written)
    assert getattr(config, name)() == read


def test_an_example_is_what_the_option_takes() -> None:
    from airflow_worker_insight.domain.names import parse_labels

    assert parse_labels(OPTIONS["worker_labels"]["example"]) == {"region": "eu-west-1", "zone": "a"}


def test_the_default_executor_is_airflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    assert config.executor() == "CeleryExecutor"
