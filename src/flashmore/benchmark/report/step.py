"""The parts of a report that tell a record of kind `step`."""

from collections.abc import Iterator, Sequence
from typing import Any

from flashmore.benchmark.plots.step import step_plot
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
from flashmore.benchmark.wording import digits, machine, ratio_text, seed_experiment_sentence, share_sentence

MIB = 2**20
NUMBERS = ("ms a step", "quartiles", "peak MiB", "95 % interval", "error / budget")


def contexts(record: Record) -> list[Record]:
    """Everything that was measured at one context, the first one first."""
    return [record, *record["further_contexts"]]


def findings(record: Record) -> list[str]:
    """One sentence for each ratio, or that there is none."""
    sentences = []
    for found in contexts(record):
        where = f"T {found['context']:,}, batch {found['batch']}"
        sentences += [
            f"{where}: {ratio['of']} / {ratio['to']} = {ratio['value']:.3f} "
            f"(95 %: {ratio['low']:.3f} – {ratio['high']:.3f}): {_verdict(ratio)}"
            for ratio in found["ratios"]
        ] or [f"{where}: nothing to compare."]
    return sentences


def _verdict(ratio: Record) -> str:
    if ratio["verdict"] == "no difference":
        return "no difference."
    return f"{ratio['to']} is {ratio['verdict']}."


def comparable(record: Record) -> Comparable:
    """Medians and ratios of each context, for tables of several records."""
    tables: Comparable = {}
    for found in contexts(record):
        told = tables.setdefault(f"T {found['context']:,}, batch {found['batch']}", {})
        for variant in _timed(found):
            told.setdefault(f"{variant['name']}, ms", digits(variant["step_ms"]["median"]))
        for ratio in found["ratios"]:
            told.setdefault(f"{ratio['of']} / {ratio['to']}", ratio_text(ratio))
        if found["attention_share"] is not None:
            told.setdefault("attention's share", f"{100 * found['attention_share']:.0f} %")
    return tables


def differences(records: Sequence[tuple[str, Record]]) -> list[Part]:
    """A table of what the recipes of several records do not share; nothing where they are the same."""
    names = dict.fromkeys(name for _, record in records for name in record["recipe"])
    rows = []
    for name in names:
        values = [str(record["recipe"].get(name, "–")) for _, record in records]
        if len(set(values)) > 1:
            rows.append((Cell(f"≠ {name}", "differs"), *(Cell(value, "differs") for value in values)))
    if not rows:
        return []
    columns = ("", *(column for column, _ in records))
    return [Table("Where the recipes of these records differ.", columns, tuple(rows))]


def parts(record: Record, number: int) -> Iterator[Part]:
    """The whole record.

    Args:
        record: of kind `step`.
        number: of the record in this report.
    """
    where = machine(record["environment"])
    if any(_timed(found) for found in contexts(record)):
        yield Picture(
            f"record-{number}-steps",
            f"Milliseconds a training step on {where}",
            "Every sample as a dot, with median and quartiles; the tables below have the numbers.",
            lambda: step_plot(drawable(record)),
        )
    recipe = record["recipe"]
    sizes = ", ".join(f"{name} {recipe[name]}" for name in _SIZES if name in recipe)
    for place, found in enumerate(contexts(record)):
        title = f"T {found['context']:,}, batch {found['batch']}"
        yield Heading(title)
        if _timed(found):
            yield _table(found, f"One training step at {title} on {where}; {sizes}")
        yield Paragraph(share_sentence(found), strong=True)
        remarks = [
            f"left out: {variant['name']}: {variant['why_not']}"
            for variant in found["variants"]
            if not variant["ok"]
        ]
        remarks += found["notes"]
        if place == 0:
            remarks.append(seed_experiment_sentence())
        yield Points(tuple(remarks))


_SIZES = ("model", "n_layer", "n_head", "n_embd", "dtype")


def _timed(found: Record) -> list[Any]:
    return [variant for variant in found["variants"] if variant["ok"]]


def _table(found: Record, caption: str) -> Table:
    timed = _timed(found)
    against = f"{timed[0]['name']} / this"
    rows = []
    for variant, ratio in zip(timed, [None, *found["ratios"]], strict=False):
        step, peak, used = variant["step_ms"], variant["peak_bytes"], variant["budget_used"]
        rows.append(
            (
                variant["name"],
                digits(step["median"]),
                f"{digits(step['low'])} – {digits(step['high'])}",
                "" if ratio is None else f"{ratio['value']:.3f}",
                "" if ratio is None else f"{ratio['low']:.3f} – {ratio['high']:.3f}",
                "" if ratio is None else Cell(ratio["verdict"], ratio["verdict"]),
                "–" if peak is None else digits(peak / MIB),
                "–" if used is None else f"{used:.2f}",
            )
        )
    columns = ("attention", "ms a step", "quartiles", against, "95 % interval", "verdict", "peak MiB")
    return Table(caption, (*columns, "error / budget"), tuple(rows), (*NUMBERS, against))
