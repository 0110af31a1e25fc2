"""What Airflow serves of a plugin, and where."""

from __future__ import annotations

from airflow_worker_insight import compat

FLASK_MOUNT_PATH = "/pluginsv2"
"""Path below which Airflow 3 mounts the Flask views of plugins."""


def serves_fastapi_apps() -> bool:
    """Return whether Airflow serves plugins' FastAPI apps and runs their lifespans (Airflow 3)."""
    return compat.is_airflow_3()


def serves_external_views() -> bool:
    """Return whether plugins can add views to Airflow's UI (3.1 and later)."""
    return compat.airflow_version() >= (3, 1)


def airflows_pages_are_flasks() -> bool:
    """Return whether Airflow renders its own pages with Flask, so that a plugin's page can extend them (2.11)."""
    return not compat.is_airflow_3()


def airflow_root(script_root: str) -> str:
    """Return the root path of Airflow's server.

    :param script_root: the root path of plugins' Flask views, which Airflow 3 mounts below :data:`FLASK_MOUNT_PATH`
    """
    return script_root.removesuffix(FLASK_MOUNT_PATH) if compat.is_airflow_3() else script_root
