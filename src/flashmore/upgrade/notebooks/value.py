"""The `source` of a cell as the file has it: only strings that hold changed lines are written anew."""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence

from flashmore.upgrade.site import Edit

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_CHARACTER = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|[^\\]", re.DOTALL)
"""One character of a JSON string, as it is written."""
_BEYOND_ASCII = re.compile(r"\\u(?!00[0-7])")
_NEWLINES = {"\\n", "\\u000a", "\\u000A"}


class Value:
    """The `source` of a cell: a string, or an array of strings, as it is written in the file."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.strings = list(_STRING.finditer(raw))
        self.characters = [_CHARACTER.findall(found[1]) for found in self.strings]
        *whole, last = self.characters
        self.by_line = raw.startswith("[") and all(
            each and each[-1] in _NEWLINES and _NEWLINES.isdisjoint(each[:-1]) for each in whole
        ) and _NEWLINES.isdisjoint(last[:-1])  # fmt: skip
        self.ascii = raw.isascii() and _BEYOND_ASCII.search(raw) is not None

    def edited(self, whole: str, edits: Sequence[Edit]) -> str:
        """The value with some edits of the cell's text made; strings without an edit stay as they are.

        Args:
            whole: the text, with an end of its last line that the value may lack.
            edits: in order, none of which overlap.
        """
        ends_open = len(whole) > sum(map(len, self.characters))
        characters = [*self.characters]
        if ends_open:
            characters[-1] = [*characters[-1], "\\n"]
        starts = [0]
        for each in characters:
            starts.append(starts[-1] + len(each))
        result, at = [], 0
        for first, last, own in _by_strings(starts, edits):
            old = [each for string in characters[first : last + 1] for each in string]
            new: list[str] = []
            done = 0
            for edit in own:
                start, end = edit.start - starts[first], edit.end - starts[first]
                new += [*old[done:start], *self._escaped(edit.text)]
                done = end
            new += old[done:]
            if ends_open and last == len(characters) - 1 and new and new[-1] in _NEWLINES:
                new.pop()
            strings = _split(new) if self.by_line else ["".join(new)]
            result += [self.raw[at : self.strings[first].start()], self._separator(first).join(
                f'"{each}"' for each in strings
            )]  # fmt: skip
            at = self.strings[last].end()
        return "".join([*result, self.raw[at:]])

    def _escaped(self, text: str) -> list[str]:
        return [json.dumps(each, ensure_ascii=self.ascii)[1:-1] for each in text]

    def _separator(self, index: int) -> str:
        """What stands between two strings, near one of them."""
        if len(self.strings) == 1:
            return f",{self.raw[1 : self.strings[0].start()]}"
        left = min(index, len(self.strings) - 2)
        return self.raw[self.strings[left].end() : self.strings[left + 1].start()]


def _by_strings(starts: Sequence[int], edits: Sequence[Edit]) -> list[tuple[int, int, list[Edit]]]:
    """The edits with the first and the last string that they change; those of the same strings together.

    Args:
        starts: where each string starts in the text, and where the last one ends.
        edits: in order.
    """
    found: list[tuple[int, int, list[Edit]]] = []
    final = len(starts) - 2
    for edit in edits:
        first = min(bisect_right(starts, edit.start) - 1, final)
        last = min(bisect_right(starts, max(edit.start, edit.end - 1)) - 1, final)
        if not edit.text and starts[first] == edit.start and starts[last + 1] == edit.end:
            # Whole strings fall away, and with them a separator: a neighbour joins them.
            first, last = (first, last + 1) if last < final else (max(first - 1, 0), last)
        if found and first <= found[-1][1]:
            before, until, own = found.pop()
            found.append((before, max(until, last), [*own, edit]))
        else:
            found.append((first, last, [edit]))
    return found


def _split(characters: Sequence[str]) -> list[str]:
    """Lines, each with its end; a single empty one where there are no characters."""
    lines, at = [], 0
    for index, each in enumerate(characters, start=1):
        if each in _NEWLINES:
            lines.append("".join(characters[at:index]))
            at = index
    if at < len(characters) or not lines:
        lines.append("".join(characters[at:]))
    return lines
