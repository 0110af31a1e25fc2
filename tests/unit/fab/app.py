"""A Flask app that serves the views, as Airflow's own does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask_wtf.csrf import CSRFProtect
from jinja2 import DictLoader

from airflow_worker_insight.fab import registration

if TYPE_CHECKING:
    from airflow_worker_insight.fab.reader import FlaskAirflow

AIRFLOW_PAGE = """
<title>{% block page_title %}{{ title }} - Airflow{% endblock %}</title>
{% block head_css %}<link href="airflow.css">{% endblock %}
<nav>Airflow</nav>
{% block content %}{% endblock %}
{% block tail_js %}<script src="main.js"></script>{% endblock %}
"""


def flask_app(airflow: FlaskAirflow, *, root: str, csrf: bool = False) -> Any:
    """Return the app, mounted below ``root`` as this Airflow mounts it.

    :param csrf: whether it requires a form's token for each change, as Airflow 2 does
    """
    app: Any = Flask("airflow")
    app.secret_key = "secret"
    if csrf:
        CSRFProtect(app)
    app.jinja_loader = DictLoader({"airflow/main.html": AIRFLOW_PAGE})
    appbuilder = SimpleNamespace(base_template="airflow/main.html", app=app)
    for registered in registration.appbuilder_views(airflow):
        app.register_blueprint(registered["view"].create_blueprint(appbuilder))
    app.register_blueprint(registration.blueprint())
    script_name = root if airflow.renders_pages_with_flask else f"{root}/pluginsv2"
    inner = app.wsgi_app
    app.wsgi_app = lambda environ, start: inner({**environ, "SCRIPT_NAME": script_name}, start)
    return app
