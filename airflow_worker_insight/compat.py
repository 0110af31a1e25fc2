"""Every difference between the supported Airflow versions (2.11 to 3.3), each named once.

Nothing is imported at module level: this module is loaded in every task process, where each function may use only
what Airflow itself has already imported there.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta
    from uuid import UUID

    from sqlalchemy import Table
    from sqlalchemy.engine import Engine


@cache
def airflow_version() -> tuple[int, int]:
    """Return the running Airflow's major and minor version, for example ``(3, 3)``."""
    from airflow import __version__

    major, minor, *_ = __version__.split(".")
    return int(major), int(minor)


def is_airflow_3() -> bool:
    """Return whether this is Airflow 3, where task processes have no database and report through a channel."""
    return airflow_version() >= (3, 0)


def plugin_base() -> type[Any]:
    """Return the ``AirflowPlugin`` that is cheapest to import in this process.

    From 3.2 on a task process has loaded the SDK's own, and importing the scheduler's would cost it some 100 ms.
    """
    module = "airflow.sdk.plugins_manager" if airflow_version() >= (3, 2) else "airflow.plugins_manager"
    return _class(module, "AirflowPlugin")


def operator_link_base() -> type[Any]:
    """Return the base class of operator extra links."""
    module = "airflow.sdk" if is_airflow_3() else "airflow.models.baseoperatorlink"
    return _class(module, "BaseOperatorLink")


def _class(module: str, name: str) -> type[Any]:
    found: type[Any] = getattr(import_module(module), name)
    return found


# --- the task process ------------------------------------------------------------------------------------------------


def task_channel() -> tuple[Any, Callable[..., Any]] | None:
    """Return the channel to the supervisor and its ``SetXCom`` message, where this is a real Airflow 3 task process.

    ``None`` everywhere else: in the API server and the scheduler, and under ``dag.test()`` and ``airflow tasks
    test``, which run in process (``InProcessSupervisorComms``) and where nobody would claim a report.
    """
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    comms_module = sys.modules.get("airflow.sdk.execution_time.comms")
    comms = getattr(runner, "SUPERVISOR_COMMS", None)
    if comms is None or comms_module is None or type(comms).__name__ != "CommsDecoder":
        return None
    return comms, comms_module.SetXCom


def in_xcom_path(run_id: str) -> str | None:
    """Return a run ID as ``SetXCom`` has to carry it, or ``None`` for one that the execution API cannot find.

    The task's client puts it into a URL's path as it is (3.0 to 3.3), where ``#`` and ``?`` end the path and ``%``
    begins a code; codes that are there already it leaves alone. A slash, also as a code, parts the path on the server.
    """
    if "/" in run_id:
        return None
    return run_id.replace("%", "%25").replace("#", "%23").replace("?", "%3F")


def runs_under_local_task_job(task_instance: Any) -> bool:
    """Return whether this is Airflow 2.11's task process (``airflow tasks run --raw``), started by a LocalTaskJob.

    ``dag.test()`` and ``airflow tasks test`` have no job, so their task instances carry no ``job_id``.
    """
    return not is_airflow_3() and getattr(task_instance, "job_id", None) is not None


def in_server_process() -> bool:
    """Return whether this process is a scheduler or an API server: the only places where reconciling is our job.

    ``dag.test()`` calls the same Dag run listeners in a person's own process.
    """
    if hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS"):
        # LocalExecutor forks its task processes from the scheduler, with all that it has imported.
        return False
    return in_scheduler() or "airflow.api_fastapi.core_api.app" in sys.modules


def in_task_process() -> bool:
    """Return whether this process runs a task for a worker (or, on 2.11, has at least the command for it)."""
    if is_airflow_3():
        return task_channel() is not None
    return "airflow.cli.commands.task_command" in sys.modules


def listener_managers() -> Iterator[Any]:
    """Yield those of Airflow's listener managers that exist: from 3.2 on the task's SDK has one of its own."""
    for name in ("airflow.listeners.listener", "airflow.sdk.listener"):
        module = sys.modules.get(name)
        if module is None:
            continue
        if airflow_version() >= (3, 2):
            if module.get_listener_manager.cache_info().currsize:
                yield module.get_listener_manager()
        elif module._listener_manager is not None:  # noqa: SLF001
            yield module._listener_manager  # noqa: SLF001


