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
    assert plugins.airflow_renders_pages_with_flask() is is_flask
