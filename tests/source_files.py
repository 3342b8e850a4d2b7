"""Python files as the search reads them, and their changed text written."""

from pathlib import Path

from flashmore.git import Indices
from flashmore.upgrade.edits import apply
from flashmore.upgrade.project.files import decoded
from flashmore.upgrade.search import search
from flashmore.upgrade.site import Searched, Site
from flashmore.upgrade.write import write


def read_source(path: Path) -> Searched:
    raw = path.read_bytes()
    source, encoding = decoded(raw)
    return Searched(str(path), source, raw, encoding, ())


def write_source(found: Searched, text: str, *, force: bool = False, indices: Indices | None = None) -> None:
    write(found, text.encode(found.encoding), force=force, indices=indices)


def site_of(folder: Path, files: dict[str, str], searched: str = "model.py") -> tuple[Site, str]:
    """The one place of a file, and the file as it would be."""
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    (folder / "pyproject.toml").touch()
    (found,) = search([folder / searched])
    assert isinstance(found, Searched)
    (one,) = found.sites
    return one, apply(found.source, [one])
