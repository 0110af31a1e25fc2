"""The worker that this process belongs to, and the one question about it."""

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
    word,
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
    """One life of a worker, as it describes itself."""

    worker_id: str
    """At most 64 of ``[A-Za-z0-9._@:-]``: one for all task processes of a life, another after a restart."""
    name: str
    """What an operator calls it, at most 250 characters; outlives restarts."""
    kind: str
    """``celery``, ``local``, ``kubernetes``, ``edge``, or the executor's own name."""
    hostname: str
    """As Airflow recorded it for the task instance, else the host's own."""
    engine_name: str | None = None
    """What its engine calls it (the Celery node, the Edge worker's name), whatever an operator named it."""
    pid: int | None = None
    """Of the worker's main process."""
    started_at: str | None = None
    """When its main process started: ISO 8601 in UTC, whole seconds."""
    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, int | float | str] = field(default_factory=dict)
    """``cpus``, ``memory_bytes``, ``os``, ``architecture``, and ``image`` where an operator has set it."""
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the same as JSON takes it."""
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
    """Return the worker that this process belongs to. Never raises, starts nothing, asks nobody.

    :param hostname: what Airflow recorded as the task instance's host name
    :param executor: the executor's name as far as the caller knows it, in any of the ways Airflow writes it
    :param name: the name an operator gave this worker; replaces the one that was found, not the ID
    :param labels: labels an operator gave this worker: ``region=…,zone=…``
    :param image: the container image that an operator says this worker runs in
    """
    host = _host()
    nothing: dict[str, str] = {}
    nobody = (_id("unknown", host), detection.Found("unknown", host, None), nothing)
    return _described(
        safe_call(lambda: _identify(host, executor), nobody),
        host,
        hostname=hostname,
        name=name,
        labels=labels,
        image=image,
    )


def local_worker(
    name: str, *, hostname: str | None = None, labels: str | None = None, image: str | None = None
) -> tuple[Worker, dict[str, str]]:
    """Return one of the named workers that this process, a scheduler, has on its machine, before any process of it is.

    Its task processes say the same of themselves, given the environment that is returned with it.

    :param name: what an operator calls it
    :param hostname: what Airflow calls this machine; with it the name is one of all schedulers' workers
    :param labels: as for :func:`whoami`
    :param image: as for :func:`whoami`
    """
    host = _host()
    around = _surroundings(host, "LocalExecutor")
    full_name = clean(f"{name}@{clean(hostname, HOSTNAME_LENGTH) or host}", NAME_LENGTH)
    found = detection.Found("local", full_name, next(iter(around.lineage), None), is_one_of_several=True)
    worker = _described(
        (_life(found, around), found, detection.kubernetes_labels(around)),
        host,
        hostname=hostname,
        name=name,
        labels=labels,
        image=image,
    )
    return worker, detection.local_worker_environment(full_name, os.getpid())


def _described(
    identified: tuple[str, detection.Found, dict[str, str]],
    host: str,
    *,
    hostname: str | None,
    name: str | None,
    labels: str | None,
    image: str | None,
) -> Worker:
    worker_id, found, own_labels = identified
    main = found.main
    return Worker(
        worker_id=worker_id,
        name=next(filter(None, (clean(given, NAME_LENGTH) for given in (name, found.name, host)))),
        kind=found.kind,
        hostname=clean(hostname, HOSTNAME_LENGTH) or host,
        engine_name=clean(found.name, NAME_LENGTH) or None,
        pid=main.pid if main else None,
        started_at=safe_call(lambda: _iso(main.started if main else None), None),
        labels=safe_call(lambda: bounded_labels(parse_labels(labels), own_labels), {}),
        resources=safe_call(lambda: _resources(image), {}),
        versions=safe_call(lambda: versions.versions(found.kind, sys.modules), {}),
    )


def _host() -> str:
    return safe_call(lambda: clean(os.uname().nodename, HOSTNAME_LENGTH), "") or "unknown"


def life(found: detection.Found, around: detection.Surroundings, boot_id: str, pid_namespace: str) -> str:
    """Return the ID of this life of the worker: a digest of what stays the same as long as it lives.

    The worker's name is not part of it where the main process is known. Two workers never share one, but for the named
    ones of a scheduler, and a name can be lost: after ``run_as_user`` in a worker without a pool (see ``engines``),
    which is still the same worker.
    """
    if found.pod:
        return _id(found.kind, found.pod, found.name)
    here = (boot_id, pid_namespace, around.host)
    if found.main:
        name = [found.name] if found.is_one_of_several else []
        return _id(found.kind, *here, str(found.main.pid), found.main.start, *name)
    # All that lives as long as the worker is the host (or the container, whose first process we then see).
    first = around.lineage[-1] if around.lineage and around.lineage[-1].pid == 1 else None
    return _id(found.kind, *here, first.start if first else "", found.name)


def _identify(host: str, executor: object) -> tuple[str, detection.Found, dict[str, str]]:
    """Return the worker's ID, the worker, and the labels that its surroundings give it."""
    around = _surroundings(host, executor)
    found = detection.recognise(around)
    return _life(found, around), found, detection.kubernetes_labels(around)


def _surroundings(host: str, executor: object) -> detection.Surroundings:
    return detection.Surroundings(
        lineage=safe_call(process.lineage, []),
        environ=os.environ,
        modules=sys.modules,
        host=host,
        executor=executor_name(executor),
        service_account_namespace=_service_account_namespace(),
    )


def _life(found: detection.Found, around: detection.Surroundings) -> str:
    return life(found, around, process.boot_id(), process.pid_namespace())


def _id(kind: str, *facts: str) -> str:
    # The facts are joined by what none of them can hold.
    digest = hashlib.blake2b("\0".join((kind, *facts)).encode("utf-8", "replace"), digest_size=12).hexdigest()
    return f"{word(kind, KIND_LENGTH) or 'unknown'}-{digest}"


def _resources(image: object) -> dict[str, int | float | str]:
    found = machine.resources()
    name = clean(image, IMAGE_LENGTH)
    # An image's name is ASCII; what is not is a mistake.
    return {**found, "image": name} if name and name.isascii() else found


def _iso(seconds: float | None) -> str | None:
    # "+00:00" and not "Z", which Python 3.10 does not read.
    return None if seconds is None else datetime.fromtimestamp(int(seconds), tz=timezone.utc).isoformat()


def _service_account_namespace() -> str:
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return ""
    return read_text(_SERVICE_ACCOUNT_NAMESPACE, 256)
