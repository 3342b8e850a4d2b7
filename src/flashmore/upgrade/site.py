"""What the search says about one place in a file, as plain values.

Axes are written with one entry a dimension. An entry is a letter (B batch, H heads, L queries, S keys,
D channels a head, E channels a head of the values, any other letter: a size of its own), `"1"` for a
dimension that broadcasts, or a product of letters such as `"B*H"`. Every letter has one size in one test;
an input of role "size" is a whole number, and its one entry says which.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from flashmore.upgrade.notebooks.notebook import Notebook

Verdict = Literal["rewritten", "refused", "already fused", "failed", "advice"]
NAN_ROWS = "rows whose keys are all masked are NaN now, and may become zeros"
"""What a rewrite of a mask of -inf takes for granted, and a test of it."""
Dtype = Literal["float", "bool", "int"]
Role = Literal["tensor", "mask", "bias", "scale", "dropout", "softmax", "number", "flag", "size"]


@dataclass(frozen=True)
class Edit:
    """Replaces the characters [start, end) of the decoded source by `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Input:
    """One free value of the extracted lines.

    Args:
        name: the parameter's name in the fragment's two functions.
        source: the expression of the user's that it stands for, such as `self.scale`.
        role: "tensor" (q, k, v or another), "mask", "bias" (added to the scores), "scale" (a number, or a
            learned tensor where `axes` is given), "dropout" (a module with `.p` and `.training`), "softmax"
            (a module), "number", "flag", "size".
        axes: one entry a dimension where they are known; see this module.
        dtype: "float", "bool" or "int".
        note: what else is known, such as "0/-inf additive", "0/1, no gradient" or "lower triangular".
    """

    name: str
    source: str
    role: Role
    axes: tuple[str, ...] | None
    dtype: Dtype = "float"
    note: str = ""


@dataclass(frozen=True)
class Fragment:
    """What a test runs: two functions of the same inputs, made of tensor operations alone.

    `old` and `new` are sources of `def old(...)` and `def new(...)`. The names `torch`, `F`
    (torch.nn.functional), `nn`, `math` and `np` may occur in them, and `rearrange`, `repeat`, `einsum` where
    the user's lines call einops.

    Args:
        inputs: of both.
        old: the user's lines.
        new: what replaces them.
        widens: whether `new` may return float32 where `old` returns 16 bits, under autocast alone.
        differentiable: whether gradients lead through; not through steps of an optimizer.
    """

    inputs: tuple[Input, ...]
    old: str
    new: str
    widens: bool = False
    differentiable: bool = True


@dataclass(frozen=True)
class Site:
    """One place that looks like what a rule replaces.

    `code` is the rule's, `rule` the variant of attention that was recognised. Lines count from 1; `end_line`
    is the last line that belongs to it. `guard` is the Python expression under
    which the fused branch runs, None where it always runs. `assumptions` are what the rewriting takes for
    granted, `notes` what it leaves for somebody to look at, both in words. `cell` is the number of a
    notebook's cell, in which the lines count; edits count in the whole source. `uncalled` names the
    attributes of layers that the rewriting no longer calls, `graded` the arguments,
    attributes and calls whose gradients it may lay out in another order of memory.
    """

    path: str
    line: int
    end_line: int
    symbol: str
    verdict: Verdict
    reason: str
    advice: str = ""
    guard: str | None = None
    rule: str = ""
    edits: tuple[Edit, ...] = ()
    fragment: Fragment | None = None
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    code: str = "FM001"
    cell: int | None = None
    uncalled: tuple[str, ...] = ()
    graded: tuple[str, ...] = ()

    def refused(self, reason: str, advice: str) -> "Site":
        """The same place, with nothing to rewrite."""
        return Site(
            self.path, self.line, self.end_line, self.symbol, "refused", reason, advice,
            code=self.code, cell=self.cell,
        )  # fmt: skip


@dataclass(frozen=True)
class NotRead:
    """A file that could not be searched, or a cell of a notebook, and why."""

    path: str
    reason: str
    cell: int | None = None

    @property
    def message(self) -> str:
        """Without the file."""
        return f"{f'cell {self.cell}: ' if self.cell is not None else ''}not read: {self.reason}"

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class Searched:
    """A file that was searched.

    Args:
        path: the file.
        source: its text, line ends as they are, without a byte-order mark; the edits' offsets count in it.
        data: its bytes when it was read.
        encoding: how the bytes become the text, "utf-8-sig" with a byte-order mark.
        sites: what was found and is reported.
        ignored: how many places are not, because a comment says so.
        remarks: on such comments, in words.
        notebook: how a notebook's cells become `source`; None for a Python file.
    """

    path: str
    source: str
    data: bytes
    encoding: str
    sites: tuple[Site, ...]
    ignored: int = 0
    remarks: tuple[str, ...] = ()
    notebook: "Notebook | None" = None

    def lines_of(self, site: Site) -> tuple[int, int]:
        """The first and the last line of a place in `source`."""
        if self.notebook is None or site.cell is None:
            return site.line, site.end_line
        first = self.notebook.in_source(site.cell, site.line)
        return first, first + site.end_line - site.line
