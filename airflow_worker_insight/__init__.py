"""Airflow Worker Insight: which worker ran each try of each task.

One try can be followed through the folders in this order: ``identity`` (who am I?), ``capture`` (the report, the
claim, the reconcile), ``store`` (the two tables), ``web`` (the pages and the REST API). ``plugin`` hands all of it to
Airflow and ``compat`` names what differs between Airflow versions.
"""

from __future__ import annotations

__version__ = "0.1.0"
