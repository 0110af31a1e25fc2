"""The REST API's OpenAPI document as a page prints it. Pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an operation, or a field of the body that it takes."""

    name: str
    type: str
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A path with a method, what it takes and an example of what it answers."""

    method: str
    path: str
    summary: str
    description: str
    parameters: tuple[Parameter, ...]
    responses: tuple[tuple[str, str], ...]
    example: str


@dataclass(frozen=True, slots=True)
class Description:
    """The whole API."""

    title: str
    version: str
    text: str
    operations: tuple[Operation, ...]


def describe(document: dict[str, Any], *, root: str) -> Description:
    """Return the description of an OpenAPI document's operations.

    :param root: the path in front of the document's paths
    """
    info = document["info"]
    return Description(
        title=info["title"],
        version=info["version"],
        text=info.get("description", ""),
        operations=tuple(
            _operation(method, root + path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ),
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> Operation:
    ok = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
    return Operation(
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        description=operation.get("description", ""),
        parameters=(
            *(
                Parameter(one["name"], _type(one.get("schema", {})), one.get("description", ""))
                for one in operation.get("parameters", ())
            ),
            *_body(operation),
        ),
        responses=tuple((code, answer.get("description", "")) for code, answer in operation["responses"].items()),
        example=json.dumps(ok["example"], indent=2) if "example" in ok else "",
    )


def _body(operation: dict[str, Any]) -> list[Parameter]:
    """Return the fields of the JSON body that an operation takes, if any."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    fields = content.get("schema", {}).get("properties", {})
    return [
        Parameter(name, f"in the body: {_type(field)}", field.get("description", "")) for name, field in fields.items()
    ]


def _type(schema: dict[str, Any]) -> str:
    """Say in a few words what values a schema takes."""
    options = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    words = " or ".join(one.get("format") or one.get("type", "any") for one in options)
    limits = {**schema, **(options[0] if options else {})}
    if "enum" in limits:
        words = f"one of {', '.join(limits['enum'])}"
    if "maxLength" in limits:
        words += f", at most {limits['maxLength']} characters"
    if "minimum" in limits and "maximum" in limits and limits["maximum"] < 2**31 - 1:
        words += f", {limits['minimum']} to {limits['maximum']}"
    if schema.get("default") is not None:
        words += f", {schema['default']} by default"
    return words
