"""The content of a report as plain values; the templates and the terminal render it."""

import io
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flashmore.plotting import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
# They would change with the date and matplotlib's version.
NO_METADATA: dict[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column names the row."""

    caption: str
    rows: Sequence[Mapping[str, str]]
    """Cells by column; every row has the same columns."""
    words: Collection[str]
    """Text columns; all others are numeric and right-aligned."""
    differing: Collection[str] = ()
    """Names of the rows to mark because their values differ."""
    dispensable: Sequence[str] = ()
    """Columns that a narrow terminal leaves out as needed, from the first on."""

    @property
    def columns(self) -> list[str]:
        """Headings; none in a table without rows."""
        return list(self.rows[0]) if self.rows else []


@dataclass(frozen=True)
class Plot:
    """A plot, drawn when it is asked for."""

    name: str
    """Letters, unique among the record's plots."""
    title: str
    description: str
    draw: "Callable[[], Figure]"

    @cached_property
    def svg(self) -> bytes:
        """The plot as SVG; the output is deterministic."""
        buffer = io.BytesIO()
        settings = {"svg.fonttype": "none", "svg.hashsalt": "flashmore"}
        with warnings.catch_warnings(), matplotlib().rc_context(settings):
            # The reader's browser draws the text, and has more glyphs than matplotlib's font.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            self.draw().savefig(buffer, format="svg", metadata=NO_METADATA)
        return buffer.getvalue()


@dataclass(frozen=True)
class Setting:
    """Measurements at one setting."""

    title: str
    table: Table
    conclusion: str = ""
    remarks: Sequence[str] = ()
    comparable: Mapping[str, str | float] = field(default_factory=dict)
    """Values comparable with other records of the same setting, by name; numbers are times in ms."""


@dataclass(frozen=True)
class Summary:
    """What is shown of a record of any kind."""

    findings: Sequence[str]
    plots: Sequence[Plot]
    settings: Sequence[Setting]
    remarks: Sequence[str] = ()
    question: str = ""
    """What was measured."""
    machine: str = ""


def digits(value: float) -> str:
    """At least three significant digits, without exponent: 0.0123, 1.23, 12.3, 1,234."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, places)}f}"


def machine(environment: Record) -> str:
    """The device, the number of ranks if there are several and, for a CPU, of threads."""
    name: str = environment["device_name"] or environment["device"]
    words, threads = [], environment["threads"]
    if "ranks" in environment:
        words.append(f"{environment['ranks']} ranks")
    if environment["device"] == "cpu":
        words.append(f"{threads} thread{'s' * (threads != 1)}")
    return f"{name}, {' of '.join(words)}" if words else name


PASSES = {
    "both": "forward and backward",
    "forward": "forward alone (inference)",
    "backward": "backward alone",
}


def passes_of(found: Record) -> str:
    """Which passes a row or ratio of attention, or a problem, compares; older records have no other."""
    passes: str = found.get("passes", "both")
    return passes


def compared(rows: Sequence[Record]) -> list[Record]:
    """Of the rows of attention, those of the passes that were compared."""
    return [row for row in rows if row["pass"] == passes_of(row)]


def setting_words(found: Record) -> tuple[str, ...]:
    """A setting of attention, everything but T; what older records do not have was as it is left out here.

    Args:
        found: a row, ratio or crossover of a record of kind `attention`.
    """
    queries, groups, values = found.get("L"), found.get("H_kv", found["H"]), found.get("D_v", found["D"])
    mask, dropout = found.get("mask", "none"), found.get("dropout_p", 0.0)
    sees = "causal" if found["causal"] else "every query sees every key" if mask == "none" else f"mask {mask}"
    facts = {
        f"B {found['B']}": True,
        f"H {found['H']}": True,
        f"H_kv {groups}": groups != found["H"],
        f"D {found['D']}": True,
        f"D_v {values}": values != found["D"],
        f"{queries} quer{'y' if queries == 1 else 'ies'}": queries is not None,
        str(found["dtype"]): True,
        sees: True,
        f"dropout {dropout:g}": dropout,
        PASSES[passes_of(found)]: passes_of(found) != "both",
    }
    return tuple(fact for fact, holds in facts.items() if holds)
