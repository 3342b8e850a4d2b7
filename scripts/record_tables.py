"""The record's schema as tables."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).resolve().parents[1] / "src" / "flashmore" / "measuring" / "record.schema.json"
ENVELOPE = "Every record"

Schema = Mapping[str, Any]


def tables() -> str:
    """Every field of every part of a record, in the schema's order."""
    schema: Schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    parts = {ENVELOPE: schema, **schema["$defs"]}
    return "\n".join(table for name, part in parts.items() for table in _tables_of(name, part))


def _tables_of(name: str, part: Schema) -> Iterator[str]:
    fields = part.get("properties", {})
    if not fields:
        return
    title = ENVELOPE if name == ENVELOPE else f"`{name}`"
    also = "".join(
        f"All of `{_target(other)}`, and:\n\n" for other in part.get("allOf", ()) if "$ref" in other
    )
    yield f"### {title}\n\n{also}| field | type | what it is |\n| --- | --- | --- |"
    within = []
    for field, content in fields.items():
        optional = "" if field in part.get("required", ()) else " (may be missing)"
        kind, meaning = _type(content, f"{name}.{field}"), content.get("description", "")
        yield f"| `{field}` | {kind} | {meaning}{optional} |"
        for inner in (content, content.get("items", {})):
            if "properties" in inner:
                within.append((f"{name}.{field}".removeprefix(f"{ENVELOPE}."), inner))
    yield ""
    for path, inner in within:
        yield from _tables_of(path, inner)


def _type(content: Schema, path: str) -> str:
    if "$ref" in content:
        return f"`{_target(content)}`"
    if "anyOf" in content:
        return " or ".join(_type(choice, path) for choice in content["anyOf"])
    if "const" in content:
        return f"`{json.dumps(content['const'])}`"
    if "enum" in content:
        return ", ".join(f"`{value}`" for value in content["enum"])
    kinds = content["type"] if isinstance(content["type"], list) else [content["type"]]
    if "array" in kinds and "items" in content:
        items = f"`{path}`" if "properties" in content["items"] else _type(content["items"], path)
        kinds = [f"list of {items}" if kind == "array" else kind for kind in kinds]
    return " or ".join(kinds)


def _target(content: Schema) -> str:
    return str(content["$ref"]).rpartition("/")[2]
