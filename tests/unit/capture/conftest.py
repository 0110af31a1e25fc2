"""A claimer and counters for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.capture import claim
from airflow_worker_insight.capture.claim import Claimer
from airflow_worker_insight.capture.counters import Counters
from tests.unit.bounds import ANY_MACHINE, ANY_MACHINE_EXPLAINS

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def counters() -> Counters:
    """Return counters that nothing else counts in."""
    return Counters()


@pytest.fixture
def claimer(monkeypatch: pytest.MonkeyPatch, counters: Counters) -> Iterator[Claimer]:
    """Claim the reports that this process stores, as an API server does where tasks run on Celery's workers."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    claimer = Claimer(counters=counters, bounds=ANY_MACHINE, explain_bounds=ANY_MACHINE_EXPLAINS)
    claim.install(claimer)
    yield claimer
    claim.uninstall()
