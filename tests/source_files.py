"""Python files as the search reads them, and their changed text written."""

from pathlib import Path

from flashmore.git import Indices
from flashmore.upgrade.project.files import decoded
from flashmore.upgrade.site import Searched
from flashmore.upgrade.write import write


def read_source(path: Path) -> Searched:
    raw = path.read_bytes()
    source, encoding = decoded(raw)
    return Searched(str(path), source, raw, encoding, ())


def write_source(found: Searched, text: str, *, force: bool = False, indices: Indices | None = None) -> None:
    write(found, text.encode(found.encoding), force=force, indices=indices)