def in_scheduler() -> bool:
    """Return whether this process has loaded the scheduler: it is one, or was forked from one."""
    return "airflow.jobs.scheduler_job_runner" in sys.modules


# --- the metadata database -------------------------------------------------------------------------------------------


def engine() -> Engine:
    """Return Airflow's own database engine, with its pool and its settings.

    Only :mod:`.store.session`, which bounds what is done with it, and our migrations use it.
    """
    from airflow import settings

    metadata_engine: Engine | None = settings.engine
    if metadata_engine is None:
        settings.configure_orm()
        metadata_engine = settings.engine
    if metadata_engine is None:
        raise RuntimeError("Airflow's database is not configured in this process")
    return metadata_engine


def database_url() -> str:
    """Return the URL of Airflow's metadata database."""
    from airflow import settings

    return str(settings.SQL_ALCHEMY_CONN)


def task_instance_table() -> Table:
    """Return Airflow's ``task_instance`` table."""
    from airflow.models.taskinstance import TaskInstance

    table: Table = TaskInstance.__table__
    return table


def task_instance_history_table() -> Table:
    """Return Airflow's ``task_instance_history`` table."""
    from airflow.models.taskinstancehistory import TaskInstanceHistory

    table: Table = TaskInstanceHistory.__table__
    return table


def try_identity(table: Table) -> tuple[Any, list[Any]]:
    """Return what to select the identity of tries from, and its columns, for :func:`.airflow_tries.instance_keys`.

    These are the row and the logical date of the Dag run, and on Airflow 3 the task instance's ID.

    :param table: Airflow's ``task_instance`` or its history
    """
    run = dag_run_table()
    joined = table.join(run, (run.c.dag_id == table.c.dag_id) & (run.c.run_id == table.c.run_id))
    moment = run.c.logical_date if is_airflow_3() else run.c.execution_date
    columns = [run.c.id.label("identity_run"), moment.label("identity_moment")]
    if is_airflow_3():
        own = table.c.task_instance_id if "task_instance_id" in table.c else table.c.id
        columns.append(own.label("identity_own"))
    return joined, columns


def run_of(task_instance: Any) -> tuple[int, datetime]:
    """Return the row ID and the logical date of the Dag run of a task instance of 2.11, which loads it with this."""
    run = task_instance.dag_run
    return run.id, run.execution_date


def stored_try_id(try_id: UUID) -> UUID | str:
    """Return Airflow 3's ID of a try as its tables' columns take it: they are of text up to 3.1."""
    return try_id if airflow_version() >= (3, 2) else str(try_id)


def dag_table() -> Table:
    """Return Airflow's table of Dags."""
    from airflow.models.dag import DagModel

    table: Table = DagModel.__table__
    return table


def dag_run_table() -> Table:
    """Return Airflow's ``dag_run`` table."""
    from airflow.models.dagrun import DagRun

    table: Table = DagRun.__table__
    return table


def run_made_at(run: Any) -> Any | None:
    """Return the column that says when a Dag run was made, from Airflow 3.3 on; ``None`` before.

    :param run: Airflow's ``dag_run`` table, or an alias of it
    """
    return run.c.get("created_at")


def job_table() -> Table:
    """Return Airflow's ``job`` table."""
    from airflow.jobs.job import Job

    table: Table = Job.__table__
    return table


def job_health_threshold(job_type: str) -> timedelta:
    """Return how long one of Airflow's jobs may be silent before Airflow calls it unhealthy."""
    from datetime import timedelta

    from airflow.jobs.job import Job, health_check_threshold

    return timedelta(seconds=health_check_threshold(job_type, Job._heartrate(job_type)))  # noqa: SLF001


def task_heartbeat_timeout() -> timedelta:
    """Return after how long without a heartbeat the scheduler fails a try that runs."""
    from datetime import timedelta

    from airflow.configuration import conf

    option = "task_instance_heartbeat_timeout" if is_airflow_3() else "scheduler_zombie_task_threshold"
    return timedelta(seconds=conf.getint("scheduler", option, fallback=300))


