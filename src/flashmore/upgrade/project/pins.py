"""Whether the versions of torch that a project requires have what a rewrite calls."""

import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flashmore.upgrade.project.files import Unreadable, content
from flashmore.upgrade.rules import rule
from flashmore.upgrade.site import Site

FILES = (
    "requirements*.txt", "requirements/*.txt", "pyproject.toml", "setup.py", "setup.cfg",
    "environment*.yml", "environment*.yaml", "conda*.yml", "conda*.yaml",
)  # fmt: skip
# Future releases too, which an open upper bound allows.
_RELEASES = [Version(f"1.{minor}") for minor in range(14)] + [Version(f"2.{minor}") for minor in range(100)]
_WRITTEN = re.compile(r"""(?<![\w.-])(?:py)?torch\s*((?:[<>=!~]{1,3}\s*[\w.*+!-]+\s*,?\s*)+)""")
"""`torch==1.13.1`, `"torch >= 1.12, < 2"`, `- pytorch=1.13`."""


@dataclass(frozen=True)
class Pin:
    """What a file of the project requires of torch."""

    file: Path
    text: str
    allowed: tuple[Version, ...]
    """Of the releases, and of the versions that it names."""

    @classmethod
    def of(cls, file: Path, text: str) -> Self:
        """Read specifiers such as `>=1.10,<2`.

        Raises:
            ValueError: they are none.
        """
        wanted = SpecifierSet(text)
        named = [Version(each.version.rstrip(".*")) for each in wanted if each.operator != "==="]
        allowed = (each for each in (*_RELEASES, *named) if wanted.contains(each, prereleases=True))
        return cls(file, f"torch{text}", tuple(allowed))

    def excludes(self, needed: Version) -> bool:
        """Whether it allows no version from the needed one on."""
        return all(each < needed for each in self.allowed)

    def includes_older(self, needed: Version) -> bool:
        """Whether it allows a version before the needed one."""
        return any(each < needed for each in self.allowed)


def pins(root: Path) -> list[Pin]:
    """Every requirement of torch in the files of a project's folder."""
    found = []
    for path in sorted({path for name in FILES for path in root.glob(name)}):
        try:
            text = content(path).decode("utf-8", "replace")
        except Unreadable:
            continue
        written = _of_toml(text) if path.suffix == ".toml" else _of_text(text)
        for each in written:
            with suppress(ValueError):
                found.append(Pin.of(path, each))
    return found


def judged(site: Site, found: list[Pin], target: Version | None = None) -> Site:
    """A rewritten place, refused if the project excludes the versions that it needs.

    Args:
        site: the place.
        found: what the project requires of torch.
        target: the oldest version that it supports, as it says itself; it then decides alone.
    """
    text = "".join(edit.text for edit in site.edits)
    what, first = next((each for each in rule(site.code).needs if each[0] in text), ("", "0"))
    needed = Version(first)
    what = what.rstrip("(=")
    if target is not None:
        if target >= needed:
            return site
        reason = f"target-torch is {target}, but `{what}` needs torch {first} or newer"
        return site.refused(reason, f'set target-torch = "{first}" or newer')
    for pin in found:
        if pin.excludes(needed):
            reason = f"{pin.file.name} requires {pin.text}, but `{what}` needs torch {first} or newer"
            return site.refused(reason, f"allow a newer version of torch, or --target-torch {first}")
    older = next((pin for pin in found if pin.includes_older(needed)), None)
    if older is None:
        return site
    assumed = f"torch is {first} or newer ({older.file.name} allows older versions: {older.text})"
    return replace(site, assumptions=(*site.assumptions, assumed))


def _of_text(text: str) -> Iterator[str]:
    for line in text.splitlines():
        for match in _WRITTEN.finditer(line.partition("#")[0]):
            yield re.sub(r"^=(?!=)", "==", match[1].strip().rstrip(","))


def _of_toml(text: str) -> Iterator[str]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    project = _table(document.get("project"))
    lists = [project.get("dependencies"), *_table(project.get("optional-dependencies")).values()]
    for requirement in (each for found in lists if isinstance(found, list) for each in found):
        try:
            parsed = Requirement(str(requirement))
        except InvalidRequirement:
            continue
        if parsed.name == "torch" and parsed.specifier:
            yield str(parsed.specifier)
    poetry = _table(_table(_table(document.get("tool")).get("poetry")).get("dependencies")).get("torch")
    version = poetry.get("version") if isinstance(poetry, dict) else poetry
    if isinstance(version, str):
        yield from _of_poetry(version.strip())


def _of_poetry(version: str) -> Iterator[str]:
    """`^1.13` allows everything before 2.0, `~1.13` before 1.14, and a plain version is that one alone."""
    try:
        if version[:1] in "^~" and version[1:2] != "=":
            release = Version(version[1:]).release
            upper = (release[0] + 1,) if version[0] == "^" else (release[0], (*release, 0)[1] + 1)
            yield f">={version[1:]},<{'.'.join(map(str, upper))}"
        elif version[:1].isdigit():
            yield f"=={version}"
        else:
            yield version
    except ValueError:
        return


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
