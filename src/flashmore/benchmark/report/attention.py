"""The parts of a report that tell a record of kind `attention`."""

from collections.abc import Iterator

from flashmore.benchmark.plots.attention import memory_plot, time_plot
from flashmore.benchmark.report.parts import (
    Cell,
    Comparable,
    Heading,
    Paragraph,
    Part,
    Picture,
    Points,
    Record,
    Table,
)
from flashmore.benchmark.report.pictures import drawable
from flashmore.benchmark.wording import (
    crossover_sentence,
    digits,
    left_out,
    machine,
    ratio_text,
    same_setting,
    setting_title,
)

MIB = 2**20
PASSES = ("forward", "backward", "both")
COLUMNS = (
    "T", "backend", "forward, ms", "backward, ms", "both, ms", "quartiles of both", "first call, ms",
    "TFLOP/s", "peak MiB", "error / budget", "manual / this", "95 % interval", "verdict",
)  # fmt: skip
WORDS = ("backend", "verdict")


def findings(record: Record) -> list[str]:
    """The crossover of each setting."""
    return [
        f"{setting_title(found)}: {crossover_sentence(found['T'], _of_setting(record['ratios'], found))}"
        for found in record["crossovers"]
    ] or ["Nothing was measured."]


def comparable(record: Record) -> Comparable:
    """Medians of both passes and ratios of each setting, for tables of several records."""
    tables: Comparable = {}
    for row in record["rows"]:
        if row["pass"] == "both" and row["ok"]:
            told = tables.setdefault(setting_title(row), {})
            told[f"T {row['T']:,}: {row['backend']}, ms"] = digits(row["time_ms"]["median"])
    for ratio in record["ratios"]:
        told = tables.setdefault(setting_title(ratio), {})
        told[f"T {ratio['T']:,}: {ratio['of']} / {ratio['to']}"] = ratio_text(ratio)
    for found in record["crossovers"]:
        told = tables.setdefault(setting_title(found), {})
        told["fused wins from T ="] = "–" if found["T"] is None else f"{found['T']:,}"
    return tables


def parts(record: Record, number: int) -> Iterator[Part]:
    """The whole record.

    Args:
        record: of kind `attention`.
        number: of the record in this report.
    """
    where = machine(record["environment"])
    whole = [row for row in record["rows"] if row["pass"] == "both" and row["ok"]]
    below = (
        "A line for each backend, log–log, with dotted lines that grow like T and like T²; the tables have "
        "the numbers."
    )
    if whole:
        yield Picture(
            f"record-{number}-time",
            f"Time of forward and backward against T on {where}",
            below,
            lambda: time_plot(drawable(record)),
        )
    if any(row["peak_bytes"] for row in whole):
        yield Picture(
            f"record-{number}-memory",
            f"Peak memory of forward and backward against T on {where}",
            below,
            lambda: memory_plot(drawable(record)),
        )
    for found in record["crossovers"]:
        rows, ratios = _of_setting(record["rows"], found), _of_setting(record["ratios"], found)
        yield Heading(setting_title(found))
        if any(row["ok"] for row in rows):
            yield _table(
                rows, ratios, f"Attention alone on {where}: {setting_title(found)}; times are medians"
            )
        yield Paragraph(crossover_sentence(found["T"], ratios), strong=True)
        missing = left_out(rows)
        if missing:
            yield Points(tuple(missing))
    yield Paragraph(
        f"Budgets: {digits(record['memory_budget_bytes'] / 2**30)} GiB and {record['time_budget_s']:g} s. "
        "Memory is what a pass needs beyond its inputs. Errors are those of the output and of the gradients "
        "from float64, as a share of the error budget."
    )


def _of_setting(rows: list[Record], setting: Record) -> list[Record]:
    return [row for row in rows if same_setting(row, setting)]


def _table(rows: list[Record], ratios: list[Record], caption: str) -> Table:
    medians = {
        (row["T"], row["backend"], row["pass"]): digits(row["time_ms"]["median"]) for row in rows if row["ok"]
    }
    against = {(ratio["T"], ratio["to"]): ratio for ratio in ratios}
    told = []
    for row in rows:
        if row["pass"] != "both" or not row["ok"]:
            continue
        T, backend, time, error = row["T"], row["backend"], row["time_ms"], row["error"]
        ratio = against.get((T, backend))
        cold, flops, peak = row.get("cold_ms"), row["tflop_per_s"], row["peak_bytes"]
        told.append(
            (
                f"{T:,}",
                backend,
                *(medians.get((T, backend, which), "–") for which in PASSES),
                f"{digits(time['low'])} – {digits(time['high'])}",
                "–" if cold is None else digits(cold),
                "–" if flops is None else digits(flops),
                "–" if peak is None else digits(peak / MIB),
                f"{error / row['error_budget']:.2f}" if error is not None and row["error_budget"] else "–",
                "" if ratio is None else f"{ratio['value']:.3f}",
                "" if ratio is None else f"{ratio['low']:.3f} – {ratio['high']:.3f}",
                "" if ratio is None else Cell(ratio["verdict"], ratio["verdict"]),
            )
        )
    numbers = tuple(column for column in COLUMNS if column not in WORDS)
    return Table(caption, COLUMNS, tuple(told), numbers)
