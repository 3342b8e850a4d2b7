"""The summary of a record of kind `attention`."""

from collections.abc import Iterator, Sequence

from flashmore.benchmark.plots.attention import memory_plot, time_plot
from flashmore.benchmark.report.svg import plot_of
from flashmore.benchmark.report.values import Plot, Record, Setting, Summary, Table
from flashmore.benchmark.wording import (
    MIB,
    crossover_sentence,
    digits,
    left_out,
    machine,
    quantity,
    quartiles,
    ratio_cells,
    ratio_text,
    same_setting,
    setting_title,
)

WORDS = ("backend", "verdict")
BELOW = (
    "A line for each backend, log–log, with dotted lines that grow like T and like T²; the tables have the "
    "numbers."
)


def summarize(record: Record) -> Summary:
    """Everything a report shows of the record."""
    where = machine(record["environment"])
    settings = [_setting(record, found, where) for found in record["crossovers"]]
    findings = [f"{setting.title}: {setting.conclusion}" for setting in settings] or ["Nothing was measured."]
    note = (
        f"Budgets: {digits(record['memory_budget_bytes'] / 2**30)} GiB and {record['time_budget_s']:g} s. "
        "Memory is what a pass needs beyond its inputs. Errors are those of the output and of the gradients "
        "from float64, as a share of the error budget."
    )
    return Summary(findings, list(_plots(record, where)), settings, [note])


def _whole(rows: Sequence[Record]) -> list[Record]:
    """The timed rows of both passes together."""
    return [row for row in rows if row["pass"] == "both" and row["ok"]]


def _plots(record: Record, where: str) -> Iterator[Plot]:
    title = f"of forward and backward against T on {where}"
    if _whole(record["rows"]):
        yield plot_of(time_plot(record), "time", f"Time {title}", BELOW)
    if any(row["peak_bytes"] for row in _whole(record["rows"])):
        yield plot_of(memory_plot(record), "memory", f"Peak memory {title}", BELOW)


def _setting(record: Record, found: Record, where: str) -> Setting:
    rows, ratios = ([row for row in record[name] if same_setting(row, found)] for name in ("rows", "ratios"))
    title = setting_title(found)
    times = {
        f"T {row['T']:,}: {row['backend']}, both passes, ms": digits(row["time_ms"]["median"])
        for row in _whole(rows)
    }
    quotients = {f"T {ratio['T']:,}: {ratio['of']} / {ratio['to']}": ratio_text(ratio) for ratio in ratios}
    crossover = {"fused wins from T =": "–" if found["T"] is None else f"{found['T']:,}"}
    return Setting(
        title,
        Table(f"Attention alone on {where}: {title}; times are medians", _cells(rows, ratios), WORDS),
        crossover_sentence(found["T"], ratios),
        left_out(rows),
        times | quotients | crossover,
    )


def _cells(rows: list[Record], ratios: list[Record]) -> list[dict[str, str]]:
    medians = {
        (row["T"], row["backend"], row["pass"]): digits(row["time_ms"]["median"]) for row in rows if row["ok"]
    }
    against = {(ratio["T"], ratio["to"]): ratio for ratio in ratios}
    cells = []
    for row in _whole(rows):
        T, backend, error, budget = (row[name] for name in ("T", "backend", "error", "error_budget"))
        cells.append(
            {
                "T": f"{T:,}",
                "backend": backend,
                "forward, ms": medians.get((T, backend, "forward"), "–"),
                "backward, ms": medians.get((T, backend, "backward"), "–"),
                "both, ms": medians[T, backend, "both"],
                "quartiles of both": quartiles(row["time_ms"]),
                "first call, ms": quantity(row.get("cold_ms")),
                "TFLOP/s": quantity(row["tflop_per_s"]),
                "peak MiB": quantity(row["peak_bytes"], MIB),
                "error / budget": f"{error / budget:.2f}" if error is not None and budget else "–",
                **ratio_cells(against.get((T, backend)), "manual / this"),
            }
        )
    return cells
