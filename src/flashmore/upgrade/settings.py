"""What a project says of its upgrade: `[tool.flashmore.upgrade]` in pyproject.toml, and as options."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from packaging.version import InvalidVersion, Version

from flashmore.errors import ConfigError, UsageError
from flashmore.upgrade.project.files import Unreadable, content, exists, is_folder, real
from flashmore.upgrade.project.patterns import InvalidPattern, Patterns, check
from flashmore.upgrade.rules import CODES, rule

FILE, TABLE = "pyproject.toml", "tool.flashmore.upgrade"
KEYS = ("exclude", "ignore", "per-file-ignores", "select", "target-torch")
ALL = "ALL"
_LISTS = {"exclude": '["build", "*_pb2.py"]', "select": '["FM0"]', "ignore": '["FM001"]'}
"""Keys of a list of strings, each with a valid value."""


@dataclass(frozen=True)
class Settings:
    """What is searched, and for what.

    Args:
        exclude: what is left out of folders.
        codes: of the rules that apply.
        per_file_ignores: patterns of files, and the codes that do not apply to them.
        target_torch: the oldest version of torch that the project supports; None if it does not say.
    """

    exclude: Patterns | None = None
    codes: frozenset[str] = CODES
    per_file_ignores: tuple[tuple[Patterns, frozenset[str]], ...] = ()
    target_torch: Version | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The settings of the nearest pyproject.toml in the folders around a path that has the table.

        Raises:
            ConfigError: it cannot be read, is not TOML, or has keys or values that are not valid.
        """
        folder = real(path) if is_folder(path) else real(path).parent
        for each in (folder, *folder.parents):
            table = _table(each / FILE)
            if table is not None:
                return cls._of(each, table)
        return cls()

    @classmethod
    def _of(cls, folder: Path, table: Mapping[str, Any]) -> Self:
        for key in table:
            if key not in KEYS:
                raise ConfigError(f"keys of [{TABLE}] in {folder / FILE}", f"'{key}'", ", ".join(KEYS))
        where = {key: f"{key} in {folder / FILE}" for key in KEYS}
        lists = {key: _strings(table.get(key, []), where[key], valid) for key, valid in _LISTS.items()}
        per_file = table.get("per-file-ignores", {})
        valid = '{ "tests/*.py" = ["FM001"] }'
        if not isinstance(per_file, dict):
            raise ConfigError(f"a table for {where['per-file-ignores']}", _shown(per_file), valid)
        ignored = [
            (
                _patterns(folder, [pattern], where["per-file-ignores"]),
                frozenset(_ranks(_strings(codes, f"'{pattern}' in {where['per-file-ignores']}", valid),
                                 where["per-file-ignores"])),
            )
            for pattern, codes in per_file.items()
        ]  # fmt: skip
        select = lists["select"] if "select" in table else (ALL,)
        return cls(
            _patterns(folder, lists["exclude"], where["exclude"]) if lists["exclude"] else None,
            _selected(_ranks(select, where["select"]), _ranks(lists["ignore"], where["ignore"])),
            tuple(ignored),
            _version(table.get("target-torch"), where["target-torch"]),
        )

    def with_options(
        self,
        select: Sequence[str] = (),
        ignore: Sequence[str] = (),
        exclude: Sequence[str] = (),
        target_torch: str | None = None,
    ) -> Self:
        """The same with the options of a command; an empty one changes nothing.

        As in ruff, `--select` replaces `select` and `ignore` of the project, `--ignore` alone adds to its
        `ignore`, and `--exclude` replaces its `exclude`. Its patterns are relative to the working directory.

        Raises:
            ConfigError: a rule does not exist, or a pattern or a version is not valid.
        """
        ranks = _ranks(select, "--select") if select else dict.fromkeys(self.codes, 1)
        target = _version(target_torch, "--target-torch") or self.target_torch
        changed = replace(self, codes=_selected(ranks, _ranks(ignore, "--ignore")), target_torch=target)
        if not exclude:
            return changed
        return replace(changed, exclude=_patterns(real(Path.cwd()), exclude, "--exclude"))

    def excludes(self, path: Path) -> bool:
        """Whether a file is left out of folders."""
        return self.exclude is not None and bool(self.exclude.match(real(path), is_folder=False))

    def codes_in(self, path: Path) -> frozenset[str]:
        """The codes of the rules that apply to a file."""
        at = real(path) if self.per_file_ignores else path
        ignored = [codes for one, codes in self.per_file_ignores if one.match(at, is_folder=False)]
        return self.codes.difference(*ignored)


def _table(path: Path) -> Mapping[str, Any] | None:
    """The table of a pyproject.toml; None where there is no such file or no such table."""
    if not exists(path):
        return None
    try:
        document: Any = tomllib.loads(content(path).decode())
    except (Unreadable, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"valid TOML in {path}", str(error) or "too deep", "a corrected file") from None
    for name in TABLE.split("."):
        if not isinstance(document, dict):
            raise ConfigError(f"a table [{TABLE}] in {path}", _shown(document), f"[{TABLE}]")
        document = document.get(name)
        if document is None:
            return None
    if not isinstance(document, dict):
        raise ConfigError(f"a table [{TABLE}] in {path}", _shown(document), f"[{TABLE}]")
    return document


def _strings(value: object, where: str, valid: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"a list of strings for {where}", _shown(value), valid)
    return tuple(value)


def _version(value: object, where: str) -> Version | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return Version(value)
    except InvalidVersion:
        pass
    raise ConfigError(f"a version of torch for {where}", _shown(value), '"2.1"')


def _patterns(folder: Path, patterns: Iterable[str], where: str) -> Patterns:
    """Compile patterns of files, of which none may be for what is not meant."""
    valid = 'patterns as in .gitignore, such as "build" or "src/*_pb2.py"'
    patterns = list(patterns)
    try:
        for each in patterns:
            check(each)
            if each.startswith("!") or not each.strip() or each.startswith("#"):
                raise ConfigError(f"patterns of files for {where}", f"'{each}'", f"{valid}; none with ! or #")
        return Patterns.of(folder, patterns)
    except InvalidPattern as error:
        raise ConfigError(f"patterns of files for {where}", str(error), valid) from None


def _ranks(selectors: Iterable[str], where: str) -> dict[str, int]:
    """The codes that are selected, each with the length of the longest prefix that selects it."""
    ranks: dict[str, int] = {}
    for selector in selectors:
        rank = 1 if selector.upper() == ALL else len(selector)
        for code in _matching(selector, where):
            ranks[code] = max(rank, ranks.get(code, 0))
    return ranks


def _matching(selector: str, where: str) -> Iterable[str]:
    """The codes of a selector: ALL, a prefix such as FM1, or a rule's code or name."""
    word = selector.upper()
    found = [code for code in CODES if word == ALL or (word.startswith("FM") and code.startswith(word))]
    if found:
        return found
    try:
        return [rule(selector).code]
    except UsageError as error:
        raise ConfigError(
            f"rules for {where}", error.found, f"{error.valid}; a prefix such as FM0; {ALL}"
        ) from None


def _selected(select: Mapping[str, int], ignore: Mapping[str, int]) -> frozenset[str]:
    """The codes that are selected by a longer prefix than they are ignored by."""
    return frozenset(code for code, rank in select.items() if rank > ignore.get(code, 0))


def _shown(value: object) -> str:
    """A value as TOML, as far as an error needs it."""
    kinds = {str: "a string", bool: "a boolean", int: "a number", float: "a number", dict: "a table"}
    return f"{value!r}, {kinds.get(type(value), 'a list with other values')}" if value != [] else "[]"
