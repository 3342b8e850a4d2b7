"""What all figures share: their look, their size, and how they are saved.

Each figure is drawn from a record (`measuring/record.schema.json`) with matplotlib, on a transparent ground
and in colours that can be read on white and on black, so that one figure serves a PNG and a web page. To keep
text as text in an SVG, save under `matplotlib.rc_context({"svg.fonttype": "none"})`.
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
"""Letters of a name that fit beside its panel."""
WHY_NOT = 60
"""Letters of a reason that fit into its panel; the table has the whole."""


def look(name: str) -> tuple[str, str]:
    """Colour and marker of a backend, told apart without colours too; one look for all unknown ones."""
    spec = backends().get(name)
    return (spec.color, spec.marker) if spec else (BackendSpec.color, BackendSpec.marker)


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a figure on a white ground; the file's ending decides its form (png, svg, pdf).

    Raises:
        StorageError: the disk refused the picture, or its ending is none that matplotlib writes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white")
    except (OSError, ValueError) as error:
        raise StorageError(f"to write {path}", str(error), "another --picture FILE.png") from error


def new_figure(rows: float, columns: float, draw: Callable[["FigureBase"], None]) -> "Figure":
    """Make a figure of so many panels' size with a transparent ground, and draw into it."""
    mpl = matplotlib()
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure((columns * width, rows * height), dpi=150, layout="constrained", facecolor="none")
    with mpl.rc_context({"text.parse_math": False}):  # names and reasons are text, dollar signs and all
        draw(figure)
    return figure


def dress_rows(axes: "Axes", variants: Sequence[Row]) -> None:
    """Give a panel a row for each variant from the top down, and say in it why one has no number."""
    for place, variant in enumerate(variants):
        if not variant["ok"]:
            why_not = textwrap.shorten(variant["why_not"], WHY_NOT, placeholder=" …")
            axes.text(0.02, place, why_not, transform=axes.get_yaxis_transform(), color=INK, va="center")
    axes.set_yticks(range(len(variants)), [variant["name"][:NAME] for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.6)
    axes.grid(axis="x", color=INK, alpha=0.2, linewidth=0.6)
    dress(axes)


def dress(axes: "Axes") -> None:
    """Give a panel the ink and the open sides of all others."""
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
