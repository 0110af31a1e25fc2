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


def airflow_renders_pages_with_flask() -> bool:
    """Return whether Airflow renders its own pages with Flask, so that a plugin's page can extend them (2.11)."""
    return not compat.is_airflow_3()
