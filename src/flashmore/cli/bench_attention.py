"""`flashmore bench attention`: the kernels alone, against T and other sizes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD

from flashmore.benchmark.attention.plan import AttentionPlan
from flashmore.benchmark.wording import crossover_sentence, digits, left_out, same_setting, setting_title
from flashmore.cli.bench_outputs import Outputs, give
from flashmore.cli.parse import parse
from flashmore.cli.show import stdout, table
from flashmore.terminal import say

Row = Mapping[str, Any]
CAPTION = "medians; error as a share of its budget; the ratio of both passes with its 95 % interval"


@dataclass(frozen=True)
class BenchAttention(Outputs):
    """Measure time, memory and error of every attention backend against T, and where fused gets faster.

    Lists are combined: `--head-dim 16 64 --causal --full` measures four settings. Memory is estimated first.
    """

    plan: AttentionPlan


def main(argv: Sequence[str]) -> int:
    """Run `flashmore bench attention`."""
    command = parse(BenchAttention, "bench attention", argv)

    from flashmore.benchmark.attention.bench import bench_attention
    from flashmore.benchmark.plots.attention import attention_picture

    record = bench_attention(command.plan, say=say)
    return give(record, command, show, attention_picture)


def show(record: Row) -> None:
    """Print a table for each setting, what was left out, and the T from which on fused is faster."""
    console = stdout()
    for found in record["crossovers"]:
        rows = [row for row in record["rows"] if same_setting(row, found)]
        ratios = [ratio for ratio in record["ratios"] if same_setting(ratio, found)]
        console.print(_table_of(f"Attention: {setting_title(found)}", rows, ratios))
        for line in left_out(rows):
            console.print(line)
        console.print(crossover_sentence(found["T"], ratios), "")
    for doubt in record["warnings"]:
        console.print(f"warning: {doubt['code']}: {doubt['message']}", f"  {doubt['advice']}")


def _table_of(title: str, rows: Sequence[Row], ratios: Sequence[Row]) -> Any:
    """One line for each T and timed backend; times are medians."""
    whole = [row for row in rows if row["pass"] == "both" and row["ok"]]
    unit, factor = _flops_unit(row["tflop_per_s"] for row in whole)
    numbers = ("T", "forward", "backward", "both, ms", unit, "peak MiB", "error")
    made = table("T", "backend", *numbers[1:], "manual / this", title=title, numbers=numbers)
    made.box, made.show_edge, made.pad_edge = SIMPLE_HEAD, False, False
    made.caption, made.caption_justify = CAPTION, "left"
    times = {(row["T"], row["backend"], row["pass"]): row["time_ms"] for row in rows}
    against = {(ratio["T"], ratio["to"]): ratio for ratio in ratios}
    last = None
    for row in whole:
        T, backend = row["T"], row["backend"]
        made.add_row(
            "" if last == T else f"{T:,}",
            backend,
            *(digits(times[T, backend, which]["median"]) for which in ("forward", "backward", "both")),
            digits(row["tflop_per_s"] * factor),
            "" if row["peak_bytes"] is None else digits(row["peak_bytes"] / 2**20),
            f"{row['error'] / row['error_budget']:.2f}",
            _ratio(against.get((T, backend))),
        )
        last = T
    return made


def _flops_unit(values: Iterable[float]) -> tuple[str, float]:
    return ("TFLOP/s", 1.0) if max(values, default=0.0) >= 1 else ("GFLOP/s", 1000.0)


def _ratio(ratio: Row | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} – {ratio['high']:.2f})"
