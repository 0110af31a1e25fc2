"""Whether a browser's request that changes something was sent by a page of this server: what keeps others' pages out.

The browser adds the login's cookie to whatever page sends the request (most do not, with SameSite, but that is theirs
to decide). It says truly, and no page can make it say otherwise, where the request comes from. A pure function.
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
