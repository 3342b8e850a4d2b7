"""An ablation as a bar chart of milliseconds per step."""

from typing import TYPE_CHECKING

from flashmore.benchmark.plots.figure import INK, PANEL_INCHES, Record, dress_rows, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

COLORS = {
    "same gradients up to rounding": "#2f7ed8",
    "changes the numerics": "#c27c0e",
    "changes the algorithm": "#9468d6",
}
"""By the exactness of a variant."""
ROOM_FOR_WORDS = 1.3
"""Length of the axis relative to the longest bar, with room for the number at its end."""


def ablation_plot(record: Record) -> "Figure":
    """Draw each variant's step time with quartiles and its ratio to the first.

    Args:
        record: of kind `ablation`. Leave-one-out variants are drawn below; untimed variants show the reason.
    """
    panels = [record["variants"]] + [record["left_out_alone"]] * bool(record["left_out_alone"])
    heights = [0.9 + 0.4 * len(variants) for variants in panels]
    slowest = max(
        (variant["step_ms"]["high"] for variants in panels for variant in variants if variant["ok"]),
        default=1.0,
    )

    def draw(figure: "FigureBase") -> None:
        rows = {"height_ratios": heights}
        axes_of = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw=rows)[:, 0]
        titles = ("added one after the other", "all together but one")
        for axes, variants, title in zip(axes_of, panels, titles, strict=False):
            _draw_variants(axes, variants)
            axes.set_title(title, loc="left", color=INK, fontsize=9)
            axes.set_xlim(0, slowest * ROOM_FOR_WORDS)
        axes_of[-1].set_xlabel("milliseconds a step: median and quartiles")

    return new_figure(sum(heights) / PANEL_INCHES[1], 1.6, draw)


def _draw_variants(axes: "Axes", variants: list[Record]) -> None:
    seen: set[str] = set()
    for place, variant in enumerate(variants):
        if not variant["ok"]:
            continue
        step, kind = variant["step_ms"], variant["exactness"]
        label = None if kind in seen else kind
        seen.add(kind)
        axes.barh(place, step["median"], height=0.6, color=COLORS[kind], alpha=0.75, label=label)
        axes.plot((step["low"], step["high"]), (place, place), color=INK, linewidth=2)
        ratio = variant["ratio"]
        told = f"{step['median']:.2f} ms" + ("" if ratio is None else f", {ratio['value']:.2f} ×")
        axes.annotate(
            told,
            (step["high"], place),
            (5, 0),
            textcoords="offset points",
            color=INK,
            va="center",
            fontsize=9,
        )
    if seen:
        axes.legend(frameon=False, labelcolor=INK, loc="lower right", fontsize=8)
    dress_rows(axes, variants)
