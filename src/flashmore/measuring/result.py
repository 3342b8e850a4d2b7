"""Records: one versioned JSON format for all measurements.

A record contains the raw samples, the environment and the command, has units in its keys, and conforms to
`flashmore.measuring.record`, which documents it. Reports only format records.
"""

import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from flashmore.errors import DataError
from flashmore.files import disk_errors, replace_file
from flashmore.measuring.environment import environment
from flashmore.measuring.record import Record
from flashmore.ranks import local_world_size, world_size
from flashmore.strict_json import read

SCHEMA = "flashmore/record"
VERSION = 3
LARGEST, MOST_VALUES = 2**26, 1_000_000
"""Most bytes and values of a record; the largest in this repository has about 700,000 bytes. Validation takes
microseconds per value."""
NUMBERS = re.compile(r"\[\n([-+.,\de\s]+?)\n\s*\]")
Kind = Literal["step", "attention", "choose", "ablation"]


def make_record(
    kind: Kind, device: torch.device, body: Mapping[str, Any], *, complete: bool = True
) -> dict[str, Any]:
    """Build a record.

    Args:
        body: the results with raw samples, as `flashmore.measuring.record` describes them for this kind.
        complete: False if the measurement was interrupted and the rest is missing.
    """
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [*_program(), *sys.argv[1:]],
        "complete": complete,
        "environment": environment(device),
        **body,
    }


def _program() -> list[str]:
    """How this process was started, without its arguments."""
    if (ranks := world_size()) == 1:
        return [Path(sys.argv[0]).name]
    here = local_world_size()
    machines = ["--nnodes", str(ranks // here)] if ranks > here else []
    return ["torchrun", *machines, "--nproc-per-node", str(here), "-m", "flashmore"]


def as_text(document: Mapping[str, Any]) -> str:
    """A human-readable JSON document: indented, with lists of numbers on one line."""
    text = json.dumps(document, indent=1, allow_nan=False)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record atomically.

    Raises:
        StorageError: writing failed; a previous file at `path` is kept.
    """
    with disk_errors(f"to write the record {path}", path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, as_text(record).encode())


def read_record(path: Path) -> dict[str, Any]:
    """Read a record and validate it.

    Raises:
        DataError: no such file, not JSON, truncated, not a record, or of another schema version.
    """
    wanted, valid = f"a record in {path}", "a file written by `flashmore bench` or `choose` with --out"
    record = read(path, wanted, valid, LARGEST, MOST_VALUES)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(wanted, "a JSON document of another kind", valid)
    if record.get("version") != VERSION:
        found = f"schema version {record.get('version')}"
        raise DataError(wanted, found, f"version {VERSION}: measure again with this version of flashmore")
    try:
        msgspec.convert(record, Record)
    except msgspec.ValidationError as error:
        raise DataError(wanted, str(error)[:200], valid) from None
    return record
