"""Figures drawn from records (`measuring/record.py`) with matplotlib.

The background is transparent and colours are legible on white and black, for PNG and web pages alike.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flashmore.benchmark.report.values import PASSES, Record, compared, passes_of, setting_words
from flashmore.plotting import matplotlib
from flashmore.specs import BackendSpec, backends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

Lines = Mapping[str, Sequence[tuple[float, ...]]]
"""By backend, points: T, the value, and the ends of its band."""

MIB = 2**20
INK = "#737882"
PANEL_INCHES = (5.2, 4.0)
NAME = 24
"""Most characters of a name next to its panel."""
TITLE = 70
"""Most characters of a line of a setting above its panel."""
WHY_NOT = 60
"""Most characters of a reason in its panel; the table has the full text."""
COLORS = {
    "same gradients up to rounding": "#2f7ed8",
    "changes the numerics": "#c27c0e",
    "changes the algorithm": "#9468d6",
}
"""By the exactness of an ablation's variant."""
ROOM_FOR_WORDS = 1.3
"""Length of an ablation's axis relative to the longest bar, with room for the number at its end."""
UNITS = {"time_ms": "milliseconds", "peak_bytes": "peak MiB"}
COLUMNS = 3
SLOPES_REACH = 16
"""Range of T, as a factor, over which the reference slopes are drawn."""
MARGIN = 1.5
CLEARANCE = 1.7
"""Factor between the reference slopes and the measured lines at the largest T."""


def step_plot(record: Record) -> "Figure":
    """Draw every sample of the step time with median and quartiles, in one panel per context.

    Args:
        record: of kind `step`. Untimed variants show the reason.
    """
    contexts = [record, *record.get("further_contexts", [])]
    longest = max(len(context["variants"]) for context in contexts)

    def draw(figure: "FigureBase") -> None:
        panels = figure.subplots(len(contexts), 1, squeeze=False)[:, 0]
        for axes, context in zip(panels, contexts, strict=True):
            _draw_steps(axes, context)

    height = (0.9 + 0.5 * longest) / PANEL_INCHES[1]
    return _new_figure(len(contexts) * height, 1.4, draw)


def ablation_plot(record: Record) -> "Figure":
    """Draw each variant's step time with quartiles and its ratio to the first.

    Args:
        record: of kind `ablation`. Leave-one-out variants are drawn below; untimed variants show the reason.
    """
    panels = [record["variants"]] + [record["left_out_alone"]] * bool(record["left_out_alone"])
    heights = [0.9 + 0.4 * len(variants) for variants in panels]
    timed = [variant for variants in panels for variant in variants if variant["ok"]]
    slowest = max((variant["step_ms"]["high"] for variant in timed), default=1.0)

    def draw(figure: "FigureBase") -> None:
        rows = {"height_ratios": heights}
        axes_of = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw=rows)[:, 0]
        titles = ("added one by one", "all but one")
        for axes, variants, title in zip(axes_of, panels, titles, strict=False):
            _draw_bars(axes, variants)
            axes.set_title(title, loc="left", color=INK, fontsize=9)
            axes.set_xlim(0, slowest * ROOM_FOR_WORDS)
        axes_of[-1].set_xlabel("milliseconds per step: median and quartiles")

    return _new_figure(sum(heights) / PANEL_INCHES[1], 1.6, draw)


