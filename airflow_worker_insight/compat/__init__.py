"""Every difference between the supported Airflow versions (2.11 to 3.3), each named once, in a module for each area.

This one knows the version. Nothing is imported at module level here, nor in ``task_runtime``: both are loaded in every
task process, where each function may use only what Airflow itself has already imported there.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


@cache
def airflow_version() -> tuple[int, int]:
    """Return the running Airflow's major and minor version, for example ``(3, 3)``."""
    from airflow import __version__

    major, minor, *_ = __version__.split(".")
    return int(major), int(minor)


def is_airflow_3() -> bool:
    """Return whether this is Airflow 3, where task processes have no database and report through a channel."""
    return airflow_version() >= (3, 0)


def import_class(module: str, name: str) -> type[Any]:
    """Return a class of a module that is imported only now."""
    found: type[Any] = getattr(import_module(module), name)
    return found
