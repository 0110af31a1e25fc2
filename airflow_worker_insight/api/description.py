"""Summary of the REST API's OpenAPI document for the API page. Pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an operation, or a field of its JSON body."""

    name: str
    type: str
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path, with its parameters, responses and an example of its answer."""

    method: str
    path: str
    summary: str
    description: str
    parameters: tuple[Parameter, ...]
    responses: tuple[tuple[str, str], ...]
    example: str


@dataclass(frozen=True, slots=True)
class Description:
    """The API's title, version, text and operations."""

    title: str
    version: str
    text: str
    operations: tuple[Operation, ...]


def describe(document: dict[str, Any], *, root: str) -> Description:
    """Return the summary of an OpenAPI document.

    :param document: the OpenAPI document
    :param root: the prefix of the document's paths
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
    success = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
    return Operation(
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        description=operation.get("description", ""),
        parameters=(
            *(
                Parameter(parameter["name"], _type_text(parameter.get("schema", {})), parameter.get("description", ""))
                for parameter in operation.get("parameters", ())
            ),
            *_body_fields(operation),
        ),
        responses=tuple((code, response.get("description", "")) for code, response in operation["responses"].items()),
        example=json.dumps(success["example"], indent=2) if "example" in success else "",
    )


def _body_fields(operation: dict[str, Any]) -> list[Parameter]:
    """Return the fields of an operation's JSON body; none if it takes no body."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    fields = content.get("schema", {}).get("properties", {})
    return [
        Parameter(name, f"in the body: {_type_text(field)}", field.get("description", ""))
        for name, field in fields.items()
    ]


def _type_text(schema: dict[str, Any]) -> str:
    """Describe in a few words which values a schema allows."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    text = " or ".join(option.get("format") or option.get("type", "any") for option in options)
    limits = {**schema, **(options[0] if options else {})}
    if "enum" in limits:
        text = f"one of {', '.join(limits['enum'])}"
    if "maxLength" in limits:
        text += f", at most {limits['maxLength']} characters"
    if "minimum" in limits and "maximum" in limits and limits["maximum"] < 2**31 - 1:
        text += f", {limits['minimum']} to {limits['maximum']}"
    if schema.get("default") is not None:
        text += f", {schema['default']} by default"
    return text
