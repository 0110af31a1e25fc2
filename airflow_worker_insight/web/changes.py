"""Whether a change that a program sends to the REST API may be made: no browser must have been talked into sending it.

A bearer token is nothing that a browser adds by itself. A cookie is, and so are the credentials of basic authentication
once it knows them. Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.web.origin import is_from_here

if TYPE_CHECKING:
    from airflow_worker_insight.web.origin import Headers


def may_be_made(headers: Headers, *, has_login_cookie: bool, base_url: str) -> bool:
    """Return whether the one whose credentials a request carries must have meant it.

    Where a login's cookie comes along, it may be what counts, also beside a bearer token (Airflow 3.1 and 3.2 prefer
    it): then the browser must say that a page of this server sent the request, and the body must be JSON, which no form
    can send.

    :param headers: the request's
    :param base_url: under which people reach the server
    """
    scheme = (headers.get("authorization") or "").partition(" ")[0].lower()
    is_browser = bool(headers.get("sec-fetch-site") or headers.get("origin"))
    if not has_login_cookie and (scheme == "bearer" or (scheme and not is_browser)):
        return True
    return is_json(headers) and is_from_here(headers, base_url=base_url)


def is_json(headers: Headers) -> bool:
    """Return whether a request says that its body is JSON."""
    return (headers.get("content-type") or "").partition(";")[0].strip().lower() == "application/json"
