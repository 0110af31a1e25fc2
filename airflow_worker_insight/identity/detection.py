"""Recognise the worker among the ancestors of a task process, for each kind of executor.

Every function here is pure: it looks at :class:`Surroundings` only. What the process trees look like was
recorded on running deployments (Airflow 2.11.2 to 3.3.2); the recordings are the test data of this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from airflow_worker_insight.domain.names import LABEL_VALUE_LENGTH, PLAIN_LOCAL, clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from airflow_worker_insight.identity.process import Process


class Surroundings(NamedTuple):
    """All that a task process can know of itself without asking anyone."""

    lineage: Sequence[Process]
    """This process and its ancestors, nearest first."""
    environ: Mapping[str, str]
    modules: Mapping[str, Any]
    """What is imported, as in ``sys.modules``."""
    host: str
    """The kernel's name of the host (of the container, of the pod)."""
    executor: str = ""
    """The executor's class name, where the caller knows it."""
    service_account_namespace: str = ""
    """What Kubernetes mounts into a pod to say which namespace it is in."""


class Found(NamedTuple):
    """A worker that was recognised."""

    kind: str
    name: str
    main: Process | None
    """The worker's main process: it lives as long as the worker does. Not known of everything."""
    pod: str = ""
    """What is the same for all processes of a pod and of no other pod, where the pod is the worker."""
    is_one_of_several: bool = False
    """Whether the main process is that of several workers, which only their names tell apart."""


def recognise(around: Surroundings) -> Found:
    """Return the worker that this process belongs to.

    The nearest ancestor decides: a task may start another Airflow, whose tasks are not the outer worker's.
    """
    for index in range(len(around.lineage)):
        found = _celery_main(around, index) or _local(around, index) or _edge(around, index)
        if found is not None:
            return found
    return (
        _celery_request(around)
        or _kubernetes_pod(around)
        or _celery_without_pool(around)
        or _under_a_scheduler(around)
        or Found(around.executor or "unknown", around.host, None)
    )


# --- Celery ----------------------------------------------------------------------------------------------

# "[celeryd: w1@host:MainProcess] -active- (celery worker …)", see celery.platforms.set_mp_process_title.
_CELERY_TITLE = "[celeryd: "
_CELERY_MAIN = ":MainProcess]"
_CELERY_POOL = "PoolWorker-"


def _celery_main(around: Surroundings, index: int) -> Found | None:
    """Match the main process of a Celery worker; its pid is what Celery's ``inspect().stats()`` reports.

    Above a task there are its supervisor, which is the pool's child itself in Airflow 3, and this. After
    ``run_as_user`` a ``sudo`` and a new interpreter come in between: then the ancestry is all that is left.
    """
    process = around.lineage[index]
    title = process.title
    if title.startswith(_CELERY_TITLE) and _CELERY_MAIN in title:
        return Found("celery", title[len(_CELERY_TITLE) : title.index(_CELERY_MAIN)], process)
    # Without setproctitle, or with NOSETPS set, Celery cannot set a title: the command stays.
    if _airflow_command(process.argv)[:2] == ("celery", "worker"):
        return Found("celery", _celery_node(around) or around.host, process)
    return None


def _celery_request(around: Surroundings) -> Found | None:
    """Take what the task process inherited by fork: the message that the worker is handling.

    Needed where no ancestor bears the title: in pools without processes of their own (solo, threads) Airflow
    3.3 gives the main process the title of its supervisor.
    """
    node = _celery_node(around)
    if not node:
        return None
    billiard = around.modules.get("billiard.process")
    # In a pool's child: the process that forked it.
    parent = getattr(getattr(billiard, "_current_process", None), "_parent_pid", None)
    if parent is None:
        return Found("celery", node, _supervisor(around))
    main = next((process for process in around.lineage if process.pid == parent), None)
    return Found("celery", node, main)


def _celery_without_pool(around: Surroundings) -> Found | None:
    """Recognise the same after ``run_as_user``, where no memory is inherited.

    Celery's log setup leaves a variable in the environment. The node name is lost: we can name only the host.
    """
    main = _supervisor(around)
    if main is None or "CELERY_LOG_LEVEL" not in around.environ:
        return None
    return Found("celery", around.host, main)


