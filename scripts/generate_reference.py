"""Write what the reference pages take from the code: ``make reference``.

A page marks such a part with two comments, and everything between them is replaced::

    <!-- generated: parameters GET /attempts -->
    <!-- end -->

The first word names a function of :data:`BLOCKS`, the rest is its argument. ``tests/unit/test_docs.py`` fails while a
page differs from the code. Only :func:`_sources` imports the package, so a moved module changes this file in one place.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_worker_insight.options import Option

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"(<!-- generated: (\w+) ?([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)

MAX_CHOICES = 8
"""More words than these are listed on a page of their own, not within a table's cell."""

COMMAND = "airflow-worker-insight"


@cache
def _sources() -> SimpleNamespace:
    """Return what the reference is made from."""
    from airflow_worker_insight.app import create_app
    from airflow_worker_insight.cli import get_commands
    from airflow_worker_insight.domain.reasons import PlacementReason
    from airflow_worker_insight.domain.states import Attribution, WorkerAvailability, WorkerState
    from airflow_worker_insight.options import OPTIONS
    from airflow_worker_insight.ui.views.attribution import attribution_of
    from airflow_worker_insight.ui.views.placement import reason_text

    app = create_app()
    return SimpleNamespace(
        options={option.name: option for option in OPTIONS},
        commands=dict(_commands(get_commands()[0].subcommands)),
        app=app,
        openapi=app.openapi(),
        attributions=Attribution.values(),
        attribution_of=attribution_of,
        worker_states=WorkerState.values(),
        availabilities=WorkerAvailability.values(),
        reasons=PlacementReason.values(),
        reason_text=reason_text,
    )


def _commands(group: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for command in group:
        name = f"{prefix}{command.name}"
        if hasattr(command, "subcommands"):
            yield from _commands(command.subcommands, f"{name} ")
        else:
            yield name, command


# --- configuration ---------------------------------------------------------------------------------------------------


def options(_: str) -> str:
    """Return a table of all configuration options."""
    return _table(
        ("option", "type", "default"),
        ((f"[`{name}`](#{name})", option.type, _default(option)) for name, option in _sources().options.items()),
    )


def option(name: str) -> str:
    """Return the description, type, limits, default and example of one option."""
    found = _sources().options[name]
    facts = [f"Type: {found.type}"]
    if found.minimum is not None:
        facts.append(f"at least {found.minimum}")
    if found.choices:
        facts.append(f"one of {', '.join(f'`{choice}`' for choice in found.choices)}")
    facts.append(f"default: {_default(found)}")
    if found.example:
        facts.append(f"example: `{found.example}`")
    facts.append(f"since {found.version_added}")
    return f"{_prose(found.description)}\n\n{' · '.join(facts)} · `AIRFLOW__WORKER_INSIGHT__{name.upper()}`"


def _default(option: Option) -> str:
    return f"`{option.default}`" if option.default else "empty"


# --- command ---------------------------------------------------------------------------------------------------------


def commands(_: str) -> str:
    """Return a table of all commands."""
    return _table(
        ("command", "what it does"),
        ((f"[`{name}`](#{_anchor(name)})", _prose(command.help)) for name, command in _sources().commands.items()),
    )


def command(name: str) -> str:
    """Return the usage and the options of one command."""
    found = _sources().commands[name]
    positional = [arg for arg in found.args if not arg.flags[0].startswith("-")]
    usage = " ".join([COMMAND, name, *(arg.kwargs.get("metavar", arg.flags[0].upper()) for arg in positional)])
    optional = [arg for arg in found.args if arg not in positional]
    text = f"```text\n{usage}{' [options]' if optional else ''}\n```\n\n{_prose(found.description or found.help)}"
    rows = [(_flags(arg), _prose(arg.kwargs.get("help", "")) + _required(arg)) for arg in found.args]
    return f"{text}\n\n{_table(('argument', 'meaning'), rows)}" if rows else text


def _flags(arg: Any) -> str:
    takes_value = "action" not in arg.kwargs and arg.flags[0].startswith("-")
    metavar = arg.kwargs.get("metavar") or arg.flags[-1].strip("-").replace("-", "_").upper()
    choices = arg.kwargs.get("choices")
    if choices:
        metavar = "{" + ",".join(choices) + "}"
    names = [flag if flag.startswith("-") else metavar for flag in arg.flags]
    return f"`{', '.join(names)}{f' {metavar}' if takes_value else ''}`"


def _required(arg: Any) -> str:
    return " **(required)**" if arg.kwargs.get("required") else ""


# --- REST ------------------------------------------------------------------------------------------------------------


def endpoints(_: str) -> str:
    """Return a table of all endpoints."""
    rows = []
    for path, methods in _sources().openapi["paths"].items():
        if path.startswith("/api/v1"):
            for method, operation in methods.items():
                name = f"{method.upper()} {path.removeprefix('/api/v1')}"
                rows.append((f"[`{name}`](#{_anchor(name)})", _prose(operation["summary"])))
    return _table(("endpoint", "what it does"), rows)


def parameters(endpoint: str) -> str:
    """Return a table of what one endpoint takes in its query or its body."""
    method, _, path = endpoint.partition(" ")
    operation = _sources().openapi["paths"][f"/api/v1{path}"][method.lower()]
    given = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
    rows = [(f"`{one['name']}`", _type(one["schema"]), _prose(one.get("description", ""))) for one in given]
    # What lists have in common comes last.
    rows.sort(key=lambda row: row[0] in {"`limit`", "`offset`"})
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for name, field in body.get("properties", {}).items():
        rows.append((f"`{name}`", _type(field), _prose(field.get("description", ""))))
    return _table(("field" if body else "parameter", "type", "meaning"), rows)


def fields(name: str) -> str:
    """Return a table of the fields of one object of the answers."""
    found = _sources().openapi["components"]["schemas"][name]
    return _table(
        ("field", "type", "meaning"),
        (
            (f"`{field}`", _type(schema, nullable=True), _prose(schema.get("description", "")))
            for field, schema in found["properties"].items()
        ),
    )


def _type(schema: dict[str, Any], *, nullable: bool = False) -> str:
    """Say in a few words what values a schema takes."""
    several = schema.get("anyOf", [schema])
    choices = [one for one in several if one.get("type") != "null"]
    text = " or ".join(_one_type({**schema, **one} if len(several) > 1 else one) for one in choices)
    if schema.get("default") is not None:
        text += f"; default `{schema['default']}`"
    return f"{text} or null" if nullable and len(choices) < len(several) else text


def _one_type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2].removesuffix("Response")
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    if schema.get("type") == "array" and "enum" in schema["items"]:
        return f"{_one_type(schema['items'])}; may be repeated"
    if schema.get("type") == "array":
        return f"list of {_one_type(schema['items'])}s"
    words = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if words and len(words) <= MAX_CHOICES:
        return ", ".join(f"`{word}`" for word in words)
    text = {"date-time": "time"}.get(schema.get("format", ""), schema.get("type", "any"))
    if "maximum" in schema and schema["maximum"] < 2**31 - 1:
        text += f", {schema.get('minimum', 0)} to {schema['maximum']:,}"
    if "maxLength" in schema:
        text += f", at most {schema['maxLength']} characters"
    return str(text)


