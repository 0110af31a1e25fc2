"""Detect the worker among the ancestors of a task process, for each kind of executor.

Every function here is pure: it reads :class:`ProcessContext` only. Process trees recorded on running deployments
(Airflow 2.11.2 to 3.3.2) are the test data of this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from airflow_worker_insight.domain.names import LABEL_VALUE_LENGTH, SINGLE_LOCAL_NAME, clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from airflow_worker_insight.identity.process import Process


class ProcessContext(NamedTuple):
    """Facts that a task process can read about itself without any request."""

    lineage: Sequence[Process]
    """This process and its ancestors, nearest first."""
    environ: Mapping[str, str]
    modules: Mapping[str, Any]
    """Imported modules, as in ``sys.modules``."""
    host: str
    """The kernel's host name (of the host, the container or the pod)."""
    executor: str = ""
    """Class name of the executor, if the caller knows it."""
    service_account_namespace: str = ""
    """Namespace of the pod, from the file that Kubernetes mounts into it."""


class DetectedWorker(NamedTuple):
    """A detected worker."""

    kind: str
    name: str
    main: Process | None
    """Main process of the worker, which lives as long as the worker; ``None`` if unknown."""
    pod: str = ""
    """ID of the pod if the pod is the worker: equal for all its processes, unique among pods."""
    shares_main_process: bool = False
    """Whether the main process has several workers, which differ in their names only."""


def detect_worker(context: ProcessContext) -> DetectedWorker:
    """Return the worker that this process belongs to.

    The nearest ancestor that is a worker decides: a task may start another Airflow, whose tasks belong to that one's
    worker and not to the outer one.

    :param context: what the process knows about itself
    :return: the worker; if none is detected, one of the executor's kind (or ``unknown``) named after the host
    """
    for index in range(len(context.lineage)):
        detected = _match_celery_main(context, index) or _match_local(context, index) or _match_edge(context, index)
        if detected is not None:
            return detected
    return (
        _detect_celery_request(context)
        or _detect_kubernetes_pod(context)
        or _detect_celery_without_pool(context)
        or _detect_scheduler_child(context)
        or DetectedWorker(context.executor or "unknown", context.host, None)
    )


# --- Celery ----------------------------------------------------------------------------------------------

# "[celeryd: w1@host:MainProcess] -active- (celery worker …)", see celery.platforms.set_mp_process_title.
_CELERY_TITLE = "[celeryd: "
_CELERY_MAIN = ":MainProcess]"
_CELERY_POOL = "PoolWorker-"


def _match_celery_main(context: ProcessContext, index: int) -> DetectedWorker | None:
    """Match the main process of a Celery worker.

    Its pid is the one that Celery's ``inspect().stats()`` reports. The ancestors of a task are its supervisor, which in
    Airflow 3 is the pool's child itself, and this process. After ``run_as_user`` a ``sudo`` and a new interpreter come
    in between, and only the ancestry identifies the worker.
    """
    process = context.lineage[index]
    title = process.title
    if title.startswith(_CELERY_TITLE) and _CELERY_MAIN in title:
        return DetectedWorker("celery", title[len(_CELERY_TITLE) : title.index(_CELERY_MAIN)], process)
    # Without setproctitle, or with NOSETPS set, Celery cannot set a title and the command remains.
    if _airflow_command(process.argv)[:2] == ("celery", "worker"):
        return DetectedWorker("celery", _celery_node(context) or context.host, process)
    return None


def _detect_celery_request(context: ProcessContext) -> DetectedWorker | None:
    """Detect a Celery worker by the message that it handles, inherited by fork.

    Needed where no ancestor has Celery's title: in pools without processes of their own (solo, threads) Airflow 3.3
    gives the main process the title of its supervisor.
    """
    node = _celery_node(context)
    if not node:
        return None
    billiard = context.modules.get("billiard.process")
    # Set in a child of the pool: the pid of the process that forked it.
    parent_pid = getattr(getattr(billiard, "_current_process", None), "_parent_pid", None)
    if parent_pid is None:
        return DetectedWorker("celery", node, _find_supervisor(context))
    main = next((process for process in context.lineage if process.pid == parent_pid), None)
    return DetectedWorker("celery", node, main)


def _detect_celery_without_pool(context: ProcessContext) -> DetectedWorker | None:
    """Detect a Celery worker without a pool after ``run_as_user``.

    No memory is inherited then, but Celery's log setup leaves a variable in the environment. The node name is lost, so
    the host name is used.
    """
    main = _find_supervisor(context)
    if main is None or "CELERY_LOG_LEVEL" not in context.environ:
        return None
    return DetectedWorker("celery", context.host, main)


