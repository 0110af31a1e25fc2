"""Where a task runs: the rules that an operator sets, the policy, and the service that reads and writes placements."""

from __future__ import annotations
