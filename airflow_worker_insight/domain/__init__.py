"""Vocabulary that the other subpackages share.

It does no I/O and imports no other subpackage.
"""

from __future__ import annotations
