"""Differences between the supported Airflow versions (2.11 to 3.3), one module per area.

Each difference has one function; this module detects the version. Neither this module nor ``task_runtime`` imports
Airflow at module level: every task process loads both, and their functions may use there only what Airflow itself has
already imported.
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
    """Return whether this is Airflow 3.

    Its task processes have no database access and report through a channel to their supervisor.
    """
    return airflow_version() >= (3, 0)


def import_class(module: str, name: str) -> type[Any]:
    """Import a module when called and return one of its classes."""
    class_: type[Any] = getattr(import_module(module), name)
    return class_
