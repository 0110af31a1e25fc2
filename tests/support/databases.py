"""
Freshly migrated databases, kept below ``.build/databases``, because migrating is slow.

They outlive the session. Their names hold everything that decides their content, so a new wheel gets new ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING

from tests.support.environments import BUILD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.services import Postgres

FOLDER = BUILD / "databases"


def name_of(*parts: str) -> str:
    """Return the name of the database that these parts decide."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def provide_sqlite(name: str, path: Path, migrate: Callable[[], None], *, folder: Path = FOLDER) -> None:
    """Copy a kept database to ``path``, or migrate it there and keep a copy."""
    with _stored(folder, f"{name}.db") as (stored, partial):
        if stored.exists():
            shutil.copyfile(stored, path)
            return
        migrate()
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(partial)) as copy,
        ):
            source.backup(copy)
        partial.replace(stored)


def provide_postgres(
    name: str, server: Postgres, database: str, migrate: Callable[[], None], *, folder: Path = FOLDER
) -> None:
    """Make ``database`` a copy of a kept one, or migrate it and keep a dump."""
    if (template := server.templates.get(name)) is None:
        with _stored(folder, f"{name}.sql") as (stored, partial):
            if stored.exists():
                template = server.create_database()
                server.restore(stored, template)
            else:
                migrate()
                server.dump(database, partial)
                partial.replace(stored)
                server.disconnect(database)
                template = server.create_database(database)
        server.templates[name] = template
    server.drop_database(database)
    server.create_database(template, name=database)


@contextlib.contextmanager
def _stored(folder: Path, name: str) -> Iterator[tuple[Path, Path]]:
    """Yield a kept file and where to write it first, to one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / name, folder / f"{name}.{os.getpid()}"
