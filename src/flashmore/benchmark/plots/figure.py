"""Common style, size and saving of figures.

Each figure is drawn from a record (`measuring/record.schema.json`) with matplotlib, with a transparent
background and colours legible on white and black, so that the same figure serves as PNG and in a web page. To
keep text as text in an SVG, save under `matplotlib.rc_context({"svg.fonttype": "none"})`.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmore.errors import StorageError
from flashmore.plotting import matplotlib
from flashmore.specs import BackendSpec, backends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

Record = Mapping[str, Any]
Row = Mapping[str, Any]

INK = "#737882"
PANEL_INCHES = (5.2, 4.0)
NAME = 24
"""Most characters of a name next to its panel."""
WHY_NOT = 60
"""Most characters of a reason in its panel; the table has the full text."""


def look(name: str) -> tuple[str, str]:
    """Colour and marker of a backend, distinguishable without colour; unknown backends share one style."""
    spec = backends().get(name)
    return (spec.color, spec.marker) if spec else (BackendSpec.color, BackendSpec.marker)


def save_picture(figure: "Figure", path: Path) -> None:
    """Save a figure on a white background; the suffix determines the format (png, svg, pdf).

    Raises:
        StorageError: writing failed, or matplotlib does not support the suffix.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white")
    except (OSError, ValueError) as error:
        raise StorageError(f"to write {path}", str(error), "another --picture FILE.png") from error


def new_figure(rows: float, columns: float, draw: Callable[["FigureBase"], None]) -> "Figure":
    """Create a figure sized for this many panels, with a transparent background, and draw into it."""
    mpl = matplotlib()
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure((columns * width, rows * height), dpi=150, layout="constrained", facecolor="none")
    with mpl.rc_context({"text.parse_math": False}):  # names and reasons are text, dollar signs and all
        draw(figure)
    return figure


def dress_rows(axes: "Axes", variants: Sequence[Row]) -> None:
    """Give a panel one row per variant, from the top down, with the reason for untimed ones."""
    for place, variant in enumerate(variants):
        if not variant["ok"]:
            why_not = textwrap.shorten(variant["why_not"], WHY_NOT, placeholder=" …")
            axes.text(0.02, place, why_not, transform=axes.get_yaxis_transform(), color=INK, va="center")
    axes.set_yticks(range(len(variants)), [variant["name"][:NAME] for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.6)
    axes.grid(axis="x", color=INK, alpha=0.2, linewidth=0.6)
    dress(axes)


def dress(axes: "Axes") -> None:
    """Apply the common style to a panel."""
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
