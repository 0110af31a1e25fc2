"""The docs name every option, command, endpoint, page and attribution that there is, and nothing that there is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.provider_info import get_provider_info
from airflow_worker_insight.store.decisions import REASONS
from airflow_worker_insight.store.tables import ATTRIBUTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def doc(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_each_option_is_documented_with_its_type_and_default() -> None:
    page = " ".join(doc("configuration.md").split())
    prose = page.replace("`", "")
    options: dict[str, dict[str, Any]] = get_provider_info()["config"]["worker_insight"]["options"]
    for name, option in options.items():
        default = f"`{option['default']}`" if option["default"] else "empty"
        assert f"| `{name}` | {option['type']} | {default} |" in page
        assert option["description"].split(". ")[0] in prose
    documented = set(re.findall(r"^## `(\w+)`", doc("configuration.md"), re.MULTILINE))
    assert documented == set(options)


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for command in group:
        name = f"{prefix}{command.name}"
        if hasattr(command, "subcommands"):
            yield from commands(command.subcommands, f"{name} ")
        else:
            yield name, command


def test_each_command_and_its_options_are_documented() -> None:
    from airflow_worker_insight.cli import get_commands

    page = doc("command.md")
    for name, command in commands(get_commands()[0].subcommands):
        assert f"`{name}" in page
        for arg in command.args:
            assert max(arg.flags, key=len) in page, f"{name} {arg.flags}"


def endpoints() -> set[str]:
    """Return what the page of the REST API has a heading for."""
    return set(re.findall(r"^## `([A-Z]+ /[^`]*)`", doc("rest.md"), re.MULTILINE))


@pytest.mark.skipif(not compat.is_airflow_3(), reason="the FastAPI app is Airflow 3's")
def test_each_route_is_documented_and_each_documented_route_is_there() -> None:
    from airflow_worker_insight.web.app import create_app

    api, pages = set(), set()
    for route in create_app().routes:
        path: str = route.path  # type: ignore[attr-defined]
        if path.startswith("/api/v1"):
            api |= {f"{method} {path.removeprefix('/api/v1')}" for method in route.methods}  # type: ignore[attr-defined]
        elif not path.endswith("/fragment"):
            pages.add(f"/worker-insight{path}")
    assert endpoints() == api
    named = re.findall(
        r"`(?:[A-Z]+ )?(/worker-insight/(?!api/)[^`?]*)", doc("pages.md") + doc("security.md") + doc("rest.md")
    )
    assert {path.removesuffix("/…") for path in named} == pages


@pytest.mark.parametrize(
    ("endpoint", "model"),
    [("GET /attempts", "AttemptQuery"), ("GET /workers", "WorkerQuery"), ("GET /services", "ServiceQuery")],
)
def test_each_parameter_of_a_list_is_documented_where_the_list_is(endpoint: str, model: str) -> None:
    from airflow_worker_insight.web import objects

    (section,) = re.findall(rf"^## `{endpoint}`$(.*?)^## ", doc("rest.md"), re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    documented = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(documented) == sorted(getattr(objects, model).model_fields)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_each_attribution_is_explained(attribution: str) -> None:
    assert f"| `{attribution}` |" in doc("how-it-works.md")
    assert f"`{attribution}`" in doc("rest.md")


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_of_a_placement_is_explained(reason: str) -> None:
    assert re.search(rf"^\| .*`{reason}`.* \|", doc("executors.md"), re.MULTILINE)


@pytest.mark.parametrize("page", sorted(path.name for path in [*DOCS.glob("*.md"), ROOT / "README.md"]))
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    path = ROOT / page if page == "README.md" else DOCS / page
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
