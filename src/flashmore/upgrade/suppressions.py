"""Comments in a source that say which places are not reported: `# flashmore: ignore[FM001]`."""

import re
import tokenize
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import StringIO

from flashmore.errors import UsageError
from flashmore.upgrade.rules import rule
from flashmore.upgrade.site import Site

_COMMENT = re.compile(r"#\s*flashmore:\s*ignore(?P<file>-file)?(?![\w-])(?:\s*\[(?P<codes>[^\]]*)\]?)?")


class Suppressions:
    """The comments of one source.

    `ignore` applies to a place if it is on its first or its last line, `ignore-file` to all places. Codes in
    brackets restrict it to these rules.

    Args:
        source: valid Python.
    """

    def __init__(self, source: str) -> None:
        self.remarks: list[str] = []
        """On codes that no rule has."""
        self._lines: dict[int, set[str] | None] = {}
        """The codes of each line's comments; None for all. Line 0 stands for the file."""
        for line, found in _comments(source):
            codes = None if found["codes"] is None else set(self._codes(line, found))
            at = 0 if found["file"] else line
            before = self._lines.get(at, set())
            self._lines[at] = None if codes is None or before is None else before | codes

    def kept(self, sites: Iterable[Site]) -> list[Site]:
        """The places that are reported."""
        return [site for site in sites if not self._apply_to(site)]

    def _apply_to(self, site: Site) -> bool:
        found = [self._lines[line] for line in {0, site.line, site.end_line} if line in self._lines]
        return any(codes is None or site.code in codes for codes in found)

    def _codes(self, line: int, found: re.Match[str]) -> Iterator[str]:
        for word in found["codes"].split(","):
            try:
                yield rule(word.strip()).code
            except UsageError as error:
                self.remarks.append(
                    f"line {line}: no rule is called {error.found} in `{found[0]}` (valid: {error.valid})"
                )


def _comments(source: str) -> Iterator[tuple[int, re.Match[str]]]:
    if "flashmore:" not in source:
        return
    with suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(StringIO(source, newline=None).readline):
            if token.type == tokenize.COMMENT:
                yield from ((token.start[0], found) for found in _COMMENT.finditer(token.string))
