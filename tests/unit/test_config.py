"""Options with typing errors."""

from __future__ import annotations

import logging

import pytest

from airflow_worker_insight import config


@pytest.mark.parametrize(
    ("option", "read", "default"),
    [
        ("refresh_interval", config.refresh_interval, 30),
        ("heartbeat_timeout", config.heartbeat_timeout, 60),
        ("lost_timeout", config.lost_timeout, 180),
        ("retention_days", config.retention_days, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_number_counts_as_the_default_and_is_said_once(
    option: str, read: object, default: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(read)
    monkeypatch.setattr(config, "_warned", set())
    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__{option.upper()}", "30s")
    with caplog.at_level(logging.WARNING):
        assert [read(), read()] == [default, default]
    (message,) = [one.getMessage() for one in caplog.records if one.name == config.__name__]
    assert option in message
    assert str(default) in message
    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__{option.upper()}", "600")
    assert read() == 600
