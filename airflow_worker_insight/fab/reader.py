"""The user of a Flask request, and what else the views need from Airflow's Flask app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.api.errors import RequestError
from airflow_worker_insight.api.reader import Reader
from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.compat import fab as airflow_fab
from airflow_worker_insight.compat import plugins as airflow_plugins

if TYPE_CHECKING:
    from typing import Any


class AccessDeniedError(RequestError):
    """Raised when a request needs a login, lacks a right, or does not pass the CSRF checks.

    :param status: 401 or 403
    :param text: the reason, for the user
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FlaskReader(Reader):
    """A user of Airflow's Flask app, maybe the public role."""

    def __init__(self, user: Any) -> None:
        self._user = user

    @property
    def name(self) -> str:
        """The reader's user name in Airflow."""
        return airflow_auth.user_name(self._user)

    @property
    def is_logged_in(self) -> bool:
        """Whether the reader is a user, as opposed to the public role."""
        return airflow_fab.flask_is_logged_in(self._user)

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        """Ask Airflow; see :class:`.Reader`."""
        return airflow_fab.flask_may_see_task_instances(self._user, dag_id)

    def may_see_workers(self) -> bool:
        """Ask Airflow; see :class:`.Reader`."""
        return airflow_fab.flask_may_see_jobs(self._user)

    def may_edit_pools(self) -> bool:
        """Ask Airflow; see :class:`.Reader`."""
        return airflow_fab.flask_may_edit_pools(self._user)

    def readable_dag_ids(self) -> set[str]:
        """Ask Airflow; see :class:`.Reader`."""
        return airflow_fab.flask_readable_dag_ids(self._user)

    def error(self, status: int, text: str) -> Exception:
        """Return what the views answer with."""
        return AccessDeniedError(status, text)


class FlaskAirflow:
    """Airflow, as its Flask app serves the current request."""

    def __init__(self) -> None:
        self.renders_pages_with_flask = airflow_plugins.airflow_renders_pages_with_flask()

    def page_reader(self) -> Reader:
        """Return the reader of a page."""
        return FlaskReader(airflow_fab.flask_user())

    def api_reader(self) -> Reader | None:
        """Return the reader of a REST request (2.11); ``None`` if it is not authenticated."""
        user = airflow_fab.flask_api_user()
        return None if user is None else FlaskReader(user)

    def csrf_token(self) -> str:
        """Return the token that Airflow's Flask app requires in forms."""
        return airflow_fab.flask_csrf_token()

    def login_url(self, api_root: str, next_url: str) -> str:
        """Return the URL of the login page that leads back to ``next_url``."""
        return airflow_fab.flask_login_url(api_root, next_url)