def _celery_node(context: ProcessContext) -> str:
    state = context.modules.get("celery._state")
    current = getattr(state, "get_current_worker_task", None)
    if current is None:
        return ""
    node = getattr(getattr(current(), "request", None), "hostname", None)
    return node if isinstance(node, str) else ""


def _find_supervisor(context: ProcessContext) -> Process | None:
    """Return the process with the supervisor's title, set by Airflow 3.3's ``run_workload``."""
    return next((process for process in context.lineage if process.title.startswith(_SUPERVISOR)), None)


_SUPERVISOR = "airflow supervisor: "


# --- LocalExecutor ---------------------------------------------------------------------------------------

# "airflow worker -- LocalExecutor: …", in Airflow 3.3 also "airflow worker -- LocalExecutor [team]: …". (A task process
# of Airflow 3 is titled "airflow worker -- <task instance ID>".)
_LOCAL_WORKER = "airflow worker -- LocalExecutor"
_FORK_SERVER = "from multiprocessing.forkserver import"
LOCAL_WORKER_VARIABLE = "_AIRFLOW_WORKER_INSIGHT_LOCAL_WORKER"


def local_worker_environment(name: str, owner_pid: int) -> dict[str, str]:
    """Return the environment that marks a process as one of a scheduler's named workers.

    :param name: the worker's name with its host, ``NAME@HOST``
    :param owner_pid: the scheduler's process
    """
    return {LOCAL_WORKER_VARIABLE: f"{owner_pid}:{name}"}


def _match_local(context: ProcessContext, index: int) -> DetectedWorker | None:
    """Match a worker process of LocalExecutor; the worker is the scheduler that owns it."""
    if not context.lineage[index].title.startswith(_LOCAL_WORKER):
        return None
    owner = next(
        (
            process
            for process in context.lineage[index + 1 :]
            # With the start method "forkserver" (Python 3.14's default) a fork server stands between the two.
            if not process.title.startswith(_LOCAL_WORKER) and _FORK_SERVER not in process.title
        ),
        None,
    )
    named_worker = _detect_named_local(context, owner)
    if named_worker is not None:
        return named_worker
    # When a scheduler is killed, its workers finish as children of the init process, which is not a scheduler.
    if owner is not None and owner.pid == 1 and not _airflow_command(owner.argv):
        owner = None
    return _detect_named_local(context, owner) or DetectedWorker("local", f"{SINGLE_LOCAL_NAME}@{context.host}", owner)


def _detect_named_local(context: ProcessContext, owner: Process | None) -> DetectedWorker | None:
    """Detect one of several named workers of a scheduler, even if the scheduler is gone."""
    pid, _, name = context.environ.get(LOCAL_WORKER_VARIABLE, "").partition(":")
    if not name or (owner is not None and pid != str(owner.pid)):
        return None
    return DetectedWorker("local", name, owner, shares_main_process=True)


def _detect_scheduler_child(context: ProcessContext) -> DetectedWorker | None:
    """Detect SequentialExecutor, or LocalExecutor without process titles."""
    owner = next(
        (process for process in context.lineage if _airflow_command(process.argv)[:1] == ("scheduler",)),
        None,
    )
    if owner is None:
        return None
    if context.executor.endswith("LocalExecutor"):
        return _detect_named_local(context, owner) or DetectedWorker(
            "local", f"{SINGLE_LOCAL_NAME}@{context.host}", owner
        )
    return DetectedWorker(context.executor or "unknown", context.host, owner)


# --- Edge ------------------------------------------------------------------------------------------------

_EDGE_TITLE = "airflow edge worker: "


def _match_edge(context: ProcessContext, index: int) -> DetectedWorker | None:
    """Match an Edge worker.

    Newer Edge providers title its main process ``airflow edge worker: NAME``. With older ones it keeps its command, and
    the child that runs the supervisor is titled ``airflow edge worker: TaskInstanceKey(…)`` instead. So the outermost
    of consecutive Edge processes is the main process.
    """
    main = None
    for process in context.lineage[index:]:
        if not _is_edge_worker(process):
            break
        main = process
    if main is None:
        return None
    return DetectedWorker("edge", _edge_name(context, main) or context.host, main)


def _is_edge_worker(process: Process) -> bool:
    return process.title.startswith(_EDGE_TITLE) or _airflow_command(process.argv)[:2] == ("edge", "worker")


