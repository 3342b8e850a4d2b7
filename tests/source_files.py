"""Python files as the search reads them, before they are written."""

from pathlib import Path

from flashmore.upgrade.project.files import decoded
from flashmore.upgrade.write import SourceFile


def read_source(path: Path) -> SourceFile:
    raw = path.read_bytes()
    return SourceFile(path, raw, decoded(raw)[1])
