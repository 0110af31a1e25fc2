"""Options whose value is invalid."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import config, options
from airflow_worker_insight.config import OptionReader

if TYPE_CHECKING:
    from airflow_worker_insight.options import Option


@pytest.mark.parametrize(
    ("option", "written", "default", "valid"),
    [
        (options.REFRESH_INTERVAL, "30s", 30, "600"),
        (options.REFRESH_INTERVAL, "0", 30, "1"),
        (options.HEARTBEAT_TIMEOUT, "", 60, "600"),
        (options.LOST_TIMEOUT, "-1", 180, "600"),
        (options.RETENTION_DAYS, "0.5", 0, "600"),
        (options.RETENTION_DAYS, "-30", 0, "600"),
        (options.ENABLED, "perhaps", True, "False"),
        (options.PLACEMENT_TRUST_REPORTS, "perhaps", False, "True"),
        (options.METRICS_PER_WORKER, "", False, "True"),
    ],
    ids=lambda value: value.name if isinstance(value, options.Option) else repr(value),
)
def test_an_invalid_value_is_logged_once_and_replaced_by_the_default(
    option: Option,
    written: str,
    default: object,
    valid: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = OptionReader()
    read: Any = reader.boolean if option.type == "boolean" else reader.integer
    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__{option.name.upper()}", written)
    with caplog.at_level(logging.WARNING):
        assert [read(option), read(option)] == [default, default]
    (message,) = [record.getMessage() for record in caplog.records if record.name == config.__name__]
    assert f"[worker_insight] {option.name}" in message
    assert str(default) in message
    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__{option.name.upper()}", valid)
    assert str(read(option)) == valid


@pytest.mark.parametrize("option", [one for one in options.OPTIONS if one.type in {"boolean", "integer"}])
def test_no_value_of_an_option_is_an_error(option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    for written in ("", "nonsense", "-1", "1e9", "\x01"):
        monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__{option.name.upper()}", written)
        getattr(config, option.name)()


def test_a_lost_timeout_is_never_shorter_than_the_heartbeat_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__HEARTBEAT_TIMEOUT", "600")
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__LOST_TIMEOUT", "60")
    assert config.lost_timeout() == 600
