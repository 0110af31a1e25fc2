"""Render view models as HTML with the package's templates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from airflow_worker_insight.ui import formatting

TEMPLATES = Path(__file__).parent / "templates"
FAB_TEMPLATES = Path(__file__).parents[1] / "fab" / "templates"
"""Templates of the layout inside Airflow 2.11's own page.

The package's part of the layout is rendered here, Flask renders the rest.
"""

STATIC = Path(__file__).parent / "static"

FRAGMENT = "worker_insight/fragment.html"
"""Layout of a page without its surroundings."""


@cache
def environment() -> Environment:
    """Return the Jinja environment, which escapes all values and rejects undefined names."""
    jinja = Environment(
        loader=FileSystemLoader([TEMPLATES, FAB_TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("ago", "iso_time", "kind", "sentence", "state", "utc_time", "worker_state"):
        jinja.filters[name] = getattr(formatting, name)
    return jinja


def render(template: str, **values: Any) -> str:
    """Return the HTML of ``worker_insight/<template>``."""
    return environment().get_template(f"worker_insight/{template}").render(**values)
