"""Placement of tasks: rules of operators, the policy, and the service for the database."""

from __future__ import annotations
