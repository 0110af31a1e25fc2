"""What each version of Airflow serves of a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.compat import plugins

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


@pytest.mark.parametrize(
    ("version", "has_apps", "has_views", "is_flask"),
    [((2, 11), False, False, True), ((3, 0), True, False, False), ((3, 1), True, True, False)],
    ids=str,
)
def test_each_version_serves_its_kinds_of_pages(
    mocker: MockerFixture, version: tuple[int, int], has_apps: bool, has_views: bool, is_flask: bool
) -> None:
    mocker.patch.object(compat, "airflow_version", return_value=version)
    assert plugins.serves_fastapi_apps() is has_apps
    assert plugins.serves_external_views() is has_views
    assert plugins.airflows_pages_are_flasks() is is_flask


@pytest.mark.parametrize(
    ("version", "script_root", "root"),
    [
        ((3, 3), "/pluginsv2", ""),
        ((3, 3), "/deep/pluginsv2", "/deep"),
        ((2, 11), "", ""),
        ((2, 11), "/deep", "/deep"),
        # Nothing is mounted there on 2.11: it is a part of the server's own path.
        ((2, 11), "/pluginsv2", "/pluginsv2"),
    ],
)
def test_root_of_airflow_is_above_the_mounted_flask_app(
    mocker: MockerFixture, version: tuple[int, int], script_root: str, root: str
) -> None:
    mocker.patch.object(compat, "airflow_version", return_value=version)
    assert plugins.airflow_root(script_root) == root
