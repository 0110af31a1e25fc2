"""Which changes that a program sends may be made: never one that a page elsewhere had a browser send."""

from __future__ import annotations

import pytest

from airflow_worker_insight.api.csrf import is_json, passes_csrf_checks

HERE = "https://airflow.example"
JSON = {"content-type": "application/json"}
BEARER = {"authorization": "Bearer token"}
SAME = {"sec-fetch-site": "same-origin"}


def may(headers: dict[str, str], *, cookie: bool) -> bool:
    return passes_csrf_checks(headers, has_login_cookie=cookie, base_url=f"{HERE}/deep")


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"authorization": "bearer token"},
        # A program that was given the token may run on another page.
        {**BEARER, "origin": "https://dashboard.example", "sec-fetch-site": "cross-site"},
        {"authorization": "Basic YWRtaW46"},
        {"authorization": "Negotiate x"},
    ],
)
def test_a_program_without_a_cookie_may(headers: dict[str, str]) -> None:
    assert may(headers, cookie=False)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        JSON,
        BEARER,
        {**JSON, **BEARER},
        {**JSON, "sec-fetch-site": "cross-site"},
        {**JSON, "sec-fetch-site": "same-site"},
        {**JSON, "sec-fetch-site": "none"},
        {**JSON, "origin": "https://evil.example"},
        {**JSON, "origin": "null"},
        {**JSON, "origin": f"{HERE}.evil.example"},
        {**JSON, **SAME, "content-type": "text/plain"},
        SAME,
    ],
)
def test_a_cookie_may_not_be_used_from_elsewhere(headers: dict[str, str]) -> None:
    assert not may(headers, cookie=True)


@pytest.mark.parametrize("headers", [{**JSON, **SAME}, {**JSON, "origin": HERE}, {**JSON, **BEARER, **SAME}])
def test_a_page_of_this_server_may(headers: dict[str, str]) -> None:
    assert may(headers, cookie=True)


@pytest.mark.parametrize(
    "headers", [{"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}, {**JSON, "origin": "null"}]
)
def test_a_browser_that_knows_a_password_is_not_believed(headers: dict[str, str]) -> None:
    assert not may({"authorization": "Basic YWRtaW46", **headers}, cookie=False)


def test_no_credentials_at_all_are_none() -> None:
    assert not may(JSON, cookie=False)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/json+form", False),
        ("text/plain", False),
        ("text/plain; application/json", False),
        ("", False),
    ],
)
def test_json_says_so(content_type: str, expected: bool) -> None:
    assert is_json({"content-type": content_type}) is expected
    assert not is_json({})
