"""Executors that choose a worker for each task; Airflow's own executors do all else.

Queueing, delivery and processes stay with Airflow's own executors.
"""
