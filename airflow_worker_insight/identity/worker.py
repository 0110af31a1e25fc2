"""Description of the worker that this process belongs to."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.names import (
    HOSTNAME_LENGTH,
    KIND_LENGTH,
    NAME_LENGTH,
    bounded_labels,
    clean,
    executor_name,
    parse_labels,
    slug,
)
from airflow_worker_insight.identity import detection, machine, process, versions
from airflow_worker_insight.identity.process import read_text
from airflow_worker_insight.identity.safe_call import safe_call

if TYPE_CHECKING:
    from typing import Any

IMAGE_LENGTH = 250
_SERVICE_ACCOUNT_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker instance as it describes itself."""

    worker_id: str
    """ID of the worker instance: at most 64 of ``[A-Za-z0-9._@:-]``.

    All task processes of an instance share it; it changes when the worker restarts.
    """
    name: str
    """Name that an operator set, else the detected one; at most 250 characters.

    It outlives restarts.
    """
    kind: str
    """``celery``, ``local``, ``kubernetes``, ``edge``, or the executor's own name."""
    hostname: str
    """Host name that Airflow recorded for the task instance, else the host's own."""
    engine_name: str | None = None
    """Name in the worker source (the Celery node, the Edge worker's name).

    A name that an operator set does not change it.
    """
    pid: int | None = None
    """Pid of the worker's main process."""
    started_at: str | None = None
    """Start of the main process: ISO 8601 in UTC, whole seconds."""
    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, int | float | str] = field(default_factory=dict)
    """``cpus``, ``memory_bytes``, ``os``, ``architecture``, and ``image`` if configured."""
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the description as a JSON-compatible dictionary."""
        return {
            "worker_id": self.worker_id,
            "name": self.name,
            "kind": self.kind,
            "hostname": self.hostname,
            "engine_name": self.engine_name,
            "pid": self.pid,
            "started_at": self.started_at,
            "labels": dict(self.labels),
            "resources": dict(self.resources),
            "versions": dict(self.versions),
        }


def whoami(
    *,
    hostname: str | None = None,
    executor: str | None = None,
    name: str | None = None,
    labels: str | None = None,
    image: str | None = None,
) -> Worker:
    """Return the worker of this process. Never raises, starts no process, sends no request.

    :param hostname: what Airflow recorded as the task instance's host name
    :param executor: the executor's name if the caller knows it, in any form that Airflow writes
    :param name: the name that an operator gave this worker; replaces the detected name, but does not change the ID
    :param labels: the labels that an operator gave this worker: ``region=…,zone=…``
    :param image: the container image that an operator says this worker runs in
    """
    host = _host()
    no_labels: dict[str, str] = {}
    fallback = (_id("unknown", host), detection.DetectedWorker("unknown", host, None), no_labels)
    return _describe(
        safe_call(lambda: _identify(host, executor), fallback),
        host,
        hostname=hostname,
        name=name,
        labels=labels,
        image=image,
    )


def local_worker(
    name: str, *, hostname: str | None = None, labels: str | None = None, image: str | None = None
) -> tuple[Worker, dict[str, str]]:
    """Return a named local worker of this scheduler process before it has any processes.

    The worker's task processes describe it in the same way if they run with the returned environment.

    :param name: the name that an operator gave it
    :param hostname: what Airflow calls this machine; it makes the name unique among the workers of all schedulers
    :param labels: as for :func:`whoami`
    :param image: as for :func:`whoami`
    :return: the worker, and the environment for its processes
    """
    host = _host()
    context = _process_context(host, "LocalExecutor")
    full_name = clean(f"{name}@{clean(hostname, HOSTNAME_LENGTH) or host}", NAME_LENGTH)
    detected = detection.DetectedWorker("local", full_name, next(iter(context.lineage), None), shares_main_process=True)
    worker = _describe(
        (_current_instance_id(detected, context), detected, detection.kubernetes_labels(context)),
        host,
        hostname=hostname,
        name=name,
        labels=labels,
        image=image,
    )
    return worker, detection.local_worker_environment(full_name, os.getpid())


def _describe(
    identified: tuple[str, detection.DetectedWorker, dict[str, str]],
    host: str,
    *,
    hostname: str | None,
    name: str | None,
    labels: str | None,
    image: str | None,
) -> Worker:
    worker_id, detected, own_labels = identified
    main = detected.main
    return Worker(
        worker_id=worker_id,
        name=next(filter(None, (clean(candidate, NAME_LENGTH) for candidate in (name, detected.name, host)))),
        kind=detected.kind,
        hostname=clean(hostname, HOSTNAME_LENGTH) or host,
        engine_name=clean(detected.name, NAME_LENGTH) or None,
        pid=main.pid if main else None,
        started_at=safe_call(lambda: _iso(main.create_time if main else None), None),
        labels=safe_call(lambda: bounded_labels(parse_labels(labels), own_labels), {}),
        resources=safe_call(lambda: _resources(image), {}),
        versions=safe_call(lambda: versions.versions(detected.kind, sys.modules), {}),
    )


def _host() -> str:
    return safe_call(lambda: clean(os.uname().nodename, HOSTNAME_LENGTH), "") or "unknown"


def instance_id(
    detected: detection.DetectedWorker, context: detection.ProcessContext, boot_id: str, pid_namespace: str
) -> str:
    """Return the ID of a worker instance: a digest of what is constant during its lifetime.

    The worker's name is not part of it if the main process is known. Two workers never share a main process, except for
    the named workers of a scheduler. A name can also be lost for the same worker: after ``run_as_user`` in a worker
    without a pool (see ``detection``).
    """
    if detected.pod:
        return _id(detected.kind, detected.pod, detected.name)
    host_facts = (boot_id, pid_namespace, context.host)
    if detected.main:
        name = [detected.name] if detected.shares_main_process else []
        return _id(detected.kind, *host_facts, str(detected.main.pid), detected.main.start, *name)
    # Without a main process only the host has the same lifetime (or the container, whose first process is visible).
    first_process = context.lineage[-1] if context.lineage and context.lineage[-1].pid == 1 else None
    return _id(detected.kind, *host_facts, first_process.start if first_process else "", detected.name)


def _identify(host: str, executor: object) -> tuple[str, detection.DetectedWorker, dict[str, str]]:
    """Return the ID of the worker instance, the detected worker and its Kubernetes labels."""
    context = _process_context(host, executor)
    detected = detection.detect_worker(context)
    return _current_instance_id(detected, context), detected, detection.kubernetes_labels(context)


def _process_context(host: str, executor: object) -> detection.ProcessContext:
    return detection.ProcessContext(
        lineage=safe_call(process.lineage, []),
        environ=os.environ,
        modules=sys.modules,
        host=host,
        executor=executor_name(executor),
        service_account_namespace=_service_account_namespace(),
    )


def _current_instance_id(detected: detection.DetectedWorker, context: detection.ProcessContext) -> str:
    return instance_id(detected, context, process.boot_id(), process.pid_namespace())


def _id(kind: str, *facts: str) -> str:
    # The separator is NUL, which no fact can contain.
    digest = hashlib.blake2b("\0".join((kind, *facts)).encode("utf-8", "replace"), digest_size=12).hexdigest()
    return f"{slug(kind, KIND_LENGTH) or 'unknown'}-{digest}"


def _resources(image: object) -> dict[str, int | float | str]:
    described = machine.resources()
    name = clean(image, IMAGE_LENGTH)
    # Image names are ASCII; anything else is a mistake.
    return {**described, "image": name} if name and name.isascii() else described


def _iso(seconds: float | None) -> str | None:
    # "+00:00", not "Z": Python 3.10 does not parse "Z".
    return None if seconds is None else datetime.fromtimestamp(int(seconds), tz=timezone.utc).isoformat()


def _service_account_namespace() -> str:
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return ""
    return read_text(_SERVICE_ACCOUNT_NAMESPACE, 256)
