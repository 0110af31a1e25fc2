"""One real Airflow for a test: its own folder, database, ports, users and processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import requests

from tests.support import databases, guardian, lost_tries
from tests.support.environments import FOREIGN_VARIABLES
from tests.support.processes import (
    TIME_FACTOR,
    WaitTimeoutError,
    accepts_connections,
    end,
    free_port,
    slowness,
    tail,
    tree,
    wait_for,
    working_below,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

T = TypeVar("T")

SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
AUTH_MANAGERS = {"simple": SIMPLE, "fab": FAB}

#: Users that every deployment has, with their roles; each user's password is the user's name.
USERS = {"admin": "admin", "viewer": "viewer"}

FINAL_RUN_STATES = frozenset({"success", "failed"})

_CREATE_FAB_USERS = """
import json, sys
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

wanted = json.load(sys.stdin)
with get_application_builder() as builder:
    manager = builder.sm
    for name, permissions in wanted["roles"].items():
        role = manager.find_role(name) or manager.add_role(name)
        for action, resource in permissions:
            manager.add_permission_to_role(role, manager.create_permission(action, resource))
    for name, role in wanted["users"].items():
        if manager.find_user(name) is None:
            found = manager.find_role(role) or manager.add_role(role)
            made = manager.add_user(name, name, name, name + "@example.com", found, password=name)
            assert made, name
"""


#: Airflow's own limits, raised so that a busy machine does not reach them.
_GENEROUS_LIMITS: dict[str, object] = {
    # 5 s by default, which an API server that is just starting exceeds. From 3.1 on; 3.0 has its retries only.
    "workers.execution_api_timeout": 60,
    "workers.execution_api_retries": 10,
    "workers.execution_api_retry_wait_max": 10,
    "workers.max_failed_heartbeats": 10,
    "core.task_success_overtime": 120,
    "core.dagbag_import_timeout": 300,
    "core.dag_file_processor_timeout": 600,
    "dag_processor.dag_file_processor_timeout": 600,
    "dag_processor.stale_dag_threshold": 1200,
    "dag_processor.health_check_threshold": 120,
    "scheduler.stale_dag_threshold": 1200,
    "scheduler.scheduler_health_check_threshold": 120,
    "triggerer.triggerer_health_check_threshold": 120,
    # The scheduler has to send a message to the broker in this time: 1 s by default.
    "celery.operation_timeout": 10,
}

#: Time-outs that tests wait out: multiplied by how much slower the machine is.
_SCALED_TIMEOUTS = frozenset(
    {
        "worker_insight.heartbeat_timeout",
        "worker_insight.lost_timeout",
        "scheduler.task_instance_heartbeat_timeout",
        "scheduler.task_queued_timeout",
    }
)

#: An API server is ready after so many answers in a row, each within so many seconds on a quiet machine.
PROMPT_ANSWERS, PROMPT = 3, 1.0


class DeploymentError(AssertionError):
    """A deployment failed; the message holds what its processes printed last."""


@dataclass
class Component:
    """One started process of a deployment."""

    name: str
    kind: str
    process: subprocess.Popen[bytes]
    log: Path
    #: Tells whether it does its work by now.
    ready: Callable[[], bool]
    #: Set once a test stopped it on purpose: then its end is no surprise.
    expected_to_end: bool = False

    @property
    def pid(self) -> int:
        """The process that was started: the main process of a worker, the master of a web server."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is still there."""
        return self.process.poll() is None

    def output(self) -> str:
        """Everything the component printed so far."""
        return self.log.read_text(errors="replace")


