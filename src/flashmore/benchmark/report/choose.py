"""What a record of kind `choose` says."""

from flashmore.benchmark.report.values import Record, Setting, Table, Told
from flashmore.benchmark.wording import digits, machine, quartiles


def tell(record: Record) -> Told:
    """The whole record; it has no plot."""
    B, H, T, D = record["problem"]["shape"]
    title = f"B {B}, H {H}, T {T:,}, D {D}, {record['problem']['dtype']}"
    when = f"measured in {record['measuring_s']:.1f} s" if record["measuring_s"] else "as measured before"
    conclusion = f"{record['chosen']} is chosen, {when}."
    rows, missing = [], []
    for candidate in record["candidates"]:
        name, time = candidate["name"], candidate["time_ms"]
        if time is None:
            missing.append(f"left out: {name}: {candidate['why_not']}")
        else:
            rows.append({"backend": name, "ms": digits(time["median"]), "quartiles": quartiles(time)})
    caption = f"Forward and backward once on {machine(record['environment'])}: medians"
    beside = {f"{row['backend']}, ms": row["ms"] for row in rows}
    setting = Setting(title, Table(caption, rows, words=["backend"]), conclusion, missing, beside)
    return Told([f"{title}: {conclusion}"], [], [setting])
