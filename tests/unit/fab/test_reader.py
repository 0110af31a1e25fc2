"""The user of a Flask request, as Airflow knows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, request
from flask_login import AnonymousUserMixin

from airflow_worker_insight import compat
from airflow_worker_insight.compat import fab as airflow_fab

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


class Manager:
    """An auth manager of Airflow 3 with one user and one token."""

    def __init__(self) -> None:
        self.of_session = SimpleNamespace(name="of the session", is_anonymous=False)
        self.of_token = SimpleNamespace(name="of the token", is_anonymous=False)

    def get_user(self) -> Any:
        return self.of_session

    async def get_user_from_token(self, token: str) -> Any:
        from jwt import InvalidTokenError

        if token != "good":
            raise InvalidTokenError
        return self.of_token


@pytest.mark.parametrize(
    ("version", "cookie", "expected"),
    [
        ((2, 11), "good", "of the session"),
        ((3, 0), None, "of the session"),
        ((3, 0), "good", "of the token"),
        ((3, 1), "good", "of the token"),
        ((3, 3), "forged", "nobody"),
        ((3, 3), None, "nobody"),
    ],
)
def test_user_comes_from_token_or_session(
    mocker: MockerFixture, version: tuple[int, int], cookie: str | None, expected: str
) -> None:
    manager = Manager()
    mocker.patch.object(compat, "airflow_version", return_value=version)
    mocker.patch.object(airflow_fab, "_flask_auth_manager", return_value=manager)
    app: Any = Flask("airflow")
    app.login_manager = SimpleNamespace(anonymous_user=AnonymousUserMixin)
    with app.test_request_context("/", headers={"Cookie": f"_token={cookie}"} if cookie else {}):
        assert request.cookies.get("_token") == cookie
        assert getattr(airflow_fab.flask_user(), "name", "nobody") == expected


def test_flask_views_need_the_fab_auth_manager() -> None:
    from airflow.configuration import conf

    if not compat.is_airflow_3():
        assert airflow_fab.serves_flask_views()
        return
    fabs = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    assert not airflow_fab.serves_flask_views()
    conf.set("core", "auth_manager", fabs)
    try:
        assert airflow_fab.serves_flask_views()
    finally:
        conf.remove_option("core", "auth_manager")
