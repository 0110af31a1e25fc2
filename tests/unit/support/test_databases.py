"""A migrated database is kept and copied, in this session and the next."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.support import databases

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.services import Postgres

TABLE = "CREATE TABLE made (id integer)"


def test_sqlite_database_is_migrated_once(tmp_path: Path) -> None:
    migrated = []

    def provide(path: Path) -> list[str]:
        def migrate() -> None:
            migrated.append(path.name)
            _sqlite(path, TABLE)

        databases.provide_sqlite("name", path, migrate, folder=tmp_path / "kept")
        return _sqlite(path, "SELECT name FROM sqlite_master")

    assert provide(tmp_path / "first.db") == provide(tmp_path / "second.db") == ["made"]
    assert migrated == ["first.db"]


def _sqlite(path: Path, statement: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = [row[0] for row in connection.execute(statement)]
        connection.commit()
    return found


def test_postgres_database_is_migrated_once(tmp_path: Path, postgres: Postgres) -> None:
    migrated = []

    def provide() -> bool:
        name = postgres.create_database()

        def migrate() -> None:
            migrated.append(name)
            postgres.execute(TABLE, database=name)

        databases.provide_postgres("name", postgres, name, migrate, folder=tmp_path)
        try:
            return bool(
                postgres.execute("SELECT 1 FROM information_schema.tables WHERE table_name = 'made'", database=name)
            )
        finally:
            postgres.drop_database(name)

    assert provide()
    assert provide()
    # As in the next session, whose server has no templates.
    postgres.drop_database(postgres.templates.pop("name"))
    assert provide()
    postgres.drop_database(postgres.templates.pop("name"))
    assert len(migrated) == 1


@pytest.mark.parametrize("other", [("3.3.2", "fab"), ("3.3.2simple",), ("3.3.2", "simple", "")])
def test_another_content_has_another_name(other: tuple[str, ...]) -> None:
    assert databases.name_of("3.3.2", "simple") == databases.name_of("3.3.2", "simple")
    assert databases.name_of(*other) != databases.name_of("3.3.2", "simple")
