"""Compares two records of the same measurement, and tells what became slower."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flashmore.benchmark.report.summaries import doubts, ratio_cells
from flashmore.benchmark.report.values import Record, Setting, Table, compared, digits, setting_words
from flashmore.errors import UsageError
from flashmore.measuring.statistics import Blocks, ratio, spread

PROBLEM = ("shape", "dtype", "dropout_p", "source", "kv_heads", "value_dim", "causal", "mask", "passes")
MACHINE = ("device", "device_name", "cpu_name")


def require_same(what: str, baseline: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse values that differ.

    Raises:
        UsageError: with the names that differ, and both values of the first.
    """
    if differing := [name for name in baseline if baseline[name] != now.get(name)]:
        first = differing[0]
        found = f"a different {' and '.join(differing)}: {now.get(first)} instead of {baseline[first]}"
        raise UsageError(
            f"the {what} of the baseline", found[:500], "records of the same machine and the same command"
        )


def check(baseline: Record, now: Record, equivalence: float) -> tuple[Setting, list[str]]:
    """What is slower than in the baseline; the blocks of the two runs are paired in their order.

    Returns:
        A table of everything that both measured, and the names of what is slower.

    Raises:
        UsageError: another device, other settings, or nothing that both measured.
    """
    machines = (
        {name: one["environment"].get(name) for name in (*MACHINE, "threads", "ranks")}
        for one in (baseline, now)
    )
    require_same("machine", *machines)
    require_same("settings", _settings(baseline), _settings(now))
    before, after = _samples(baseline), _samples(now)
    shared = [name for name in before if name in after]
    if not shared:
        valid = "two records with the same shapes and variants"
        raise UsageError("a measurement that is in both records", "none", valid)
    rows, ratios, slower = [], {}, []
    for name in shared:
        blocks = min(len(before[name]), len(after[name]))
        found = ratio(before[name][:blocks], after[name][:blocks], equivalence)
        told = found.to_json("baseline", name)
        spreads = asdict(spread(before[name])), asdict(spread(after[name]))
        rows.append(
            {
                "measured": name,
                "before, ms": digits(spreads[0]["median"]),
                "now, ms": digits(spreads[1]["median"]),
                **ratio_cells(told, "before / now"),
            }
        )
        ratios[name] = (told, *spreads)
        slower += [name] * (found.verdict == "slower")
    remarks = [f"not in both records: {name}" for name in {**before, **after} if name not in shared]
    table = Table("Now against the baseline", rows, ("measured", "verdict"), dispensable=["95 % interval"])
    conclusion = f"Slower than the baseline: {', '.join(slower)}." if slower else "Nothing is slower."
    return Setting("", table, conclusion, [*remarks, *doubts(ratios)]), slower


def _settings(record: Record) -> dict[str, Any]:
    """What must be equal; the shapes of attention alone are in the names of its samples."""
    problem = record.get("problem", {})
    places = [
        (one["context"], one["batch"])
        for one in (record, *record.get("further_contexts", ()))
        if "context" in one
    ]
    found = {name: problem[name] for name in PROBLEM if name in problem}
    return {"kind": record["kind"], "(T, batch)": places, **found, **record.get("config", {})}


def _samples(record: Record) -> dict[str, Blocks]:
    """The blocks of everything that was timed, by what it is."""
    found: dict[str, Blocks] = {}
    for context in (record, *record.get("further_contexts", ())) if record["kind"] == "step" else ():
        for number, one in enumerate(context["variants"], 1):
            found[f"{number}: {one['name']} at T {context['context']:,}"] = one["samples_ms"]
    if record["kind"] == "ablation":
        found |= {one["name"]: one["samples_ms"] for one in (*record["variants"], *record["left_out_alone"])}
    for row in compared(record.get("rows", ())):
        found[f"{row['backend']}: T {row['T']}, {', '.join(setting_words(row))}"] = row["samples_ms"]
    found |= {one["name"]: one["samples_ms"] for one in record.get("candidates", ())}
    timed = {name: [block for block in blocks if block] for name, blocks in found.items()}
    return {name: blocks for name, blocks in timed.items() if blocks}
