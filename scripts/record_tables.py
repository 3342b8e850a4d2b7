"""The record's schema as a file and as tables."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flashmore.measuring.record import schema

Schema = Mapping[str, Any]


def document() -> str:
    """The schema as a file, with one line for each part."""
    return re.sub(r'\s?("\w+": {"title")', r"\n\1", json.dumps(schema(), ensure_ascii=False)) + "\n"


def tables() -> str:
    """Every field of every part of a record, in the schema's order."""
    parts = schema()["$defs"]
    return "\n".join(line for name in parts for line in _table_of(name, parts))


def _table_of(name: str, parts: Schema) -> Iterator[str]:
    fields = parts[name]["properties"]
    within = [other for other in parts if parts[other]["properties"].items() < fields.items()]
    yield f"### `{name}`\n\n{parts[name]['description']}\n"
    if within:
        yield f"All of {' and of '.join(f'`{other}`' for other in within)}, and:\n"
    yield "| field | type | what it is |\n| --- | --- | --- |"
    for field, content in fields.items():
        if not any(field in parts[other]["properties"] for other in within):
            optional = "" if field in parts[name]["required"] else " (may be missing)"
            yield f"| `{field}` | {_type(content)} | {content.get('description', '')}{optional} |"
    yield ""


def _type(content: Schema) -> str:
    if "$ref" in content:
        return f"`{content['$ref'].rpartition('/')[2]}`"
    if "anyOf" in content:
        return " or ".join(map(_type, content["anyOf"]))
    if "enum" in content:
        return ", ".join(f"`{value}`" for value in content["enum"])
    if "items" in content or "prefixItems" in content:
        return f"list of {_type(content.get('items') or content['prefixItems'][0])}"
    return str(content["type"])
