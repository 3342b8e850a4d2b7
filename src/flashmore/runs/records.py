"""JSON files of a run: written strictly, validated when read, and sealed where alterations would do harm.

A sealed record has a field `sha256`, the SHA-256 of its other content in a canonical form, which detects
altered values in valid JSON.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from flashmore.errors import ConfigError, DataError, RunError
from flashmore.files import INTACT
from flashmore.strict_json import loads

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_SEAL = "sha256"


def digest(data: bytes) -> str:
    """The SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def encode(value: object, indent: int | None = 2) -> bytes:
    """Encode a value as strict JSON in UTF-8; ValueError or TypeError for what JSON does not support."""
    return (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """The content as JSON values, with its checksum."""
    plain = json.loads(encode(content))
    return {**plain, _SEAL: _checksum(plain)}


def unseal(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a sealed record from `path`; a RunError if it differs from its checksum."""
    content = {key: value for key, value in record.items() if key != _SEAL}
    if record.get(_SEAL) != _checksum(content):
        raise RunError(f"{path} with the content that its checksum describes", "it was altered", INTACT)
    return content


def _checksum(plain: dict[str, Any]) -> str:
    return digest(json.dumps(plain, sort_keys=True).encode())


def decode(data: bytes, path: Path) -> dict[str, Any]:
    """Decode a JSON object from the bytes of `path`; a RunError for anything else."""
    try:
        value = loads(data)
    except ValueError as error:
        raise RunError(f"JSON in {path}", f"truncated or altered: {error}", INTACT) from None
    if not isinstance(value, dict):
        raise RunError(f"a JSON object in {path}", type(value).__name__, INTACT)
    return value


def convert(value: object, kind: type[T], wanted: str) -> T:
    """Convert decoded JSON to a dataclass; all fields must be present with the right type, and no others.

    Raises:
        RunError: a field, which is named, does not match, or `__post_init__` refuses the values.
    """
    try:
        made = msgspec.convert(value, kind, dec_hook=_decode_path)
    except (DataError, ConfigError) as error:
        raise RunError(wanted, error.found, INTACT) from None
    except (msgspec.ValidationError, OverflowError) as error:
        raise RunError(wanted, str(error), INTACT) from None
    if odd := _different_fields(value, made):
        raise RunError(wanted, f"missing or unknown fields: {', '.join(odd[:8])}", INTACT)
    return made


def _different_fields(value: object, made: object) -> list[str]:
    """Fields that msgspec filled in or ignored, in nested dataclasses too."""
    if not isinstance(value, dict) or not dataclasses.is_dataclass(made):
        return []
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    inner = [name for key in value.keys() & fields for name in _different_fields(value[key], fields[key])]
    return sorted(value.keys() ^ fields) + inner


def _decode_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise msgspec.ValidationError(f"a value of type {type(value).__name__}")
