"""CSRF checks for requests that change something. Pure functions.

A browser adds the login cookie to a request whichever page sends it (with SameSite most browsers do not, but that is up
to the browser). It also states the origin of the request, which no page can forge. A browser never adds a bearer token
by itself, but it does add cookies, and the credentials of basic authentication once it knows them.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

CROSS_ORIGIN_REFUSED = (
    "The change was not saved, because the browser did not confirm that it came from a page of this server. Open that "
    "page again and retry. A program must send JSON, and a bearer token instead of a login cookie."
)


class Headers(Protocol):
    """Request headers with case-insensitive names."""

    def get(self, name: str, /) -> str | None:
        """Return the value of a header, or ``None`` if it is missing."""


def is_same_origin(headers: Headers, *, base_url: str) -> bool:
    """Return whether a page of this server sent the request; an unknown origin is ``False``.

    :param headers: the request headers
    :param base_url: the URL at which users reach the server
    """
    fetch_site = headers.get("sec-fetch-site")
    if fetch_site is not None:
        return fetch_site == "same-origin"
    # Browsers omit Sec-Fetch-Site without TLS, except on localhost.
    origin = headers.get("origin")
    if not origin:
        return False
    # A proxy may replace Host, so compare with the base URL too. X-Forwarded-Host is not safe: a page of another site
    # can set it if Airflow's CORS settings allow the header.
    origin_host = urlsplit(origin).netloc
    return bool(origin_host) and origin_host in {headers.get("host"), urlsplit(base_url).netloc}


def passes_csrf_checks(headers: Headers, *, has_login_cookie: bool, base_url: str) -> bool:
    """Return whether a request that changes something passes the CSRF checks.

    A login cookie may authenticate the request even beside a bearer token (Airflow 3.1 and 3.2 prefer the cookie). With
    such a cookie, the browser must state that a page of this server sent the request, and the body must be JSON, which
    no form can send. Without it a bearer token suffices, and so do other credentials that no browser sent.

    :param headers: the request headers
    :param has_login_cookie: whether the request carries a login cookie
    :param base_url: the URL at which users reach the server
    """
    scheme = (headers.get("authorization") or "").partition(" ")[0].lower()
    is_browser = bool(headers.get("sec-fetch-site") or headers.get("origin"))
    if not has_login_cookie and (scheme == "bearer" or (scheme and not is_browser)):
        return True
    return is_json(headers) and is_same_origin(headers, base_url=base_url)


def is_json(headers: Headers) -> bool:
    """Return whether the content type of a request is JSON."""
    return (headers.get("content-type") or "").partition(";")[0].strip().lower() == "application/json"
