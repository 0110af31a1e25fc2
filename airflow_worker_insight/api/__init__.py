"""The REST API, and what requests for it and for the pages share: rights, forged requests, connections."""

from __future__ import annotations
