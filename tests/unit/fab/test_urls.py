"""URLs of pages that Flask serves."""

from __future__ import annotations

import pytest

from airflow_worker_insight.fab.pages import FlaskUrls


@pytest.mark.parametrize(
    ("renders_with_flask", "script_root", "root"),
    [
        (False, "/pluginsv2", ""),
        (False, "/deep/pluginsv2", "/deep"),
        (True, "", ""),
        (True, "/deep", "/deep"),
        # Nothing is mounted there on 2.11: it is a part of the server's own path.
        (True, "/pluginsv2", "/pluginsv2"),
    ],
)
def test_root_of_airflow_is_above_the_mounted_flask_app(renders_with_flask: bool, script_root: str, root: str) -> None:
    assert FlaskUrls(script_root, renders_pages_with_flask=renders_with_flask).api_root == root