def attention_plot(record: Record, *quantities: str) -> "Figure":
    """Draw quantities of the compared passes against T, log–log, in one panel per setting.

    Args:
        record: of kind `attention`. A setting is everything but T; rows without a number are left out; bands
            are quartiles.
        quantities: of `UNITS`, stacked, or side by side if each has one panel.
    """
    settings = list(dict.fromkeys(setting_words(row) for row in record["rows"]))
    columns = max(1, min(len(settings), COLUMNS))
    grid = -(-max(1, len(settings)) // columns), columns
    parts = (1, len(quantities)) if grid == (1, 1) else (len(quantities), 1)

    def draw(figure: "FigureBase") -> None:
        for part, quantity in zip(figure.subfigures(*parts, squeeze=False).flat, quantities, strict=True):
            panels = part.subplots(*grid, squeeze=False, sharey=True)
            _draw_panels(record, settings, quantity, panels)

    return _new_figure(parts[0] * grid[0], parts[1] * grid[1], draw)


def _new_figure(rows: float, columns: float, draw: Callable[["FigureBase"], None]) -> "Figure":
    """Create a figure sized for this many panels, and draw into it."""
    mpl = matplotlib()
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure((columns * width, rows * height), dpi=150, layout="constrained", facecolor="none")
    with mpl.rc_context({"text.parse_math": False}):  # names and reasons are text, dollar signs and all
        draw(figure)
    return figure


def _look(name: str) -> tuple[str, str]:
    """Colour and marker of a backend, distinguishable without colour; unknown backends share one style."""
    spec = backends().get(name)
    return (spec.color, spec.marker) if spec else (BackendSpec.color, BackendSpec.marker)


def _dress_rows(axes: "Axes", variants: Sequence[Record]) -> None:
    """Give a panel one row per variant, from the top down, with the reason for untimed ones."""
    for place, variant in enumerate(variants):
        if not variant["ok"]:
            why_not = textwrap.shorten(variant["why_not"], WHY_NOT, placeholder=" …")
            axes.text(0.02, place, why_not, transform=axes.get_yaxis_transform(), color=INK, va="center")
    axes.set_yticks(range(len(variants)), [variant["name"][:NAME] for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.6)
    axes.grid(axis="x", color=INK, alpha=0.2, linewidth=0.6)
    _dress(axes)


def _dress(axes: "Axes") -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _beside(axes: "Axes", text: str, point: tuple[float, float], points_away: float) -> None:
    """Write text to the right of a point."""
    offset = (points_away, 0.0)
    axes.annotate(text, point, offset, textcoords="offset points", color=INK, va="center", fontsize=9)


def _draw_steps(axes: "Axes", context: Record) -> None:
    import numpy as np

    jitter = np.random.default_rng(0)
    for place, variant in enumerate(context["variants"]):
        if not variant["ok"]:
            continue
        color, _ = _look(variant["name"])
        samples = np.concatenate([np.asarray(block) for block in variant["samples_ms"]])
        heights = place + jitter.uniform(-0.22, 0.22, len(samples))
        axes.plot(samples, heights, ".", color=color, alpha=0.5, markersize=5, markeredgewidth=0)
        step = variant["step_ms"]
        median = step["median"]
        axes.plot((step["low"], step["high"]), (place, place), color=color, linewidth=5, alpha=0.6)
        axes.plot(median, place, "|", color=color, markersize=18, markeredgewidth=2.5)
        axes.annotate(f"{median:.2f} ms", (median, place - 0.3), color=color, ha="center", fontsize=9)
    title = f"T {context['context']:,} · batch {context['batch']}"
    axes.set_title(title, loc="left", color=INK, fontsize=9)
    _dress_rows(axes, context["variants"])
    beyond = _show_the_bulk(axes, context["variants"])
    cut_off = f" ({beyond} outside the axis)" if beyond else ""
    axes.set_xlabel(f"milliseconds per step, one dot per sample{cut_off}")


def _show_the_bulk(axes: "Axes", variants: Sequence[Record]) -> int:
    """Begin the axis at 0, and limit it if there are outliers; returns how many are cut off."""
    steps = [variant["step_ms"] for variant in variants if variant["ok"]]
    if not steps:
        return 0
    reach = 6 * max(step["high"] - step["low"] for step in steps)
    high = min(axes.get_xlim()[1], max(step["high"] for step in steps) + reach)
    axes.set_xlim(0, high)
    blocks = (block for variant in variants for block in variant["samples_ms"])
    return sum(sample > high for block in blocks for sample in block)


def _draw_bars(axes: "Axes", variants: Sequence[Record]) -> None:
    seen: set[str] = set()
    for place, variant in enumerate(variants):
        if not variant["ok"]:
            continue
        step, kind, ratio = variant["step_ms"], variant["exactness"], variant["ratio"]
        label = None if kind in seen else kind
        seen.add(kind)
        axes.barh(place, step["median"], height=0.6, color=COLORS[kind], alpha=0.75, label=label)
        axes.plot((step["low"], step["high"]), (place, place), color=INK, linewidth=2)
        told = f"{step['median']:.2f} ms" + ("" if ratio is None else f", {ratio['value']:.2f} ×")
        _beside(axes, told, (step["high"], place), 5)
    if seen:
        axes.legend(frameon=False, labelcolor=INK, loc="lower right", fontsize=8)
    _dress_rows(axes, variants)


def _draw_panels(record: Record, settings: Sequence[tuple[str, ...]], quantity: str, panels: Any) -> None:
    """Draw `time_ms` or `peak_bytes` of every setting."""
    lowest, highest = math.inf, 0.0
    for axes in panels.flat[len(settings) :]:
        axes.set_axis_off()
    if not settings:
        _say_nothing_here(panels[0, 0])
    for axes, setting in zip(panels.flat, settings, strict=False):
        low, high = _draw_lines(axes, _measured(record, setting, quantity))
        lowest, highest = min(lowest, low), max(highest, high)
        title = textwrap.fill(" · ".join(setting), TITLE)
        axes.set_title(title, loc="left", color=INK, fontsize=9)
    passes = {PASSES[passes_of(row)] for row in record["rows"]}
    for axes in panels[:, 0]:
        axes.set_ylabel(", ".join((UNITS[quantity], *passes)))
    if highest > 0:
        panels[0, 0].set_ylim(lowest / MARGIN, highest * MARGIN)


def _measured(record: Record, setting: tuple[str, ...], quantity: str) -> Lines:
    """The points of one panel."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for row in compared(record["rows"]):
        if setting_words(row) == setting and row["ok"] and (value := row[quantity]):
            time = quantity == "time_ms"
            values = (value["median"], value["low"], value["high"]) if time else (value / MIB,) * 3
            found.setdefault(row["backend"], []).append((row["T"], *values))
    return {backend: sorted(points) for backend, points in found.items()}


def _draw_lines(axes: "Axes", lines: Lines) -> tuple[float, float]:
    """Draw one panel; returns the range that it needs, empty without points."""
    needed = math.inf, 0.0
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for backend, points in lines.items():
        color, marker = _look(backend)
        T, middle, low, high = zip(*points, strict=True)
        axes.plot(T, middle, color=color, marker=marker, markersize=4.5, linewidth=1.8, label=backend)
        axes.fill_between(T, low, high, color=color, alpha=0.2, linewidth=0)
    every = [point for points in lines.values() for point in points]
    lengths = sorted({int(point[0]) for point in every})
    axes.set_xticks(lengths, [f"{T:,}" for T in lengths], fontsize=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    if every:
        needed = _draw_slopes(axes, every)
        axes.legend(frameon=False, labelcolor="linecolor", loc="upper left", fontsize=9)
    else:
        _say_nothing_here(axes)
    axes.set_xlabel("T, positions")
    axes.minorticks_off()
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    _dress(axes)
    return needed


def _say_nothing_here(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "nothing was measured", color=INK, ha="center", transform=axes.transAxes)


def _draw_slopes(axes: "Axes", points: Sequence[tuple[float, ...]]) -> tuple[float, float]:
    """Draw dotted lines that grow like T (below) and T² (above); returns the range to show."""
    last = max(point[0] for point in points)
    first = max(min(point[0] for point in points), last / SLOPES_REACH)
    at_the_end = [point[1] for point in points if point[0] == last]
    bottom, top = min(point[1] for point in points), max(point[1] for point in points)
    if first == last:
        return bottom, top * CLEARANCE
    slopes = ((1, "∝ T", min(at_the_end) / CLEARANCE), (2, "∝ T²", max(at_the_end) * CLEARANCE))
    for power, name, end in slopes:
        ends = (end * (first / last) ** power, end)
        axes.plot((first, last), ends, color=INK, linestyle=":", linewidth=1.2, gid=f"slope {power}")
        _beside(axes, name, (last, end), 4)
    return bottom, top * CLEARANCE
