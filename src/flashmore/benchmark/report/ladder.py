"""The parts of a report that tell a record of kind `ladder`."""

from collections.abc import Iterator, Sequence

from flashmore.benchmark.plots.ladder import ladder_plot
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
from flashmore.benchmark.wording import LADDER_NUMBERS, digits, machine, ratio_text, rung_cells


def findings(record: Record) -> list[str]:
    """What all together bring, and what each one adds at its place."""
    timed = [rung for rung in record["rungs"] if rung["ok"]]
    if len(timed) < 2:
        return ["Nothing to compare: fewer than two rungs were timed."]
    last = timed[-1]
    sentences = [f"{_all_of(last)}: {ratio_text(last['ratio'])} times as fast as the plain loop."]
    for rung in timed[1:]:
        before = rung["ratio_before"]
        told = f"{rung['name']} after {before['of']}: {ratio_text(before)}: {before['verdict']}"
        sentences.append(f"{told}; {rung['exactness']}.")
    return sentences


def _all_of(rung: Record) -> str:
    return " + ".join(rung["speedups"])


def comparable(record: Record) -> Comparable:
    """Medians and ratios of every rung, for tables of several records."""
    told: dict[str, str] = {}
    for rung in (*record["rungs"], *record["left_out_alone"]):
        if rung["ok"]:
            told[f"{rung['name']}, ms"] = digits(rung["step_ms"]["median"])
            if rung["ratio"] is not None:
                told[f"none / {rung['name']}"] = ratio_text(rung["ratio"])
    return {f"T {record['context']:,}, batch {record['batch']}": told}


def parts(record: Record, number: int) -> Iterator[Part]:
    """The whole record.

    Args:
        record: of kind `ladder`.
        number: of the record in this report.
    """
    where = machine(record["environment"])
    at = f"T {record['context']:,}, batch {record['batch']}, on {where}"
    rungs, alone = record["rungs"], record["left_out_alone"]
    if any(rung["ok"] for rung in rungs):
        yield Picture(
            f"record-{number}-ladder",
            f"Milliseconds a training step on {where}, speed-up by speed-up",
            "A bar for each rung with its quartiles; the table below has the numbers.",
            lambda: ladder_plot(drawable(record)),
        )
        yield _table(rungs, f"Speed-ups added one after the other: {at}", "added", "the one before / this")
    if any(rung["ok"] for rung in alone):
        yield Heading("Each left out alone")
        yield _table(alone, f"All together but one: {at}", "left out", "all / this")
    remarks = [f"no number: {rung['name']}: {rung['why_not']}" for rung in (*rungs, *alone) if not rung["ok"]]
    remarks += [f"left out: {left_out['name']}: {left_out['why']}" for left_out in record["left_out"]]
    remarks += record["notes"]
    remarks.append(
        f"Exact rungs gave the plain loop's losses of the first {record['checked_steps']} steps within the "
        "error budget; for the others the table says by how much the loss differs after them."
    )
    yield Points(tuple(remarks))


def _table(rungs: Sequence[Record], caption: str, first: str, before: str) -> Table:
    numbers, alike = LADDER_NUMBERS[:5], LADDER_NUMBERS[5:]
    rows = []
    for rung in (rung for rung in rungs if rung["ok"]):
        cells = rung_cells(rung, added=first == "added")
        before_it = rung["ratio_before"]
        verdict = "" if before_it is None else Cell(cells["verdict"], before_it["verdict"])
        told = [cells[name] for name in ("name", *numbers, "before")]
        rows.append((*told, verdict, *(cells[name] for name in (*alike, "answers"))))
    columns = (first, *numbers, before, "verdict", *alike, "answers")
    return Table(caption, columns, tuple(rows), (*LADDER_NUMBERS, before))
