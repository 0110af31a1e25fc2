"""HTML pages: the Worker panel, workers, one worker, attempts and waiting tries.

The view models (``views``), the templates and ``query_params`` depend on no web framework: the FastAPI app (Airflow 3)
and the Flask-AppBuilder views (Airflow 2.11, and 3 with the FAB auth manager) share them. SQL belongs in ``store``.
"""

from __future__ import annotations
