"""The executor shim: where each task is to run. Queueing, delivery and processes stay with Airflow's own executors."""
