"""Record tries: a listener reports, the API server claims the report, reconciling does the rest."""

from __future__ import annotations
