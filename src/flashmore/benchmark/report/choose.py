"""What a record of kind `choose` says."""

from flashmore.benchmark.report.values import Record, Setting, Table, Told
from flashmore.benchmark.wording import digits, machine, quartiles


def tell(record: Record, _: int) -> Told:
    """The whole record; it has no plot."""
    B, H, T, D = record["problem"]["shape"]
    size = f"B {B}, H {H}, T {T:,}, D {D}, {record['problem']['dtype']}"
    when = f"measured in {record['measuring_s']:.1f} s" if record["measuring_s"] else "as measured before"
    finding = f"{size}: {record['chosen']} is chosen, {when}."
    rows, missing = [], []
    for candidate in record["candidates"]:
        name, time = candidate["name"], candidate["time_ms"]
        if time is None:
            missing.append(f"left out: {name}: {candidate['why_not']}")
        else:
            rows.append({"backend": name, "ms": digits(time["median"]), "quartiles": quartiles(time)})
    caption = f"Forward and backward once on {machine(record['environment'])}: medians"
    return Told([finding], [], [Setting("", Table(caption, rows, words=["backend"]), finding, missing)])
