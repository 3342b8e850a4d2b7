"""The parts of a report that tell a record of kind `ablation`."""

from collections.abc import Iterator, Sequence

from flashmore.benchmark.plots.ablation import ablation_plot
from flashmore.benchmark.report.parts import (
    Cell,
    Comparable,
    Heading,
    Part,
    Picture,
    Points,
    Record,
    Table,
)
from flashmore.benchmark.report.pictures import drawable
from flashmore.benchmark.wording import LADDER_NUMBERS, digits, machine, ratio_text, variant_cells


def findings(record: Record) -> list[str]:
    """What all together bring, and what each one adds at its place."""
    timed = [variant for variant in record["variants"] if variant["ok"]]
    if len(timed) < 2:
        return ["Nothing to compare: fewer than two variants were timed."]
    last = timed[-1]
    sentences = [f"{_all_of(last)}: {ratio_text(last['ratio'])} times as fast as the plain loop."]
    for variant in timed[1:]:
        before = variant["ratio_before"]
        told = f"{variant['name']} after {before['of']}: {ratio_text(before)}: {before['verdict']}"
        sentences.append(f"{told}; {variant['exactness']}.")
    return sentences


def _all_of(variant: Record) -> str:
    return " + ".join(variant["speedups"])


def comparable(record: Record) -> Comparable:
    """Medians and ratios of every variant, for tables of several records."""
    told: dict[str, str] = {}
    for variant in (*record["variants"], *record["left_out_alone"]):
        if variant["ok"]:
            told[f"{variant['name']}, ms"] = digits(variant["step_ms"]["median"])
            if variant["ratio"] is not None:
                told[f"none / {variant['name']}"] = ratio_text(variant["ratio"])
    return {f"T {record['context']:,}, batch {record['batch']}": told}


def parts(record: Record, number: int) -> Iterator[Part]:
    """The whole record.

    Args:
        record: of kind `ablation`.
        number: of the record in this report.
    """
    where = machine(record["environment"])
    at = f"T {record['context']:,}, batch {record['batch']}, on {where}"
    variants, alone = record["variants"], record["left_out_alone"]
    if any(variant["ok"] for variant in variants):
        yield Picture(
            f"record-{number}-ablation",
            f"Milliseconds a training step on {where}, speed-up by speed-up",
            "A bar for each variant with its quartiles; the table below has the numbers.",
            lambda: ablation_plot(drawable(record)),
        )
        yield _table(variants, f"Speed-ups added one after the other: {at}", "added", "the one before / this")
    if any(variant["ok"] for variant in alone):
        yield Heading("Each left out alone")
        yield _table(alone, f"All together but one: {at}", "left out", "all / this")
    remarks = [
        f"no number: {variant['name']}: {variant['why_not']}"
        for variant in (*variants, *alone)
        if not variant["ok"]
    ]
    remarks += [f"left out: {left_out['name']}: {left_out['why']}" for left_out in record["left_out"]]
    remarks += record["notes"]
    remarks.append(
        f"Exact variants gave the plain loop's losses of the first {record['checked_steps']} steps within "
        "the error budget; for the others the table says by how much the loss differs after them."
    )
    yield Points(tuple(remarks))


def _table(variants: Sequence[Record], caption: str, first: str, before: str) -> Table:
    numbers, alike = LADDER_NUMBERS[:5], LADDER_NUMBERS[5:]
    rows = []
    for variant in (variant for variant in variants if variant["ok"]):
        cells = variant_cells(variant, added=first == "added")
        before_it = variant["ratio_before"]
        verdict = "" if before_it is None else Cell(cells["verdict"], before_it["verdict"])
        told = [cells[name] for name in ("name", *numbers, "before")]
        rows.append((*told, verdict, *(cells[name] for name in (*alike, "answers"))))
    columns = (first, *numbers, before, "verdict", *alike, "answers")
    return Table(caption, columns, tuple(rows), (*LADDER_NUMBERS, before))
