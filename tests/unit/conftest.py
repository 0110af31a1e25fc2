"""Airflow in this process: a home of its own, and a database of its own for each test that asks for one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

import hypothesis
import pytest

# How long an example takes says something of the machine only.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")

# Airflow reads these when it is imported, which the test modules do.
_home = tempfile.mkdtemp(prefix="worker-insight-unit-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith("AIRFLOW__")]:
    del os.environ[_name]
os.environ["AIRFLOW_HOME"] = _home
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_mock import MockerFixture

    from tests.support.services import Postgres
    from tests.unit.bounds import UnboundedStatements
    from tests.unit.database import Database, ReusedDatabases


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite file with all tables, to be copied."""
    from tests.unit.database import make_tables

    path = tmp_path_factory.mktemp("template") / "airflow.db"
    make_tables(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """Return the name of a PostgreSQL database with all tables, to be copied."""
    from tests.unit.database import make_tables

    name = postgres.create_database()
    make_tables(postgres.url(name))
    postgres.disconnect(name)
    return name


@pytest.fixture(scope="session")
def postgres_databases(postgres: Postgres, postgres_template: str) -> ReusedDatabases:
    """Return copies of that database for one test after the other."""
    from tests.unit.database import ReusedDatabases

    return ReusedDatabases(postgres, postgres_template)


@pytest.fixture
def connect_airflow(mocker: MockerFixture) -> Iterator[Callable[[str], Database]]:
    """Return a function that connects Airflow in this process to a database, until the test ends."""
    from airflow import settings

    from tests.unit.database import Database

    def connect(url: str) -> Database:
        mocker.patch.object(settings, "SQL_ALCHEMY_CONN", url)
        settings.configure_orm()
        return Database(url)

    original = settings.SQL_ALCHEMY_CONN
    yield connect
    settings.dispose_orm()
    mocker.patch.object(settings, "SQL_ALCHEMY_CONN", original)
    settings.configure_orm()


@pytest.fixture
def database(
    request: pytest.FixtureRequest, tmp_path: Path, connect_airflow: Callable[[str], Database]
) -> Iterator[Database]:
    """Connect Airflow to a database of this test's own, with all tables and no rows of ours.

    It is SQLite, or what the test's parameter says: see ``on_both`` in ``tests/unit/database.py``.
    """
    if getattr(request, "param", "sqlite") == "sqlite":
        path = tmp_path / "airflow.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield connect_airflow(f"sqlite:///{path}")
        return
    databases: ReusedDatabases = request.getfixturevalue("postgres_databases")
    name = databases.take()
    driver = "psycopg" if request.param == "psycopg" else "psycopg2"
    yield connect_airflow(databases.server.url(name, driver=driver))
    from airflow import settings

    settings.dispose_orm()
    databases.give_back(name)


@pytest.fixture(scope="session")
def unbounded_statements() -> Iterator[UnboundedStatements]:
    """Watch what the package sends to PostgreSQL."""
    from tests.unit.bounds import UnboundedStatements

    watching = UnboundedStatements()
    watching.install()
    yield watching
    watching.uninstall()


@pytest.fixture(autouse=True)
def _all_statements_are_bounded(unbounded_statements: UnboundedStatements) -> Iterator[None]:
    """Fail a test in which the package used its tables without time-outs of its own: see ``store/session.py``."""
    unbounded_statements.found.clear()
    yield
    found = [*unbounded_statements.found]
    unbounded_statements.found.clear()
    if found:
        pytest.fail("without lock and statement time-outs:\n" + "\n".join(found), pytrace=False)
