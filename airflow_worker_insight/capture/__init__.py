"""Record tries: a listener reports, the claim takes the report, reconciling does the rest."""

from __future__ import annotations
