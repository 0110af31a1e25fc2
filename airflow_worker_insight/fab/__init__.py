"""Everything with Flask: the pages as Flask-AppBuilder views. One folder to delete some day."""

from __future__ import annotations