def xcom_model() -> Any:
    """Return the mapped class behind Airflow 3's ``xcom`` table."""
    from airflow.models.xcom import XComModel

    return XComModel


_MOST_FRAMES = 40
"""Calls between the execution API's route and a flush: some ten with SQLAlchemy 1.4 and 2.0."""


def stores_xcom_for_a_task() -> bool:
    """Return whether the caller is in the execution API's route that stores an XCom for a task process.

    It stores within the same call (3.0 to 3.3). No other route of Airflow's is this module's, and where it moves some
    day the answer is no.
    """
    frame = sys._getframe(1)  # noqa: SLF001
    for _ in range(_MOST_FRAMES):
        if frame.f_globals.get("__name__") == "airflow.api_fastapi.execution_api.routes.xcoms":
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def db_manager_base() -> type[Any]:
    """Return Airflow 3's ``BaseDBManager``; Airflow 2.11 has none (``ImportError``)."""
    return _class("airflow.utils.db_manager", "BaseDBManager")


# --- metrics ---------------------------------------------------------------------------------------------------------


@cache
def stats() -> Any:
    """Return Airflow's own stats (StatsD, Datadog or OpenTelemetry): ``incr``, ``gauge`` and ``timing``.

    From 3.2 on a process must set them up first. The API server of 3.2 does not, nor does a command; 3.3's API server
    does it when it starts, as is done here.
    """
    if airflow_version() < (3, 2):
        from airflow.stats import Stats

        return Stats
    from airflow.configuration import conf

    module: Any = import_module("airflow._shared.observability.metrics.stats")
    factory: Any = import_module("airflow.observability.metrics.stats_utils").get_stats_factory
    if airflow_version() >= (3, 3):
        if module._factory is None:  # noqa: SLF001
            legacy = conf.getboolean("metrics", "legacy_names_on")
            module.initialize(factory=factory(), export_legacy_names=legacy)
        return module
    if module.Stats.factory in (None, module.NoStatsLogger):
        module.Stats.initialize(factory=factory(module.Stats))
    return module.Stats


def stats_take_tags() -> bool:
    """Return whether Airflow's stats are kept with their tags; plain StatsD has nothing but names."""
    from airflow.configuration import conf

    if conf.getboolean("metrics", "statsd_datadog_enabled", fallback=False):
        return True
    if conf.getboolean("metrics", "statsd_on", fallback=False):
        return bool(conf.getboolean("metrics", "statsd_influxdb_enabled", fallback=False))
    return bool(conf.getboolean("metrics", "otel_on", fallback=False))


# --- Celery ----------------------------------------------------------------------------------------------------------


def celery_app(team: str | None) -> Any:
    """Return Airflow's own Celery application, or a team's (Airflow 3.2 and later)."""
    utils = import_module("airflow.providers.celery.executors.celery_executor_utils")
    if team is None:
        return utils.app
    from airflow.executors.base_executor import ExecutorConf

    return utils.create_celery_app(ExecutorConf(team))


def executors_celery_app(executor: Any) -> Any:
    """Return the Celery application of a CeleryExecutor; before its provider's 3.15 there was one for all."""
    app = getattr(executor, "celery_app", None)
    return app if app is not None else celery_app(None)


def queued_task(item: Any) -> tuple[Any, str | None]:
    """Return the ``executor_config`` and, on 2.11, the pool of one of an executor's queued tasks.

    Airflow 3 queues a workload, which does not name the pool; 2.11 a tuple that ends with the task instance.
    """
    if isinstance(item, tuple):
        return item[-1].executor_config, item[-1].pool
    return getattr(getattr(item, "ti", None), "executor_config", None), None


# --- LocalExecutor ---------------------------------------------------------------------------------------------------


def run_locally(executor: Any, key: Any, item: Any) -> None:
    """Hand something to a LocalExecutor, past its queued tasks: a workload, or on 2.11 a command.

    :param key: Airflow's key of it
    """
    if not is_airflow_3():
        executor.execute_async(key, item)
        return
    # 3.0 hands it on at once, later versions when they are told to.
    executor.queue_workload(item, session=None)
    if airflow_version() >= (3, 1):
        executor._process_workloads([item])  # noqa: SLF001


