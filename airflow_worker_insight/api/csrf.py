"""Whether a request that changes something was meant by the one whose login it carries.

The browser adds the login's cookie to whatever page sends the request (most do not, with SameSite, but that is theirs
to decide). It says truly, and no page can make it say otherwise, where the request comes from. A bearer token is
nothing that a browser adds by itself. A cookie is, and so are the credentials of basic authentication once it knows
them. Pure functions.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit


class Headers(Protocol):
    """A request's headers, with names in any case."""

    def get(self, name: str, /) -> str | None:
        """Return a header, or ``None``."""


def is_from_here(headers: Headers, *, base_url: str) -> bool:
    """Return whether a page of this server sent a request; one whose origin nothing tells was not.

    :param headers: the request's
    :param base_url: under which people reach the server
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    # Browsers leave that out where the server is reached without TLS under another name than localhost.
    origin = headers.get("origin")
    if not origin:
        return False
    # Behind a proxy that puts another host into the request the base URL tells. Not X-Forwarded-Host: a page elsewhere
    # may set that one where Airflow's CORS settings allow the header.
    came_from = urlsplit(origin).netloc
    return bool(came_from) and came_from in {headers.get("host"), urlsplit(base_url).netloc}


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
