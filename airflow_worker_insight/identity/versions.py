"""Versions of the software that a worker runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import __version__
from airflow_worker_insight.domain.names import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMMON_PACKAGES = {"airflow": ("airflow", "apache-airflow")}
_PACKAGES_BY_KIND = {
    "celery": {
        "celery": ("celery", "celery"),
        "celery_provider": ("airflow.providers.celery", "apache-airflow-providers-celery"),
    },
    "edge": {"edge_provider": ("airflow.providers.edge3", "apache-airflow-providers-edge3")},
}


def versions(kind: str, modules: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of Python, Airflow, this provider and the packages of a worker kind.

    A loaded module has its version at no cost. Otherwise (after ``run_as_user``, where Celery is not loaded) it is read
    from the installed distribution, because all processes of a worker must describe it alike.

    :param kind: the kind of the worker
    :param modules: the imported modules, as in ``sys.modules``
    """
    result = {"python": ".".join(map(str, sys.version_info[:3])), "provider": __version__}
    for key, (module, distribution) in {**_COMMON_PACKAGES, **_PACKAGES_BY_KIND.get(kind, {})}.items():
        version = clean(_version(modules.get(module), distribution), 32)
        if version:
            result[key] = version
    return result


def _version(module: object, distribution: str) -> str | None:
    # No getattr: the airflow module would import a missing attribute.
    version = vars(module).get("__version__") if module is not None else None
    if isinstance(version, str):
        return version
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