def _celery_node(around: Surroundings) -> str:
    state = around.modules.get("celery._state")
    current = getattr(state, "get_current_worker_task", None)
    if current is None:
        return ""
    node = getattr(getattr(current(), "request", None), "hostname", None)
    return node if isinstance(node, str) else ""


def _supervisor(around: Surroundings) -> Process | None:
    """Return the process that runs the supervisor, as Airflow 3.3's ``run_workload`` titles it."""
    return next((process for process in around.lineage if process.title.startswith(_SUPERVISOR)), None)


_SUPERVISOR = "airflow supervisor: "


# --- LocalExecutor ---------------------------------------------------------------------------------------

# "airflow worker -- LocalExecutor: …", in Airflow 3.3 also "airflow worker -- LocalExecutor [team]: …". (A
# task process of Airflow 3 is titled "airflow worker -- <task instance ID>".)
_LOCAL_WORKER = "airflow worker -- LocalExecutor"
_FORK_SERVER = "from multiprocessing.forkserver import"
LOCAL_WORKER_VARIABLE = "_AIRFLOW_WORKER_INSIGHT_LOCAL_WORKER"


def local_worker_environment(name: str, owner_pid: int) -> dict[str, str]:
    """Return what a process needs in its environment to be taken for one of a scheduler's named workers.

    :param name: the worker's name with its host, ``NAME@HOST``
    :param owner_pid: the scheduler's process
    """
    return {LOCAL_WORKER_VARIABLE: f"{owner_pid}:{name}"}


def _local(around: Surroundings, index: int) -> Found | None:
    """Match a worker process of LocalExecutor: the worker is the scheduler that owns it."""
    if not around.lineage[index].title.startswith(_LOCAL_WORKER):
        return None
    owner = next(
        (
            process
            for process in around.lineage[index + 1 :]
            # With the start method "forkserver" (Python 3.14's default) a server stands between the two.
            if not process.title.startswith(_LOCAL_WORKER) and _FORK_SERVER not in process.title
        ),
        None,
    )
    named = _named_local(around, owner)
    if named is not None:
        return named
    # When a scheduler is killed, its workers finish as children of the init process, which is no scheduler.
    if owner is not None and owner.pid == 1 and not _airflow_command(owner.argv):
        owner = None
    return _named_local(around, owner) or Found("local", f"{PLAIN_LOCAL}@{around.host}", owner)


def _named_local(around: Surroundings, owner: Process | None) -> Found | None:
    """Recognise one of several workers of a scheduler, also where that is gone."""
    pid, _, name = around.environ.get(LOCAL_WORKER_VARIABLE, "").partition(":")
    if not name or (owner is not None and pid != str(owner.pid)):
        return None
    return Found("local", name, owner, is_one_of_several=True)


def _under_a_scheduler(around: Surroundings) -> Found | None:
    """Recognise what a scheduler runs: SequentialExecutor, or LocalExecutor where it has no titles."""
    owner = next(
        (process for process in around.lineage if _airflow_command(process.argv)[:1] == ("scheduler",)),
        None,
    )
    if owner is None:
        return None
    if around.executor.endswith("LocalExecutor"):
        return _named_local(around, owner) or Found("local", f"{PLAIN_LOCAL}@{around.host}", owner)
    return Found(around.executor or "unknown", around.host, owner)


# --- Edge ------------------------------------------------------------------------------------------------

_EDGE_TITLE = "airflow edge worker: "


def _edge(around: Surroundings, index: int) -> Found | None:
    """Match an Edge worker.

    Its main process is titled ``airflow edge worker: NAME`` by newer Edge providers and keeps its command
    with older ones, where the child that runs the supervisor is titled ``airflow edge worker:
    TaskInstanceKey(…)`` instead: the outermost of those in a row is the main process.
    """
    main = None
    for process in around.lineage[index:]:
        if not _is_edge_worker(process):
            break
        main = process
    if main is None:
        return None
    return Found("edge", _edge_name(around, main) or around.host, main)