def workload_key(workload: Any) -> Any:
    """Return Airflow's key of a workload, by which an executor tells what has become of it."""
    if hasattr(workload, "key"):
        return workload.key
    return workload.ti.key if hasattr(workload, "ti") else workload.callback.id


def local_processes(executor: Any) -> list[Any]:
    """Return the processes of a LocalExecutor that it knows of, dead ones too."""
    return list(executor.workers.values() if isinstance(executor.workers, dict) else executor.workers)


def local_processes_come_back() -> bool:
    """Return whether LocalExecutor starts a process in the place of one that died."""
    return is_airflow_3()


def local_executor_queues_nothing() -> bool:
    """Return whether LocalExecutor hands a workload to its processes as soon as it gets it (3.0)."""
    return airflow_version() == (3, 0)


def dismiss_local_processes(executor: Any) -> None:
    """Tell all processes of Airflow 3's LocalExecutor to end, as its own ``end`` may fail to do (3.0 to 3.3).

    That sends one message for each that lives. One that takes it and ends before ``end`` comes to it is sent none, so
    that another one is left without, and the scheduler waits for that forever. What is sent too much does no harm.
    """
    if is_airflow_3():
        for _ in local_processes(executor):
            executor.activity_queue.put(None)


def local_process(executor: Any) -> tuple[Callable[..., None], dict[str, Any]]:
    """Return what a process of Airflow 3's LocalExecutor runs, and what it is given."""
    from inspect import signature

    run = import_module("airflow.executors.local_executor")._run_worker  # noqa: SLF001
    known = {
        "logger_name": executor.log.name,
        "input": executor.activity_queue,
        "output": executor.result_queue,
        "unread_messages": executor._unread_messages,  # noqa: SLF001
        # From 3.2 on.
        "team_conf": getattr(executor, "conf", None),
    }
    return run, {name: known[name] for name in signature(run).parameters}


def executors_team(executor: Any) -> str | None:
    """Return the team that an executor is of (Airflow 3.1 and later)."""
    return getattr(executor, "team_name", None)


def hostname() -> str:
    """Return what Airflow calls this host."""
    from airflow.utils.net import get_hostname

    return str(get_hostname())


# --- links -----------------------------------------------------------------------------------------------------------


def base_url() -> str:
    """Return the URL under which people reach the API server (Airflow 3) or the webserver (2.11)."""
    from airflow.configuration import conf

    section = "api" if is_airflow_3() else "webserver"
    return str(conf.get(section, "base_url", fallback="") or "")


# --- web -------------------------------------------------------------------------------------------------------------


LOGIN_COOKIE = "_token"
"""The cookie with which a browser brings Airflow 3's login."""


def current_user() -> Callable[..., Any]:
    """Return Airflow's own FastAPI dependency that resolves the reader, or answers 401 (403 for a forged token).

    From 3.1 on it takes a bearer token or the ``_token`` cookie; in 3.0 a bearer token only.
    """
    from airflow.api_fastapi.core_api.security import get_user

    dependency: Callable[..., Any] = get_user
    return dependency


def browser_sends_token() -> bool:
    """Return whether a browser's plain request carries the login.

    In 3.0 it does not: the UI moves the token from its cookie to ``localStorage["token"]`` and sends it as a header.
    """
    return airflow_version() >= (3, 1)


def require_task_instances(user: Any, dag_id: str | None) -> None:
    """Refuse a reader who may not see a Dag's task instances, as Airflow's own dependency does.

    :param dag_id: the Dag, or ``None`` for "task instances at all"
    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag

    check = requires_access_dag(method="GET", access_entity=DagAccessEntity.TASK_INSTANCE)
    _settled(check(_request_about(dag_id), user))


def require_jobs_view(user: Any) -> None:
    """Refuse a reader who may not see Airflow's jobs view (schedulers, triggerers and the like).

    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.core_api.security import requires_access_view

    _settled(requires_access_view(AccessView.JOBS)(_request_about(None), user))


