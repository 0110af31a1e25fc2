"""The command; each module tests the one of the same name in ``airflow_worker_insight/cli/``."""