def _is_edge_worker(process: Process) -> bool:
    return process.title.startswith(_EDGE_TITLE) or _airflow_command(process.argv)[:2] == ("edge", "worker")


def _edge_name(around: Surroundings, main: Process) -> str:
    # All versions of the Edge worker put their name into HOSTNAME and have Airflow read its host name there.
    if around.environ.get("AIRFLOW__CORE__HOSTNAME_CALLABLE", "").endswith("._edge_hostname"):
        return around.environ.get("HOSTNAME", "")
    if main.title.startswith(_EDGE_TITLE):
        return main.title[len(_EDGE_TITLE) :]
    return ""


# --- Kubernetes ------------------------------------------------------------------------------------------

# The downward API has no names of its own: these are the ones of its documentation (MY_), of Airflow's chart
# and of the common log and trace collectors.
_PREFIXES = ("", "K8S_", "KUBERNETES_", "MY_")


def _kubernetes_pod(around: Surroundings) -> Found | None:
    """Recognise a pod that KubernetesExecutor made for one try: it says so in the pod's environment."""
    if around.environ.get("AIRFLOW_IS_K8S_EXECUTOR_POD", "").lower() not in {"true", "1"}:
        return None
    name = _downward(around, "POD_NAME") or around.host
    namespace = kubernetes_labels(around).get("namespace", "")
    uid = _downward(around, "POD_UID")
    # The outermost one: a shell or an init process may stand above it, sidecars of the pod never do.
    main = next((process for process in reversed(around.lineage) if _airflow_command(process.argv)), None)
    return Found("kubernetes", name, main, pod=uid or f"{namespace}/{name}")


def kubernetes_labels(around: Surroundings) -> dict[str, str]:
    """Return ``namespace``, ``node`` and ``pod`` as far as the environment tells: nothing outside a pod."""
    labels = {
        "namespace": _downward(around, "POD_NAMESPACE") or _downward(around, "NAMESPACE"),
        "node": _downward(around, "NODE_NAME"),
        "pod": _downward(around, "POD_NAME"),
    }
    if not labels["namespace"] and "KUBERNETES_SERVICE_HOST" in around.environ:
        labels["namespace"] = around.service_account_namespace
    fit = {key: clean(value, LABEL_VALUE_LENGTH) for key, value in labels.items()}
    return {key: value for key, value in fit.items() if value}


def _downward(around: Surroundings, name: str) -> str:
    # A variable named NAMESPACE alone may be anyone's.
    prefixes = _PREFIXES[1:] if name == "NAMESPACE" else _PREFIXES
    return next((value for prefix in prefixes if (value := around.environ.get(prefix + name, ""))), "")


# --- What runs the tries of a worker --------------------------------------------------------------------------


def is_task(argv: Sequence[str]) -> bool:
    """Return whether a process is titled as a task process, which runs one try and ends with it."""
    title = argv[0]
    if title.startswith("airflow task runner: "):  # Airflow 2.11
        return True
    return title.startswith("airflow worker -- ") and not title.startswith(_LOCAL_WORKER)


def holds_tasks(argv: Sequence[str]) -> bool:
    """Return whether this is one of a worker's processes that run tries, as long as it has a child: the task.

    Such are the processes of Celery's pool and of LocalExecutor, which outlive their tries, and the supervisors that
    Edge starts for each try. The worker's log server, Dag processors and helpers are not.
    """
    title = argv[0]
    return (
        title.startswith((_SUPERVISOR, "airflow task supervisor: ", _LOCAL_WORKER, _EDGE_TITLE))
        or (title.startswith(_CELERY_TITLE) and _CELERY_POOL in title)
        or _airflow_command(argv)[:2] == ("tasks", "run")
    )


def is_fork_server(argv: Sequence[str]) -> bool:
    """Return whether this is Python's fork server."""
    return any(_FORK_SERVER in word for word in argv)


# --- Commands --------------------------------------------------------------------------------------------


def _airflow_command(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the words after ``airflow`` on the command line of an Airflow process, else nothing.

    A process that sets its title, or sets it back as Airflow 2.11's scheduler, shows one string with spaces.
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
