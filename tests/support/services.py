"""A private PostgreSQL and a private Redis for one test session, gone afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extras
import redis

from tests.support import guardian
from tests.support.processes import MissingRequirementError, end, free_port, stop, tail, wait_for, working_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import IO

    from typing_extensions import Self


#: What a test session's databases need at most, with room to spare.
ROOM_IN_MEMORY = 3 * 1024**3


class _Service:
    """A server process with its own folder and port."""

    name = "service"

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"worker-insight-{self.name}-", dir=self._parent()))
        guardian.guard(self.folder)
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def _parent() -> Path | None:
        """Return where the server's folder is made, or None for the usual place."""
        return None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = self._launch(log)
        wait_for(self._answers, 60, f"{self.name} to answer")

    def close(self) -> None:
        """Stop the server and remove everything it wrote."""
        if self._process is not None:
            stop(self._process, self._stop_signal())
            self._process = None
        end(working_below(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)
        guardian.release(self.folder)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{tail(self.log)}")
        return self._ping()

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _ping(self) -> bool:
        raise NotImplementedError

    def _stop_signal(self) -> int:
        return signal.SIGTERM


class Postgres(_Service):
    """A disposable PostgreSQL server: no fsync, no password, on the loopback address only."""

    name = "postgresql"

    def __init__(self) -> None:
        #: The folder of the server's programs.
        self.bin = self._find()
        self._numbers = itertools.count(1)
        #: Databases to copy, by what decides their content; see ``databases``.
        self.templates: dict[str, str] = {}
        super().__init__()
        # The server refuses to run as root: everything it touches belongs to the user that Debian made for it.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)

    @staticmethod
    def _parent() -> Path | None:
        # In memory where there is room: a busy disk takes seconds for each copy of a database. TMPDIR is
        # obeyed, and a container's 64 MB do not count.
        memory = Path("/dev/shm")
        if "TMPDIR" in os.environ or not memory.is_dir() or shutil.disk_usage(memory).free < ROOM_IN_MEMORY:
            return None
        return memory

    @staticmethod
    def _find() -> Path:
        if command := shutil.which("initdb"):
            return Path(command).resolve().parent
        candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not candidates:
            raise MissingRequirementError("PostgreSQL", "apt-get install postgresql")
        return candidates[-1].parent

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        data = self.folder / "data"
        initdb = [self.bin / "initdb", "-D", data, "-U", "airflow", "-A", "trust", "-E", "UTF8", "--no-sync"]
        made = subprocess.run(
            [*initdb, "--locale=C.UTF-8"], **self._user, capture_output=True, cwd=self.folder, check=False
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{made.stderr.decode()}")
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "max_wal_size": "256MB",
            "max_connections": "300",
            "shared_buffers": "256MB",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return subprocess.Popen(
            [self.bin / "postgres", "-D", data, "-p", str(self.port), *options],
            **self._user,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            start_new_session=True,
        )

    def _ping(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg2.OperationalError:
            return False
        return True

    def _stop_signal(self) -> int:
        return signal.SIGINT  # "fast": it does not wait for clients to leave

    def execute(self, statement: str, parameters: Any = None, database: str = "postgres") -> list[dict[str, Any]]:
        """Run one statement outside a transaction and return its rows, if it has any."""
        with self.connected(database) as connection:
            connection.autocommit = True
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                cursor.execute(statement, parameters)
                return [dict(row) for row in cursor.fetchall()] if cursor.description else []

    def connected(self, database: str) -> contextlib.AbstractContextManager[Any]:
        """Return a connection, which is closed with the context."""
        return contextlib.closing(psycopg2.connect(host="127.0.0.1", port=self.port, user="airflow", dbname=database))

    def create_database(self, template: str | None = None, *, name: str | None = None) -> str:
        """Create a database, empty or as a copy of another, and return its name."""
        name = name or f"airflow_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
        return name

    def dump(self, database: str, path: Path) -> None:
        """Write a database to a file."""
        self._client("pg_dump", database, "--file", path)

    def restore(self, path: Path, database: str) -> None:
        """Fill an empty database from a file that :meth:`dump` wrote."""
        self._client("psql", database, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", path)

    def _client(self, command: str, database: str, *args: str | Path) -> None:
        to_server = ["--host", "127.0.0.1", "--port", str(self.port), "--username", "airflow", "--dbname", database]
        done = subprocess.run(
            [self.bin / command, *to_server, *args], capture_output=True, text=True, cwd=self.folder, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command} failed:\n{done.stderr}")

    def disconnect(self, name: str) -> None:
        """End all connections to a database, so that it can be copied."""
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @contextlib.contextmanager
    def closed(self, database: str) -> Iterator[None]:
        """Refuse connections to a database, and end the open ones."""
        self.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        try:
            self.disconnect(database)
            yield
        finally:
            self.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')

    def url(self, database: str, *, driver: str = "psycopg2") -> str:
        """Return the URL of a database as Airflow wants it; ``psycopg`` is the driver psycopg 3."""
        return f"postgresql+{driver}://airflow@127.0.0.1:{self.port}/{database}"


class Redis(_Service):
    """A Redis server, which keeps its data over a restart if ``persistent``."""

    name = "redis"
    databases = 256

    def __init__(self, *, persistent: bool = False) -> None:
        self._persistent = persistent
        command = shutil.which("redis-server")
        if command is None:
            raise MissingRequirementError("Redis", "apt-get install redis-server")
        self._command = command
        self._numbers = itertools.count()
        super().__init__()

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        options = [
            "--save",
            "",
            "--appendonly",
            "yes" if self._persistent else "no",
            "--databases",
            str(self.databases),
        ]
        return subprocess.Popen(
            [self._command, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.folder, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            start_new_session=True,
        )

    def _ping(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.ConnectionError:
            return False

    def restart(self) -> None:
        """Stop the server and start it again on the same port."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Stop the server, which can be started again."""
        assert self._process is not None
        stop(self._process, self._stop_signal())

    def client(self, database: int = 0) -> redis.Redis:
        """Return a client of one of the numbered databases."""
        return redis.Redis(host="127.0.0.1", port=self.port, db=database)

    def broker_url(self) -> str:
        """Return the URL of an unused numbered database, for a Celery broker of its own."""
        return f"redis://127.0.0.1:{self.port}/{next(self._numbers) % self.databases}"
