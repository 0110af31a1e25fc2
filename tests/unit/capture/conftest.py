"""A claim, counters and warnings of each test's own."""

from __future__ import annotations

from collections import Counter
from threading import Event
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.capture import claim, counters
from airflow_worker_insight.store.session import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a process does: nothing counted, nothing warned of, not pausing."""
    monkeypatch.setattr(counters, "_counts", Counter())
    monkeypatch.setattr(counters, "_warned", set())
    monkeypatch.setattr(claim, "breaker", CircuitBreaker(claim.PAUSE_SECONDS))
    monkeypatch.setattr(claim, "may_have_unclaimed", Event())


@pytest.fixture
def claiming(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Claim the reports that this process stores, as an API server does where tasks run on Celery's workers."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    claim.install()
    yield
    claim.uninstall()