def _edge_name(context: ProcessContext, main: Process) -> str:
    # All versions of the Edge worker put their name into HOSTNAME and make Airflow read its host name from there.
    if context.environ.get("AIRFLOW__CORE__HOSTNAME_CALLABLE", "").endswith("._edge_hostname"):
        return context.environ.get("HOSTNAME", "")
    if main.title.startswith(_EDGE_TITLE):
        return main.title[len(_EDGE_TITLE) :]
    return ""


# --- Kubernetes ------------------------------------------------------------------------------------------

# The downward API prescribes no variable names: these are the prefixes of its documentation (MY_), of Airflow's chart
# and of the common log and trace collectors.
_PREFIXES = ("", "K8S_", "KUBERNETES_", "MY_")


def _detect_kubernetes_pod(context: ProcessContext) -> DetectedWorker | None:
    """Detect a pod that KubernetesExecutor created for one try, by its environment."""
    if context.environ.get("AIRFLOW_IS_K8S_EXECUTOR_POD", "").lower() not in {"true", "1"}:
        return None
    name = _downward_api(context, "POD_NAME") or context.host
    namespace = kubernetes_labels(context).get("namespace", "")
    uid = _downward_api(context, "POD_UID")
    # Take the outermost Airflow process: a shell or an init process may be above it, but sidecars of the pod never are.
    main = next((process for process in reversed(context.lineage) if _airflow_command(process.argv)), None)
    return DetectedWorker("kubernetes", name, main, pod=uid or f"{namespace}/{name}")


def kubernetes_labels(context: ProcessContext) -> dict[str, str]:
    """Return ``namespace``, ``node`` and ``pod`` as far as known; empty outside a pod.

    They come from the environment; the namespace may also come from the mounted service account.
    """
    labels = {
        "namespace": _downward_api(context, "POD_NAMESPACE") or _downward_api(context, "NAMESPACE"),
        "node": _downward_api(context, "NODE_NAME"),
        "pod": _downward_api(context, "POD_NAME"),
    }
    if not labels["namespace"] and "KUBERNETES_SERVICE_HOST" in context.environ:
        labels["namespace"] = context.service_account_namespace
    cleaned = {key: clean(value, LABEL_VALUE_LENGTH) for key, value in labels.items()}
    return {key: value for key, value in cleaned.items() if value}


def _downward_api(context: ProcessContext, name: str) -> str:
    # A variable named NAMESPACE without a prefix may have another meaning.
    prefixes = _PREFIXES[1:] if name == "NAMESPACE" else _PREFIXES
    return next((value for prefix in prefixes if (value := context.environ.get(prefix + name, ""))), "")


# --- What runs the tries of a worker --------------------------------------------------------------------------


def is_task_process(argv: Sequence[str]) -> bool:
    """Return whether a process has the title of a task process, which runs one try and ends."""
    title = argv[0]
    if title.startswith("airflow task runner: "):  # Airflow 2.11
        return True
    return title.startswith("airflow worker -- ") and not title.startswith(_LOCAL_WORKER)


def is_task_parent(argv: Sequence[str]) -> bool:
    """Return whether a process of a worker runs a try whenever it has a child: the task.

    These are the processes of Celery's pool and of LocalExecutor, which outlive their tries, and the supervisors that
    Edge starts for each try. The worker's log server, Dag processors and helpers are not among them.
    """
    title = argv[0]
    return (
        title.startswith((_SUPERVISOR, "airflow task supervisor: ", _LOCAL_WORKER, _EDGE_TITLE))
        or (title.startswith(_CELERY_TITLE) and _CELERY_POOL in title)
        or _airflow_command(argv)[:2] == ("tasks", "run")
    )


def is_fork_server(argv: Sequence[str]) -> bool:
    """Return whether a process is Python's fork server."""
    return any(_FORK_SERVER in argument for argument in argv)


# --- Commands --------------------------------------------------------------------------------------------


def _airflow_command(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the words after ``airflow`` on an Airflow process's command line, else nothing.

    A process that sets its title, or resets it as Airflow 2.11's scheduler does, shows one string with spaces.
    """
    words = argv[0].split() if len(argv) == 1 else list(argv)
    if words and words[0].rpartition("/")[2].startswith("python"):
        del words[0]
        while words and words[0] in {"-m", "-u", "-O", "-B", "-I", "-E", "-s"}:
            del words[0]
    if not words:
        return ()
    program = words[0].rpartition("/")[2]
    if program == "airflow":
        return tuple(words[1:])
    return (program,) if program.startswith("airflow.") else ()
