"""Which versions run here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import __version__
from airflow_worker_insight.domain.names import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMMON = {"airflow": ("airflow", "apache-airflow")}
_OF_KIND = {
    "celery": {
        "celery": ("celery", "celery"),
        "celery_provider": ("airflow.providers.celery", "apache-airflow-providers-celery"),
    },
    "edge": {"edge_provider": ("airflow.providers.edge3", "apache-airflow-providers-edge3")},
}


def versions(kind: str, modules: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of Python, Airflow, this provider and what belongs to the worker's kind.

    A loaded module tells its version at no cost. Else (after ``run_as_user``, where Celery is not loaded) it
    is read from the installed distribution: all processes of a worker shall describe it alike.
    """
    found = {"python": ".".join(map(str, sys.version_info[:3])), "provider": __version__}
    for key, (module, distribution) in {**_COMMON, **_OF_KIND.get(kind, {})}.items():
        version = clean(_version(modules.get(module), distribution), 32)
        if version:
            found[key] = version
    return found


def _version(module: object, distribution: str) -> str | None:
    # Not getattr: the airflow module imports what it is asked for and does not have.
    version = vars(module).get("__version__") if module is not None else None
    if isinstance(version, str):
        return version
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
