"""What the tests of several commands need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.store import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_mock import MockerFixture

    from tests.unit.database import Database


@pytest.fixture
def without_tables(database: Database) -> Database:
    """Return a database without our tables."""
    migrate.downgrade("base")
    return database


@pytest.fixture
def answer(request: pytest.FixtureRequest, mocker: MockerFixture) -> Iterator[list[str]]:
    """Answer the command's question with the test's parameter, or with the end of the input; give the question."""
    asked: list[str] = []

    def reply(question: str) -> str:
        asked.append(question)
        if request.param is None:
            raise EOFError
        return str(request.param)

    mocker.patch("builtins.input", reply)
    yield asked
    assert len(asked) == 1
