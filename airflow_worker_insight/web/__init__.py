"""What people and programs see: the Worker panel, the pages and the REST API.

The view model (``view``), the templates and ``address`` know no web framework: the FastAPI app (Airflow 3) and the
Flask-AppBuilder views (Airflow 2.11, and 3 with its auth manager) share them. No SQL here: ``store`` reads.
"""
