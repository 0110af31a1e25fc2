"""Fixtures of the whole test suite; see ``tests/support`` for how to use them."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.support import environments, guardian
from tests.support.processes import MissingRequirementError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

T = TypeVar("T")

REQUIRE_ALL = "WORKER_INSIGHT_REQUIRE_ALL"


def pytest_configure() -> None:
    """End within seconds on SIGINT and SIGTERM, with every server that a test started."""
    guardian.install()


@contextlib.contextmanager
def _required(service: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """Run a service for tests; where it is missing, skip them, or fail on request."""
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(service())
        except MissingRequirementError as missing:
            if os.environ.get(REQUIRE_ALL):
                pytest.fail(f"{missing} (and {REQUIRE_ALL} is set)", pytrace=False)
            pytest.skip(str(missing))
        yield started


@pytest.fixture(scope="session")
def wheel() -> Path:
    """Return the wheel of this source tree, as it is now."""
    return environments.wheel()


@pytest.fixture(scope="session")
def airflow_env(wheel: Path) -> Callable[[str], Environment]:
    """Return a function that gives the environment of an Airflow version with our wheel."""
    return lambda version: environments.installed(version, package=wheel)


@pytest.fixture(scope="session")
def bare_airflow_env() -> Callable[[str], Environment]:
    """Return a function that gives the environment of an Airflow version without this project."""
    return environments.airflow


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server for this session."""
    from tests.support.services import Postgres

    with _required(Postgres) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """Run a Redis server for this session."""
    from tests.support.services import Redis

    with _required(Redis) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Run a headless Chromium for this session."""
    from tests.support.browser import chromium

    with _required(chromium) as running:
        yield running
