"""Which requests that change something count as sent by a page of this server."""

from __future__ import annotations

import pytest

from airflow_worker_insight.api.csrf import is_same_origin

BASE_URL = "https://airflow.example.org/team"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-origin", "origin": "null"}, True),
        ({"sec-fetch-site": "same-site", "origin": "https://airflow.example.org"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "https://airflow.example.org"}, True),
        ({"origin": "http://10.0.0.1:8080", "host": "10.0.0.1:8080"}, True),
        ({"origin": "http://10.0.0.1:8080", "host": "10.0.0.1:8081"}, False),
        # A proxy that rewrites the host, without and with TLS.
        ({"origin": "http://airflow.example.org", "host": "internal:8080"}, True),
        ({"origin": "https://public.org", "host": "internal", "sec-fetch-site": "same-origin"}, True),
        # A page of an allowed origin may set this header where the CORS settings let it.
        ({"origin": "http://evil.org", "host": "internal", "x-forwarded-host": "evil.org, internal"}, False),
        ({"origin": "https://evil.org", "host": "internal"}, False),
        ({"origin": "https://airflow.example.org.evil.org"}, False),
        ({"origin": "null", "host": ""}, False),
        ({"host": "airflow.example.org"}, False),
        ({"referer": "https://airflow.example.org/worker-insight/workers/w1"}, False),
        ({}, False),
    ],
)
def test_where_a_change_came_from(headers: dict[str, str], expected: bool) -> None:
    assert is_same_origin(headers, base_url=BASE_URL) is expected