def require_pool_edit(user: Any) -> None:
    """Refuse a person who may not edit Airflow's pools: the right to decide which worker is given work.

    Airflow's own dependency is a coroutine from 3.2 on, and asks about one pool and its team.

    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.app import get_auth_manager
    from fastapi import HTTPException

    if not _settled(get_auth_manager().is_authorized_pool(method="PUT", user=user)):
        raise HTTPException(403, "Forbidden")


def _settled(answer: Any) -> Any:
    """Return what a question about rights comes to, also where Airflow has made it a coroutine.

    It did so from one minor version to the next with its dependencies on pools, connections and variables: one that
    nobody waits for refuses nobody. Our routes run in threads without an event loop; where one runs, this raises.
    """
    import asyncio
    import inspect

    if not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        return await answer

    return asyncio.run(wait())


def user_name(user: Any) -> str:
    """Return what Airflow calls a person, for those who read what they decided."""
    return str(user.get_name())


def readable_dag_ids(user: Any) -> set[str]:
    """Return the IDs of all Dags that a reader may see.

    Airflow's ``ReadableDagsFilterDep`` asks the same of ``request.app.state.auth_manager``, which the app of a plugin
    does not have.
    """
    from airflow.api_fastapi.app import get_auth_manager

    dag_ids: set[str] = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return dag_ids


def _request_about(dag_id: str | None) -> Any:
    """Return a request from which Airflow's dependencies read the Dag's ID, whichever way ours came to us.

    They look at path parameters (all versions) and query parameters (3.1+); the panel's address is read by other
    rules than a query string (see ``web.address``), and what is checked must be what is shown.
    """
    from starlette.requests import Request

    path_params = {} if dag_id is None else {"dag_id": dag_id}
    return Request({"type": "http", "path_params": path_params, "query_string": b"", "headers": []})


def login_url(api_root: str, next_url: str) -> str:
    """Return where a person logs in to come back to ``next_url``.

    :param api_root: the path below which Airflow's API server is, without a slash at the end
    """
    from urllib.parse import quote

    value = quote(next_url, safe="")
    if airflow_version() < (3, 2):
        # 3.0 and 3.1 put the decoded value into the next redirect as it is, which would cut it at its first "&".
        value = quote(value, safe="")
    return f"{api_root}/api/v2/auth/login?next={value}"


def task_instance_states() -> frozenset[str]:
    """Return all states of a task instance that this Airflow knows."""
    from airflow.utils.state import TaskInstanceState

    return frozenset(state.value for state in TaskInstanceState)


# --- FAB -------------------------------------------------------------------------------------------------------------


def serves_flask_views() -> bool:
    """Return whether a plugin's Flask views work here: on 2.11, and on Airflow 3 where the auth manager is FAB's.

    Elsewhere on Airflow 3 the API server would refuse to start (no FAB provider), or each view would answer 500
    (another auth manager).
    """
    if not is_airflow_3():
        return True
    from airflow.api_fastapi.app import get_auth_manager_cls

    # By name: importing FAB's to compare with would cost a server with another auth manager a second.
    fab = ("airflow.providers.fab.auth_manager.fab_auth_manager", "FabAuthManager")
    return fab in {(base.__module__, base.__qualname__) for base in get_auth_manager_cls().__mro__}


def flask_user() -> Any:
    """Return who sends the Flask request at hand; the anonymous user, who may have rights too, for nobody known."""
    from flask import current_app, request

    manager = _flask_auth_manager()
    if not is_airflow_3():
        return manager.get_user()
    token = request.cookies.get(LOGIN_COOKIE)
    user = None if token is None else _user_from_token(manager, token)
    if user is not None:
        return user
    if airflow_version() < (3, 1):
        # Its UI moves the token out of the cookie, but plugins' views share the session of the login there.
        return manager.get_user()
    # From 3.1 on they do not: they cannot read a session kept in the database (the default), and one kept in a cookie
    # outlives what the login allows it.
    app: Any = current_app
    return app.login_manager.anonymous_user()


def flask_is_logged_in(user: Any) -> bool:
    """Return whether a user of :func:`flask_user` is a known one."""
    return not user.is_anonymous if is_airflow_3() else bool(_flask_auth_manager().is_logged_in())


def flask_may_see_task_instances(user: Any, dag_id: str | None) -> bool:
    """Return whether a user may see the task instances of a Dag, or any at all when ``dag_id`` is ``None``.

    Airflow's decorator ``has_access_dag`` reads the Dag's ID from the query string by other rules than the panel, and
    sends one who is logged in and has no right to the home page instead of answering 403.
    """
    if is_airflow_3():
        return _passes(require_task_instances, user, dag_id)
    from airflow.auth.managers.models.resource_details import DagAccessEntity, DagDetails

    details = None if dag_id is None else DagDetails(id=dag_id)
    entity = DagAccessEntity.TASK_INSTANCE
    manager = _flask_auth_manager()
    return bool(_settled(manager.is_authorized_dag(method="GET", access_entity=entity, details=details, user=user)))


def flask_may_see_jobs(user: Any) -> bool:
    """Return whether a user may see Airflow's jobs view."""
    if is_airflow_3():
        return _passes(require_jobs_view, user)
    from airflow.auth.managers.models.resource_details import AccessView

    return bool(_settled(_flask_auth_manager().is_authorized_view(access_view=AccessView.JOBS, user=user)))