# --- words that tries and workers have -------------------------------------------------------------------------------


def attributions(_: str) -> str:
    """Return a table of the attributions with what the pages say of them."""
    rows = []
    for name in _sources().attributions:
        for only_host, in_test in ((False, False), (True, False), (False, True)):
            workers = (SimpleNamespace(host_only=True),) if only_host else ()
            found = _sources().attribution_of(
                SimpleNamespace(attribution=name, state="success", workers=workers, ran_in_a_test=in_test)
            )
            row = (f"`{found.key}`", f"*{found.text}*", _prose(found.explanation))
            if found.key == name and row not in rows:
                rows.append(row)
    return _table(("`attribution`", "on the pages", "meaning"), rows)


def reasons(kind: str) -> str:
    """Return a table of the reasons of placements; ``kind`` is ``placed`` or ``waiting``."""
    found = [word for word in _sources().reasons if word.startswith("waits_") == (kind == "waiting")]
    return _table(
        ("`placement`", "on the pages"), ((f"`{word}`", _prose(_sources().reason_text(word))) for word in found)
    )


# --- writing ---------------------------------------------------------------------------------------------------------

BLOCKS: dict[str, Callable[[str], str]] = {
    block.__name__: block
    for block in (options, option, commands, command, endpoints, parameters, fields, attributions, reasons)
}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _prose(text: str) -> str:
    """Return a description as Markdown: one line, with nothing in it that Markdown would take for its own."""
    text = " ".join(text.replace("``", "`").split())
    parts = text.split("`")
    # Every other part is code.
    parts[::2] = [re.sub(r"([*<\[])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _anchor(heading: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def render(page: str) -> str:
    """Return a page with its generated parts written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match[2]](match[3])}\n\n{match[4]}", page)


def pages() -> list[Path]:
    """Return the pages that have generated parts."""
    return [path for path in sorted(DOCS.rglob("*.md")) if BLOCK.search(path.read_text(encoding="utf-8"))]


def main() -> int:
    """Write all pages and print those that changed."""
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(DOCS.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
