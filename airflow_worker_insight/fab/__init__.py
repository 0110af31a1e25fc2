"""All Flask code: the pages as Flask-AppBuilder views.

It is kept in one package, to be deleted in one step once Flask is no longer needed.
"""

from __future__ import annotations
