"""Fixtures of all tests of executors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.capture import counters

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


@pytest.fixture(autouse=True)
def _no_earlier_warnings(mocker: MockerFixture) -> None:
    """Forget what this process has warned of once."""
    mocker.patch.object(counters.process_counters, "_warned", set())
