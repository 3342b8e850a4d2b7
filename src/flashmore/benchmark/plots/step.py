"""All samples of the step time of each variant."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flashmore.benchmark.plots.figure import INK, PANEL_INCHES, Record, Row, dress_rows, look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase


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
    return new_figure(len(contexts) * height, 1.4, draw)


def _draw_steps(axes: "Axes", context: Row) -> None:
    import numpy as np

    variants = context["variants"]
    jitter = np.random.default_rng(0)
    for place, variant in enumerate(variants):
        if not variant["ok"]:
            continue
        color, _ = look(variant["name"])
        samples = np.concatenate([np.asarray(block) for block in variant["samples_ms"]])
        heights = place + jitter.uniform(-0.22, 0.22, len(samples))
        axes.plot(samples, heights, ".", color=color, alpha=0.5, markersize=5, markeredgewidth=0)
        step = variant["step_ms"]
        axes.plot((step["low"], step["high"]), (place, place), color=color, linewidth=5, alpha=0.6)
        axes.plot(step["median"], place, "|", color=color, markersize=18, markeredgewidth=2.5)
        axes.annotate(
            f"{step['median']:.2f} ms", (step["median"], place - 0.3), color=color, ha="center", fontsize=9
        )
    title = f"T {context['context']:,} · batch {context['batch']}"
    axes.set_title(title, loc="left", color=INK, fontsize=9)
    dress_rows(axes, variants)
    beyond = _show_the_bulk(axes, variants)
    cut_off = f" ({beyond} beyond)" if beyond else ""
    axes.set_xlabel(f"milliseconds a step, each sample a dot{cut_off}")


def _show_the_bulk(axes: "Axes", variants: Sequence[Row]) -> int:
    """Limit the axis if there are outliers, so that differences are visible; returns how many are cut off."""
    steps = [variant["step_ms"] for variant in variants if variant["ok"]]
    if not steps:
        return 0
    reach = 6 * max(step["high"] - step["low"] for step in steps)
    left, right = axes.get_xlim()
    low = max(left, min(step["low"] for step in steps) - reach)
    high = min(right, max(step["high"] for step in steps) + reach)
    axes.set_xlim(low, high)
    blocks = (block for variant in variants for block in variant["samples_ms"])
    return sum(not low <= sample <= high for block in blocks for sample in block)
