"""Polls whose clock and sources a test decides."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.registry import poll as module
from tests.unit.registry.polling import Time

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


@pytest.fixture
def time(mocker: MockerFixture) -> Time:
    """Return the database's clock of polls, which the test moves."""
    moving = Time()
    mocker.patch.object(module, "database_now", moving)
    return moving


@pytest.fixture
def sources(mocker: MockerFixture, time: Time) -> list[Any]:
    """Return the list of sources that are configured, to be filled by the test."""
    assert time.offset == timedelta(0)
    configured: list[Any] = []
    mocker.patch.object(module, "configured_sources", return_value=configured)
    return configured
