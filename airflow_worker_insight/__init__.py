"""Airflow Worker Insight: which worker ran each try of each task.

A try passes through the subpackages in this order: ``identity`` (detect the worker), ``capture`` (report, claim and
reconcile tries), ``store`` (database tables), ``api`` and ``ui`` (REST API and pages). ``plugin`` registers all of it
with Airflow, and ``compat`` contains the differences between Airflow versions.
"""

from __future__ import annotations

__version__ = "0.1.0"