def flask_may_edit_pools(user: Any) -> bool:
    """Return whether a user may edit Airflow's pools."""
    if is_airflow_3():
        return _passes(require_pool_edit, user)
    return bool(_settled(_flask_auth_manager().is_authorized_pool(method="PUT", user=user)))


def flask_list_widget() -> type[Any]:
    """Return what Airflow 2.11 shows the rows of its own FAB lists with."""
    return _class("airflow.www.widgets", "AirflowModelListWidget")


def flask_csrf_token() -> str:
    """Return the token that Airflow's Flask app asks for in forms that change something."""
    return str(import_module("flask_wtf.csrf").generate_csrf())


def flask_readable_dag_ids(user: Any) -> set[str]:
    """Return the IDs of all Dags that a user may see."""
    if is_airflow_3():
        return readable_dag_ids(user)
    dag_ids: set[str] = _flask_auth_manager().get_permitted_dag_ids(methods=["GET"], user=user)
    return dag_ids


def flask_login_url(api_root: str, next_url: str) -> str:
    """Return where a person logs in to come back to ``next_url``; ``api_root`` as for :func:`login_url`."""
    if is_airflow_3():
        return login_url(api_root, next_url)
    return str(_flask_auth_manager().get_url_login(next_url=next_url))


def grid_path(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the path of a task instance in the grid of 2.11."""
    from urllib.parse import quote

    mapped = f"&map_index={map_index}" if map_index >= 0 else ""
    return (
        f"/dags/{quote(dag_id, safe='')}/grid?dag_run_id={quote(run_id, safe='')}"
        f"&task_id={quote(task_id, safe='')}{mapped}"
    )


def flask_api_user() -> Any | None:
    """Return who sends the request to the REST API on 2.11 by the rules of Airflow's own, or ``None``: answer 401.

    Airflow's ``[api] auth_backends`` decide: the browser's session, basic authentication and the like.
    """
    from airflow.api_connexion.exceptions import Unauthenticated
    from airflow.api_connexion.security import check_authentication

    try:
        check_authentication()
    except Unauthenticated:
        return None
    return _flask_auth_manager().get_user()


def _flask_auth_manager() -> Any:
    module = "airflow.api_fastapi.app" if is_airflow_3() else "airflow.www.extensions.init_auth_manager"
    return import_module(module).get_auth_manager()


def _user_from_token(manager: Any, token: str) -> Any | None:
    """Return the user of Airflow 3's token, checked by Airflow; ``None`` for one that does not hold."""
    from asgiref.sync import async_to_sync
    from jwt import InvalidTokenError

    try:
        return async_to_sync(manager.get_user_from_token)(token)
    except InvalidTokenError:
        return None


def _passes(check: Callable[..., None], *args: Any) -> bool:
    """Return whether one of the checks above, which raise for those who may not, lets pass."""
    from fastapi import HTTPException

    try:
        check(*args)
    except HTTPException:
        return False
    return True
