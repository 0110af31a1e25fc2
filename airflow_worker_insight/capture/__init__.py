"""How a try is recorded: the listener sends a report, the claim takes it, reconciling accounts for the rest."""

from __future__ import annotations
