"""The docs name every option, command, endpoint, page and word that exists, and their links lead somewhere."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from airflow_worker_insight import compat
from scripts import generate_reference as reference
from tests.support.environments import AIRFLOW_VERSIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")])

newest_airflow = pytest.mark.skipif(
    compat.airflow_version()[:2] != tuple(map(int, AIRFLOW_VERSIONS[-1].split(".")))[:2],
    reason="the reference is that of the newest Airflow",
)


@cache
def doc(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks() -> set[tuple[str, str]]:
    """Return what the pages take from the code: each a function's name and its argument."""
    return {(match[2], match[3]) for path in reference.pages() for match in reference.BLOCK.finditer(path.read_text())}


def require_blocks(kind: str, names: set[str], page: str) -> None:
    """Check that a page has a block of this kind for each of these names and no other."""
    found = {name for found_kind, name in blocks() if found_kind == kind}
    marks = "".join(f"\n<!-- generated: {kind} {name} -->\n<!-- end -->\n" for name in sorted(names - found))
    assert not marks, f"below a heading each, add to docs/reference/{page}.md, then run `make reference`:\n{marks}"
    assert found == names, f"remove from docs/reference/{page}.md, with their headings: {sorted(found - names)}"


# --- what is generated -----------------------------------------------------------------------------------------------


@newest_airflow
@pytest.mark.parametrize("page", reference.pages(), ids=lambda path: path.stem)
def test_reference_is_what_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == reference.render(text), "run `make reference`"


@newest_airflow
def test_each_option_command_and_endpoint_is_in_the_reference() -> None:
    sources = reference._sources()
    require_blocks("option", set(sources.options), "configuration")
    require_blocks("command", set(sources.commands), "command")
    headings = set(re.findall(r"^## `([A-Z]+ /[^`]*)`", doc("reference/rest.md"), re.MULTILINE))
    assert headings == {
        f"{method} {route.path.removeprefix('/api/v1')}"
        for route in sources.app.routes
        if route.path.startswith("/api/v1")
        for method in route.methods
    }
    with_parameters = {
        f"{method.upper()} {path.removeprefix('/api/v1')}"
        for path, methods in sources.openapi["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation or any(one["in"] == "query" for one in operation.get("parameters", ()))
        if path.startswith("/api/v1")
    }
    require_blocks("parameters", with_parameters, "rest")


@newest_airflow
def test_each_page_is_in_the_reference() -> None:
    pages = {
        f"/worker-insight{route.path}"
        for route in reference._sources().app.routes
        if not route.path.startswith("/api/v1") and not route.path.endswith("/fragment")
    }
    text = doc("reference/pages.md") + doc("how-to/permissions.md") + doc("reference/rest.md")
    named = re.findall(r"`(?:[A-Z]+ )?(/worker-insight/(?!api/)[^`?]*)", text)
    assert {path.removesuffix("/…") for path in named} == pages
    for path in pages - {"/worker-insight/static"}:
        assert f"{path}`" in doc("how-to/permissions.md"), path


@newest_airflow
@pytest.mark.parametrize(
    ("plural", "model"),
    [
        ("attempts", "AttemptResponse"),
        ("placements", "PlacementResponse"),
        ("workers", "WorkerResponse"),
        ("findings", "FindingResponse"),
        ("statistics", "StatisticsRowResponse"),
    ],
)
def test_an_example_has_all_fields(plural: str, model: str) -> None:
    schemas: dict[str, Any] = reference._sources().openapi["components"]["schemas"]
    (text,) = re.findall(rf'```json\n(\{{\n  "{plural}".*?)```', doc("reference/rest.md"), re.DOTALL)
    (example,) = json.loads(text)[plural]
    assert set(example) == set(schemas[model]["properties"])
    if plural == "attempts":
        assert set(example["workers"][0]) == set(schemas["AttemptWorkerResponse"]["properties"])


# --- what people write -----------------------------------------------------------------------------------------------


@newest_airflow
def test_each_state_and_availability_is_explained() -> None:
    page = doc("reference/worker-states.md")
    for word in (*reference._sources().worker_states, *reference._sources().availabilities):
        assert f"| `{word}` |" in page


@newest_airflow
def test_it_is_said_what_to_do_about_each_reason_to_wait() -> None:
    page = doc("how-to/waiting-tasks.md")
    for reason in reference._sources().reasons:
        assert not reason.startswith("waits_") or f"`{reason}`" in page


def test_each_tested_version_is_named() -> None:
    assert ", ".join(AIRFLOW_VERSIONS) in doc("reference/compatibility.md")


QUOTED = (
    "Airflow Worker Insight places tasks again",
    "Only reports of tasks name it",
    "Inherited from instance",
    "The worker is empty and gets no new tasks.",
    "Waiting for a worker",
    "Lost tries",
    "Host inferred",
    "Not placed yet",
    "Not reported yet",
    "Not started yet",
    "Outcomes per hour",
    "Placed here",
    "Test run",
    "Running now",
    "Show all workers",
    "Inferred",
    "cannot place tasks and",
    "cannot start: ",
    "could not record the worker of this try",
    "does not answer",
    "left out: ",
    "Deleted Dag run",
    "sends them as Airflow's own CeleryExecutor does",
    "times as long as others",
)
"""What pages, log and command say, in words by which a reader of the docs recognises it."""


@cache
def package() -> str:
    paths = sorted((ROOT / "airflow_worker_insight").rglob("*"))
    return "".join(path.read_text(encoding="utf-8") for path in paths if path.suffix in (".py", ".html"))


@pytest.mark.parametrize("words", QUOTED)
def test_quoted_words_are_those_of_the_code(words: str) -> None:
    assert words in package()
    assert any(words in (ROOT / page).read_text(encoding="utf-8") for page in PAGES)


# --- links -----------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return what a link can name within a page, as MkDocs and GitHub both make it of a heading."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}: no heading of that page gives this anchor"


def test_each_page_and_picture_is_used() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    for path in DOCS.rglob("*.md"):
        assert f" {path.relative_to(DOCS)}\n" in navigation, path
    for path in (DOCS / "images").iterdir():
        assert f"images/{path.name}" in text, path
