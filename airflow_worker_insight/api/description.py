"""Parameters of the REST API in words, for the API page. Pure functions on the OpenAPI document."""

from __future__ import annotations

from typing import Any


def parameter_rows(operation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the name, the type and the meaning of an operation's parameters, and of the fields of its body."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    given = [(entry["name"], entry["schema"], entry) for entry in operation.get("parameters", ())]
    given += [(name, field, field) for name, field in body.get("properties", {}).items()]
    return [(name, _type_text(schema), entry.get("description", "")) for name, schema, entry in given]


def _type_text(schema: dict[str, Any]) -> str:
    """Describe in a few words which values a schema allows."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    text = " or ".join(option.get("format") or option.get("type", "any") for option in options)
    limits = {**schema, **(options[0] if options else {})}
    if "items" in limits:
        limits = limits["items"]
    if "enum" in limits:
        several = " or more" if text == "array" else ""
        text = f"one{several} of {', '.join(limits['enum'])}"
    if "maxLength" in limits:
        text += f", at most {limits['maxLength']} characters"
    if "minimum" in limits and "maximum" in limits and limits["maximum"] < 2**31 - 1:
        text += f", {limits['minimum']} to {limits['maximum']}"
    if schema.get("default") is not None:
        text += f", {schema['default']} by default"
    return text
