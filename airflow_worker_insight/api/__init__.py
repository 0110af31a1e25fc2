"""REST API, and the permissions, CSRF checks and connections that the pages share."""

from __future__ import annotations