class Deployment:
    """
    One Airflow deployment.

    ``environment`` says which Airflow, and whether this project is installed in it. Without ``postgres`` its metadata
    are in SQLite; ``driver`` is Airflow's for PostgreSQL, where ``psycopg`` is psycopg 3; ``redis`` is the broker
    where the executor is Celery's. ``config`` takes ``{"section.option": value}`` and wins over everything that is set
    here; time-outs that a test waits out are longer on a busy machine.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        executor: str | None = None,
        postgres: Postgres | None = None,
        driver: str = "psycopg2",
        redis: Redis | None = None,
        dags: Iterable[Path] = (),
        config: Mapping[str, str] | None = None,
        auth: str | None = None,
        users: Mapping[str, str] | None = None,
        roles: Mapping[str, Iterable[tuple[str, str]]] | None = None,
        home: Path | None = None,
        base_path: str = "",
    ) -> None:
        self.environment = environment
        self.airflow3 = environment.airflow_version >= (3,)
        # LocalExecutor of 2.11 refuses SQLite.
        default = "LocalExecutor" if self.airflow3 or postgres else "SequentialExecutor"
        self.executor = executor or default
        self.postgres = postgres
        self._driver = driver
        self.redis = redis
        self.auth = auth or ("simple" if self.airflow3 else "fab")
        self.users = {**USERS, **(users or {})}
        self.roles = {name: list(permissions) for name, permissions in (roles or {}).items()}
        self.components: dict[str, Component] = {}
        self._own_home = home is None
        self.home = (home or Path(tempfile.mkdtemp(prefix="worker-insight-airflow-"))).resolve()
        self.dags_folder = self.home / "dags"
        self.logs_folder = self.home / "logs"
        self.output_folder = self.home / "output"
        guardian.guard(self.home)
        for folder in (self.dags_folder, self.logs_folder, self.output_folder):
            folder.mkdir(parents=True, exist_ok=True)
        for dag in dags:
            shutil.copy(dag, self.dags_folder)
        self.port = free_port()
        self.base_url = f"http://localhost:{self.port}{base_path}"
        self.api_prefix = "/api/v2" if self.airflow3 else "/api/v1"
        self._database = postgres.create_database() if postgres else None
        self._broker = redis.broker_url() if redis else None
        #: Cookies of browsers, by user.
        self.cookies: dict[str, Any] = {}
        self._tokens: dict[str, str] = {}
        self._session = requests.Session()
        self._session.trust_env = False
        self._config = dict(config or {})
        self._slowness = slowness()
        self.env = self._environment_variables()

    # ----------------------------------------------------------------- configuration

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the metadata database."""
        if self.postgres and self._database:
            return self.postgres.url(self._database, driver=self._driver)
        return f"sqlite:///{self.home / 'airflow.db'}"

    def _environment_variables(self) -> dict[str, str]:
        # A secret per deployment: a token of one must not open another.
        secret = uuid.uuid4().hex * 2
        options: dict[str, object] = {
            "core.dags_folder": self.dags_folder,
            "core.executor": self.executor,
            "core.load_examples": False,
            "core.dags_are_paused_at_creation": False,
            "core.parallelism": 8,
            "core.fernet_key": "",
            "database.sql_alchemy_conn": self.database_url,
            "database.load_default_connections": False,
            "logging.base_log_folder": self.logs_folder,
            "logging.worker_log_server_port": free_port(),
            "logging.trigger_log_server_port": free_port(),
            "scheduler.scheduler_heartbeat_sec": 1,
            "scheduler.scheduler_idle_sleep_time": 0.2,
            "scheduler.parsing_processes": 1,
            "scheduler.min_file_process_interval": 5,
            "scheduler.dag_dir_list_interval": 5,
            "dag_processor.parsing_processes": 1,
            "dag_processor.min_file_process_interval": 5,
            "dag_processor.refresh_interval": 5,
            # By default a worker retries to load a missing Dag three times, a minute apart.
            "workers.missing_dag_retries": 0,
            **_GENEROUS_LIMITS,
            "usage_data_collection.enabled": False,
            "webserver.secret_key": secret,
            "celery.worker_concurrency": 2,
            "celery.sync_parallelism": 1,
        }
        if self.airflow3:
            options |= {
                "core.auth_manager": AUTH_MANAGERS[self.auth],
                "core.simple_auth_manager_users": ",".join(f"{u}:{r}" for u, r in self.users.items()),
                "core.simple_auth_manager_passwords_file": self.home / "passwords.json",
                "core.execution_api_server_url": f"{self.base_url}/execution/",
                "api.base_url": f"{self.base_url}/",
                "api.host": "127.0.0.1",
                "api.port": self.port,
                "api.workers": 1,
                "api.secret_key": secret,
                "api_auth.jwt_secret": secret,
                "edge.api_enabled": "EdgeExecutor" in self.executor,
                "edge.api_url": f"{self.base_url}/edge_worker/v1/rpcapi",
                "edge.job_poll_interval": 1,
                "edge.heartbeat_interval": 5,
            }
        else:
            options |= {
                "api.auth_backends": "airflow.providers.fab.auth_manager.api.auth.backend.basic_auth,"
                "airflow.api.auth.backend.session",
                "webserver.base_url": self.base_url,
                "webserver.web_server_host": "127.0.0.1",
                "webserver.web_server_port": self.port,
                "webserver.workers": 1,
            }
        if self._broker and self.postgres and self._database:
            options |= {
                "celery.broker_url": self._broker,
                "celery.result_backend": f"db+{self.postgres.url(self._database)}",
            }
        options |= {
            name: round(float(value) * self._slowness) if name in _SCALED_TIMEOUTS else value
            for name, value in self._config.items()
        }
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("AIRFLOW_") and key not in FOREIGN_VARIABLES
        }
        return {
            **inherited,
            **{f"AIRFLOW__{key.replace('.', '__').upper()}": str(value) for key, value in options.items()},
            "AIRFLOW_HOME": str(self.home),
            "PATH": f"{self.environment.bin}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
            "SCARF_ANALYTICS": "false",
            "NO_COLOR": "1",
            "NO_PROXY": "localhost,127.0.0.1",
        }

    # ----------------------------------------------------------------- context

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and isinstance(error, Exception):
            sys.stderr.write(self.report())
        self.close(keep=error is not None and bool(os.environ.get("WORKER_INSIGHT_KEEP")))

    def close(self, *, keep: bool = False) -> None:
        """End every process that this deployment started, and remove its database and its folder."""
        for component in self.components.values():
            component.expected_to_end = True
        # More than once: a process that is being killed may just have started another.
        for _ in range(5):
            alive = (c.pid for c in self.components.values() if c.alive)
            left = {p for pid in alive for p in tree(pid)} | set(working_below(self.home))
            if not left:
                break
            end(left)
        for component in self.components.values():
            component.process.wait(10)
        self._session.close()
        if keep:
            guardian.release(self.home)
            sys.stderr.write(f"kept {self.home}\n")
            return
        if self.postgres and self._database:
            self.postgres.drop_database(self._database)
        if self._own_home:
            shutil.rmtree(self.home, ignore_errors=True)
        guardian.release(self.home)

    def report(self, lines: int = 40) -> str:
        """Return the last lines that each component printed."""
        parts = [
            f"\n----- {c.name} ({'alive' if c.alive else f'ended with {c.process.returncode}'})\n{tail(c.log, lines)}\n"
            for c in self.components.values()
        ]
        return "".join(parts)

    # ----------------------------------------------------------------- commands

    def run(
        self,
        *command: str | Path,
        input: str | None = None,  # noqa: A002
        timeout: float = 180,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> str:
        """Run a command of the environment, such as ``airflow``, and return its output."""
        done = subprocess.run(
            [self.environment.command(str(command[0])), *map(str, command[1:])],
            env={**self.env, **(env or {})},
            cwd=self.home,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout * TIME_FACTOR,
            check=False,
        )
        if check and done.returncode != 0:
            words = " ".join(map(str, command))
            raise DeploymentError(f"{words}\nended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done.stdout

    def airflow(self, *args: str | Path, **options: Any) -> str:
        """Run ``airflow`` with these arguments and return what it printed."""
        return self.run("airflow", *args, **options)

    def migrate(self, *, fresh: bool = False, own_tables: bool = True) -> None:
        """
        Make the metadata database, with this project's tables, and the users.

        The first time, ``airflow db migrate`` does it, which does not know providers' tables on 2.11: there
        ``airflow-worker-insight db migrate`` follows, unless ``own_tables`` is false. Later deployments of the same
        environment get a copy, unless ``fresh`` is set.
        """
        migrates_own = own_tables and not self.airflow3 and self.environment.wheel is not None

        def migrate() -> None:
            self.airflow("db", "migrate")
            if migrates_own:
                self.run("airflow-worker-insight", "db", "migrate")
            if self.auth == "fab":
                self.add_fab_users(self.users, self.roles)

        name = databases.name_of(
            str(self.environment.path),
            str(self.postgres.bin) if self.postgres else "sqlite",
            self.auth,
            json.dumps([self.users, self.roles], sort_keys=True) if self.auth == "fab" else "",
            json.dumps(sorted(option for option in self._config.items() if option[0].startswith("database."))),
            str(migrates_own),
        )
        if fresh:
            migrate()
        elif self.postgres and self._database:
            databases.provide_postgres(name, self.postgres, self._database, migrate)
        else:
            databases.provide_sqlite(name, self.home / "airflow.db", migrate)
        if self.auth == "simple":
            passwords = self.home / "passwords.json"
            passwords.write_text(json.dumps({user: user for user in self.users}))

    def add_fab_users(
        self,
        users: Mapping[str, str],
        roles: Mapping[str, Iterable[tuple[str, str]]] | None = None,
    ) -> None:
        """
        Add users with these roles to FAB; each one's password is the name.

        Airflow's own roles may be given in lower case; other roles are made, with the permissions in ``roles``, such
        as ``{"limited": [("can_read", "DAG:one")]}``.
        """
        known = {"admin": "Admin", "op": "Op", "user": "User", "viewer": "Viewer", "public": "Public"}
        wanted = {
            "users": {user: known.get(role, role) for user, role in users.items()},
            "roles": {name: [list(pair) for pair in permissions] for name, permissions in (roles or {}).items()},
        }
        self.run("python", "-c", _CREATE_FAB_USERS, input=json.dumps(wanted))

    # ----------------------------------------------------------------- components

    def start(
        self,
        component: str,
        *args: str,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
        wait: bool = True,
    ) -> Component:
        """
        Start a component and wait until it is ready: not only there, but quick to answer.

        ``component`` is ``api-server`` (on 2.11 the web server), ``scheduler``, ``dag-processor``, ``triggerer``,
        ``celery worker`` or ``edge worker``. ``name`` tells several of one kind apart; for a worker it is also the
        part of its node name before the ``@``. ``args`` are added to the command, ``env`` to its environment.
        """
        if component == "api-server" and not self.airflow3:
            component = "webserver"
        name = name or component
        if name in self.components and self.components[name].alive:
            raise DeploymentError(f"{name} is already running")
        slug = name.replace(" ", "-").replace("/", "-")
        command, ready = self._launch(component, slug, args)
        command += args
        log = self.output_folder / f"{slug}.log"
        # Ignore what an earlier component of this name printed.
        printed = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            output.write(f"$ airflow {' '.join(command)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [self.environment.command("airflow"), *command],
                env={**self.env, **(env or {})},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Component(name, component, process, log, lambda: ready(_text_after(log, printed)))
        self.components[name] = started
        if wait:
            self.wait_ready(started, timeout)
        return started

    def start_all(self, *, triggerer: bool = False, workers: int = 0) -> None:
        """
        Start everything that a deployment needs, and wait until all of it is ready.

        The API server answers quickly, the scheduler's heart beats, the Dags are stored, the workers answer through
        the broker.
        """
        names = ["api-server", "scheduler"]
        if self.airflow3:
            names.append("dag-processor")
        if triggerer:
            names.append("triggerer")
        started = [self.start(name, wait=False) for name in names]
        started += [self.start("celery worker", name=f"w{n}", wait=False) for n in range(1, workers + 1)]
        # Also components that the test started without waiting.
        started += [c for c in self.components.values() if c not in started and c.alive and not c.expected_to_end]
        for component in started:
            self.wait_ready(component)
        # Again: the other components may have slowed the machine meanwhile.
        self.wait_for(self._answers_promptly, 180, "the API server to answer quickly")
        self.wait_for(lambda: not self._missing_dags(), 180, "the Dags to be stored")

    def wait_ready(self, component: Component, timeout: float = 180) -> None:
        """Wait until a component that was started with ``wait=False`` is ready."""
        self.wait_for(component.ready, timeout, f"{component.name} to be ready")

    def _launch(self, component: str, slug: str, args: Iterable[str]) -> tuple[list[str], Callable[[str], bool]]:
        """Return the command of a component, and the condition on its output when it is ready."""
        pid_file = str(self.output_folder / f"{slug}-{uuid.uuid4().hex[:6]}.pid")
        if component == "api-server":
            apps = "execution" if "--apps" not in args else "core"
            return ["api-server"], lambda _: self._answers_promptly(apps)
        if component == "webserver":
            return ["webserver", "--pid", pid_file], lambda _: self._answers_promptly()
        if component in _JOB_TYPES:
            # It writes a row into the table of jobs once it is up; rows of earlier components are older.
            kind = _JOB_TYPES[component]
            before = self._last_job(kind)
            skip = [] if component == "dag-processor" else ["--skip-serve-logs"]
            beats = component == "scheduler"
            return [component, *skip], lambda _: self._last_job(kind, beats=beats) > before
        if component == "celery worker":
            node = slug if "@" in slug else f"{slug}@{socket.gethostname()}"
            command = ["celery", "worker", "--celery-hostname", node, "--skip-serve-logs", "--pid", pid_file]
            return command, lambda output: f"{node} ready." in output and self._answers_ping(node)
        if component == "edge worker":
            return (
                ["edge", "worker", "--edge-hostname", slug, "--pid", pid_file],
                lambda _: self._edge_worker_is_up(slug),
            )
        raise DeploymentError(f"there is no component {component!r}")

    def _last_job(self, job_type: str, *, beats: bool = False) -> int:
        """Return the ID of the last job of a type, with ``beats`` of the last with a heartbeat."""
        beaten = "AND latest_heartbeat > start_date" if beats else ""
        query = f"SELECT max(id) AS id FROM job WHERE job_type = :kind AND state = 'running' {beaten}"
        return int(self.sql(query, kind=job_type)[0]["id"] or 0)

    def _answers_ping(self, node: str) -> bool:
        """Tell whether a Celery worker answers through the broker."""
        from celery import Celery
        from kombu.exceptions import OperationalError

        broker = self.env["AIRFLOW__CELERY__BROKER_URL"]
        with Celery(broker=broker, set_as_current=False) as app:
            try:
                return bool(app.control.ping(destination=[node], timeout=2 * PROMPT * self._slowness))
            except (OperationalError, OSError, *app.connection_for_read().connection_errors):
                # A restarted broker has closed the connections of Celery's pool.
                return False

    def _missing_dags(self) -> set[str]:
        """Return the Dag files that the Dag processor has not yet stored, nor found broken."""
        stored = {
            row["fileloc"]
            for row in self.sql("SELECT d.fileloc FROM dag d JOIN serialized_dag s ON s.dag_id = d.dag_id")
        }
        broken = {Path(row["filename"]).name for row in self.sql("SELECT filename FROM import_error")}
        files = [path for path in self.dags_folder.glob("*.py") if _may_hold_dags(path)]
        return {path.name for path in files if str(path) not in stored and path.name not in broken}

    def _edge_worker_is_up(self, name: str) -> bool:
        rows = self.sql("SELECT state FROM edge_worker WHERE worker_name = :name", name=name)
        return bool(rows) and rows[0]["state"] in {"idle", "running"}

    def _answers_promptly(self, apps: str = "execution") -> bool:
        """Tell whether the API server is healthy and gives several quick answers in a row."""
        health = f"{self.api_prefix}/monitor/health" if self.airflow3 else "/health"
        if not accepts_connections(self.port):
            return False
        try:
            answer = self._session.get(f"{self.base_url}{health}", timeout=20)
            if not answer.ok or answer.json()["metadatabase"]["status"] != "healthy":
                return False
            path = "/execution/health" if self.airflow3 and apps == "execution" else health
            return all(
                self._session.get(f"{self.base_url}{path}", timeout=PROMPT * self._slowness).ok
                for _ in range(PROMPT_ANSWERS)
            )
        except requests.RequestException:
            return False

    def kill(self, component: str, sig: int = signal.SIGKILL, *, descendants: bool = False) -> None:
        """Signal a component's main process, or all its processes, and wait until it is gone."""
        target = self.components[component]
        if not target.alive:
            return
        target.expected_to_end = True
        processes = tree(target.pid) if descendants else tree(target.pid)[:1]
        end(processes, sig, timeout=60)
        target.process.wait(60)

    def stop(self, *components: str, timeout: float = 60) -> None:
        """Shut components down gracefully, all at once; kill what is left after ``timeout``."""
        # The process ID of one that has ended may be another process's by now.
        targets = [target for target in map(self.components.__getitem__, components) if target.alive]
        for target in targets:
            target.expected_to_end = True
        trees = [tree(target.pid) for target in targets]
        end([process for processes in trees for process in processes[:1]], signal.SIGTERM, timeout)
        end(process for processes in trees for process in processes if process.is_running())
        for target in targets:
            target.process.wait(10)

    # ----------------------------------------------------------------- waiting

    def wait_for(
        self,
        condition: Callable[[], T],
        timeout: float = 60,
        what: str = "the condition",
        *,
        interval: float = 0.2,
    ) -> T:
        """Wait until ``condition`` returns something truthy; fail when a component dies first."""

        def watched() -> T:
            for component in self.components.values():
                if not component.alive and not component.expected_to_end:
                    code = component.process.returncode
                    raise DeploymentError(
                        f"{component.name} ended with {code} while waiting for {what}:\n{tail(component.log, 80)}"
                    )
            return condition()

        return wait_for(watched, timeout, what, interval=interval)

    def wait_dag(self, dag_id: str, timeout: float = 60) -> None:
        """Wait until a Dag is parsed and stored, so that it can be triggered."""
        query = "SELECT 1 FROM serialized_dag s JOIN dag d ON d.dag_id = s.dag_id WHERE s.dag_id = :dag_id"
        self.wait_for(lambda: self.sql(query, dag_id=dag_id), timeout, f"the Dag {dag_id} to be parsed")

    def wait_run(self, dag_id: str, run_id: str, timeout: float = 180, expect: str | None = None) -> str:
        """Wait until a Dag run ends and return its state; fail if it is not ``expect``."""
        query = "SELECT state FROM dag_run WHERE dag_id = :dag_id AND run_id = :run_id"

        def ended() -> str | None:
            rows = self.sql(query, dag_id=dag_id, run_id=run_id)
            state = rows[0]["state"] if rows else None
            return state if state in FINAL_RUN_STATES else None

        try:
            state = self.wait_for(ended, timeout, f"{dag_id}/{run_id} to end")
        except WaitTimeoutError as late:
            left = [str(row) for row in self.task_instances(dag_id, run_id) if row["state"] != "success"]
            raise WaitTimeoutError("\n".join([str(late), *left, lost_tries.explain(self, dag_id, run_id)])) from None
        assert state is not None
        if expect is not None and state != expect:
            tries = lost_tries.explain(self, dag_id, run_id)
            raise DeploymentError(f"{dag_id}/{run_id} is {state}, not {expect}:\n{tries}")
        return state

    def run_to_end(self, dag_id: str, **options: Any) -> str:
        """Run a Dag, again if Airflow itself loses a try; see ``lost_tries.run_to_end``."""
        return lost_tries.run_to_end(self, dag_id, **options)

    # ----------------------------------------------------------------- using it

    def write_dag(self, name: str, source: str) -> Path:
        """Write a file into the Dags folder."""
        path = self.dags_folder / f"{name}.py"
        path.write_text(source)
        return path

    def reserialize(self) -> None:
        """Parse and store all Dags now, in a command of its own, where no Dag processor runs."""
        if any(component.kind == "dag-processor" and component.alive for component in self.components.values()):
            raise DeploymentError("the Dag processor stores the same Dags: one of the two would fail")
        self.airflow("dags", "reserialize")

    def trigger(
        self,
        dag_id: str,
        conf: Mapping[str, object] | None = None,
        run_id: str | None = None,
        timeout: float = 60,
    ) -> str:
        """Wait until a Dag is there, trigger it as the admin user, and return the ID of the run."""
        self.wait_dag(dag_id, timeout)
        body: dict[str, object] = {"conf": dict(conf or {}), "dag_run_id": run_id or f"test-{uuid.uuid4().hex[:8]}"}
        if self.airflow3:
            body["logical_date"] = None
        answer = self.api("POST", f"/dags/{dag_id}/dagRuns", json=body)
        if not answer.ok:
            raise DeploymentError(f"cannot trigger {dag_id}: {answer.status_code} {answer.text}")
        return str(answer.json()["dag_run_id"])

    def api(self, method: str, path: str, *, user: str | None = "admin", **options: Any) -> requests.Response:
        """
        Send a request as this user, or with ``user=None`` as an anonymous one.

        A path of Airflow's own API is given without its version (``/dags``); one that starts with ``/api/``,
        ``/worker-insight``, ``/workerinsight``, ``/pluginsv2`` or ``/auth`` is taken from the root of the server.
        """
        roots = ("/api/", "/worker-insight", "/workerinsight", "/pluginsv2", "/auth", "/execution", "/edge_worker")
        url = f"{self.base_url}{'' if path.startswith(roots) else self.api_prefix}{path}"
        options.setdefault("timeout", 30)
        options.setdefault("allow_redirects", False)
        if user is not None and self.airflow3:
            options["headers"] = {"Authorization": f"Bearer {self.token(user)}", **options.get("headers", {})}
        elif user is not None:
            options["auth"] = (user, user)
        # No cookies from one request to the next: they would mix up users.
        self._session.cookies.clear()
        return self._session.request(method, url, **options)

    def token(self, user: str) -> str:
        """Return a token of a user, as a script would get one."""
        if user not in self._tokens:
            body = {"username": user, "password": user}
            answer = self._session.post(f"{self.base_url}/auth/token", json=body, timeout=30)
            if not answer.ok:
                raise DeploymentError(f"no token for {user}: {answer.status_code} {answer.text}")
            self._tokens[user] = answer.json()["access_token"]
        return self._tokens[user]

    def seconds(self, option: str) -> float:
        """Return a numeric option of this deployment, such as ``worker_insight.lost_timeout``."""
        return float(self.env[f"AIRFLOW__{option.replace('.', '__').upper()}"])

    def sql(self, query: str, **parameters: object) -> list[dict[str, Any]]:
        """Run a statement with ``:named`` parameters on the metadata database; return its rows."""
        if self.postgres and self._database:
            return self.postgres.execute(_to_psycopg(query, parameters), parameters, self._database)
        with contextlib.closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            cursor = connection.execute(query, parameters)
            rows = [dict(row) for row in cursor.fetchall()]
            connection.commit()
            return rows

    def connected(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context with a connection and a transaction on the PostgreSQL metadata."""
        assert self.postgres
        assert self._database
        return self.postgres.connected(self._database)

    def without_database(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the metadata database on PostgreSQL refuses connections."""
        assert self.postgres
        assert self._database
        return self.postgres.closed(self._database)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return what Airflow itself knows about the current try of each task of a run."""
        return self.sql(
            "SELECT task_id, map_index, try_number, state, hostname, pid, queue, external_executor_id "
            "FROM task_instance WHERE dag_id = :dag_id AND run_id = :run_id ORDER BY task_id, map_index",
            dag_id=dag_id,
            run_id=run_id,
        )

    def tries(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return every try of a run that Airflow knows: those that are over and the current ones."""
        columns = "task_id, map_index, try_number, state, hostname, pid, queue, external_executor_id"
        where = "WHERE dag_id = :dag_id AND run_id = :run_id AND try_number > 0"
        return self.sql(
            f"SELECT {columns} FROM task_instance {where} "
            f"UNION SELECT {columns} FROM task_instance_history h {where} AND NOT EXISTS ("
            "SELECT 1 FROM task_instance t WHERE t.dag_id = h.dag_id AND t.run_id = h.run_id "
            "AND t.task_id = h.task_id AND t.map_index = h.map_index AND t.try_number = h.try_number) "
            "ORDER BY 1, 2, 3",
            dag_id=dag_id,
            run_id=run_id,
        )

    def task_logs(self, dag_id: str, lines: int = 40) -> str:
        """Return the ends of the task logs of a Dag."""
        logs = sorted(self.logs_folder.glob(f"dag_id={dag_id}/**/*.log"))
        return "\n".join(f"--- {log.relative_to(self.logs_folder)}\n{tail(log, lines)}" for log in logs)


_JOB_TYPES = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}


def _may_hold_dags(path: Path) -> bool:
    """Tell whether Airflow looks for Dags in a file: its own heuristic."""
    text = path.read_text().lower()
    return "dag" in text and "airflow" in text


def _text_after(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")


def _to_psycopg(query: str, parameters: Mapping[str, object]) -> str:
    """Rewrite ``:name`` to ``%(name)s``, for the names that were given."""
    query = query.replace("%", "%%")
    for name in sorted(parameters, key=len, reverse=True):
        query = query.replace(f":{name}", f"%({name})s")
    return query
