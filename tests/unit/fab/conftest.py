"""The app, Airflow's login and readers with different rights: see ``tests/unit/readers.py``."""

from __future__ import annotations

from tests.unit.readers import auth_manager, client_of, dags, tries

__all__ = ["auth_manager", "client_of", "dags", "tries"]
