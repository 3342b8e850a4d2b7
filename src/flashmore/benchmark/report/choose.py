"""The summary of a record of kind `choose`."""

from flashmore.benchmark.report.values import Record, Setting, Summary, Table
from flashmore.benchmark.wording import digits, machine, quartiles


def summarize(record: Record) -> Summary:
    """Everything a report shows of the record; there is no plot."""
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
    comparable = {f"{row['backend']}, ms": row["ms"] for row in rows}
    setting = Setting(title, Table(caption, rows, words=["backend"]), conclusion, missing, comparable)
    return Summary([f"{title}: {conclusion}"], [], [setting])
