"""The parts of a report that tell a record of kind `choose`."""

from collections.abc import Iterator

from flashmore.benchmark.report.parts import Part, Points, Record, Table
from flashmore.benchmark.wording import digits, machine

COLUMNS = ("backend", "ms", "quartiles")


def findings(record: Record) -> list[str]:
    """What was chosen, and for what."""
    B, H, T, D = record["problem"]["shape"]
    size = f"B {B}, H {H}, T {T:,}, D {D}, {record['problem']['dtype']}"
    when = f"measured in {record['measuring_s']:.1f} s" if record["measuring_s"] else "as measured before"
    return [f"{size}: {record['chosen']} is chosen, {when}."]


def parts(record: Record) -> Iterator[Part]:
    """The whole record.

    Args:
        record: of kind `choose`.
    """
    yield Points(tuple(findings(record)))
    rows = []
    for candidate in record["candidates"]:
        time = candidate["time_ms"]
        if time is not None:
            quartiles = f"{digits(time['low'])} – {digits(time['high'])}"
            rows.append((candidate["name"], digits(time["median"]), quartiles))
    where = machine(record["environment"])
    yield Table(f"Forward and backward once on {where}: medians", COLUMNS, tuple(rows), COLUMNS[1:])
    missing = [
        f"left out: {candidate['name']}: {candidate['why_not']}"
        for candidate in record["candidates"]
        if candidate["time_ms"] is None
    ]
    if missing:
        yield Points(tuple(missing))
