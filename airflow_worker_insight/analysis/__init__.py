"""The analysis: feed the detector of :mod:`~airflow_worker_insight.insight` from the database, and keep what it finds.

One process of a deployment does so at a time, under a lease.
"""

from __future__ import annotations
