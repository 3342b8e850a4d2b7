"""Attention's time and peak memory against T, log–log."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from flashmore.benchmark.plots.figure import INK, Record, Row, dress, look, new_figure
from flashmore.benchmark.wording import MIB, SETTING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

COLUMNS = 3
SLOPES_REACH = 16
"""Range of T, as a factor, over which the reference slopes are drawn."""
MARGIN = 1.5
CLEARANCE = 1.7
"""Factor between the reference slopes and the measured lines at the largest T."""


class Quantity(NamedTuple):
    """The quantity plotted for a row."""

    key: str
    label: str
    values: Callable[[Row], Sequence[float]]
    """The value and the ends of its band."""


TIME = Quantity(
    "time_ms",
    "milliseconds, forward and backward",
    lambda row: [row["time_ms"][name] for name in ("median", "low", "high")],
)
MEMORY = Quantity("peak_bytes", "peak MiB, forward and backward", lambda row: [row["peak_bytes"] / MIB] * 3)


def time_plot(record: Record) -> "Figure":
    """Draw the time of forward plus backward against T, log–log, in one panel per setting.

    Args:
        record: of kind `attention`. A setting is a combination of B, H, D, dtype and causal; rows without a
            number are left out; bands are quartiles.
    """
    return new_figure(*_grid_of(_settings(record)), partial(_draw_panels, record, TIME))


def memory_plot(record: Record) -> "Figure":
    """Draw the peak memory of forward plus backward against T, log–log, in the same panels.

    Args:
        record: of kind `attention`.
    """
    return new_figure(*_grid_of(_settings(record)), partial(_draw_panels, record, MEMORY))


def attention_picture(record: Record) -> "Figure":
    """Draw `time_plot` and `memory_plot` stacked, or side by side if each has one panel.

    Args:
        record: of kind `attention`.
    """
    rows, columns = _grid_of(_settings(record))
    beside = rows == columns == 1

    def draw(figure: "FigureBase") -> None:
        halves = figure.subfigures(*((1, 2) if beside else (2, 1)), squeeze=False).flat
        for half, quantity in zip(halves, (TIME, MEMORY), strict=True):
            _draw_panels(record, quantity, half)

    return new_figure(1 if beside else 2 * rows, 2 if beside else columns, draw)


def _settings(record: Record) -> list[tuple[Any, ...]]:
    """Each combination of B, H, D, dtype and causal once, in the record's order."""
    return list(dict.fromkeys(tuple(row[name] for name in SETTING) for row in record["rows"]))


def _grid_of(settings: Sequence[object]) -> tuple[int, int]:
    columns = max(1, min(len(settings), COLUMNS))
    return -(-max(1, len(settings)) // columns), columns


def _draw_panels(record: Record, quantity: Quantity, figure: "FigureBase") -> None:
    settings = _settings(record)
    panels = figure.subplots(*_grid_of(settings), squeeze=False, sharey=True)
    lowest, highest = math.inf, 0.0
    for axes in panels.flat[len(settings) :]:
        axes.set_axis_off()
    if not settings:
        _say_nothing_here(panels[0, 0])
    for axes, setting in zip(panels.flat, settings, strict=False):
        low, high = _draw_lines(axes, _measured(record, setting, quantity))
        lowest, highest = min(lowest, low), max(highest, high)
        B, H, D, dtype, causal = setting
        title = f"B {B} · H {H} · D {D} · {dtype} · {'causal' if causal else 'full'}"
        axes.set_title(title, loc="left", color=INK, fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel(quantity.label)
    if highest > 0:
        panels[0, 0].set_ylim(lowest / MARGIN, highest * MARGIN)


def _measured(
    record: Record, setting: tuple[Any, ...], quantity: Quantity
) -> dict[str, list[tuple[float, ...]]]:
    """The points of one panel by backend: T and the values, if any."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for row in record["rows"]:
        here = tuple(row[name] for name in SETTING) == setting
        if here and row["pass"] == "both" and row["ok"] and row[quantity.key]:
            found.setdefault(row["backend"], []).append((row["T"], *quantity.values(row)))
    return {backend: sorted(points) for backend, points in found.items()}


def _draw_lines(axes: "Axes", lines: Mapping[str, Sequence[tuple[float, ...]]]) -> tuple[float, float]:
    """Draw one panel; returns the range that it needs, empty without points."""
    needed = math.inf, 0.0
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for backend, points in lines.items():
        color, marker = look(backend)
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
    dress(axes)
    return needed


def _say_nothing_here(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "nothing was measured", color=INK, ha="center", transform=axes.transAxes)


def _draw_slopes(axes: "Axes", points: Sequence[tuple[float, ...]]) -> tuple[float, float]:
    """Draw dotted lines that grow like T (below) and T² (above); returns the range to show."""
    last = max(point[0] for point in points)
    first = max(min(point[0] for point in points), last / SLOPES_REACH)
    at_the_end = [point[1] for point in points if point[0] == last]
    bottom, top = min(point[1] for point in points), max(point[1] for point in points)
    for power, end in ((1, min(at_the_end) / CLEARANCE), (2, max(at_the_end) * CLEARANCE)):
        ends = (end * (first / last) ** power, end)
        name = "∝ T" if power == 1 else "∝ T²"
        axes.plot((first, last), ends, color=INK, linestyle=":", linewidth=1.2, gid=f"slope {power}")
        axes.annotate(
            name, (last, end), (4, 0), textcoords="offset points", color=INK, va="center", fontsize=9
        )
    return bottom, top * CLEARANCE
