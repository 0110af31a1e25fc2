"""Turn view models into HTML with the package's templates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
FAB_TEMPLATES = Path(__file__).parents[1] / "fab" / "templates"
"""What stands around pages in Airflow 2.11's own page: the layout of ours is rendered here, Flask renders the rest."""

STATIC = Path(__file__).parent / "static"

FRAGMENT = "worker_insight/fragment.html"
"""The layout of a page without what is around it."""


@cache
def environment() -> Environment:
    """Return the template environment: everything is escaped, and a misspelt name is an error."""
    return Environment(
        loader=FileSystemLoader([TEMPLATES, FAB_TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Return the HTML of ``worker_insight/<template>``."""
    return environment().get_template(f"worker_insight/{template}").render(**values)
