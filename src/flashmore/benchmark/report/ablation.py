"""The summary of a record of kind `ablation`."""

from collections.abc import Sequence

from flashmore.benchmark.plots.ablation import ablation_plot
from flashmore.benchmark.report.svg import plot_of
from flashmore.benchmark.report.values import Record, Setting, Summary, Table
from flashmore.benchmark.wording import context_title, digits, machine, ratio_text, variant_cells


def summarize(record: Record) -> Summary:
    """Everything a report shows of the record."""
    where, title = machine(record["environment"]), context_title(record)
    variants, alone = _timed(record["variants"]), _timed(record["left_out_alone"])
    plots, settings = [], []
    if variants:
        heading = f"Milliseconds a training step on {where}, speed-up by speed-up"
        below = "A bar for each variant with its quartiles; the table below has the numbers."
        plots.append(plot_of(ablation_plot(record), "ablation", heading, below))
        caption = f"Speed-ups added one after the other: {title}, on {where}"
        settings.append(_setting(title, caption, variants, "added", "the one before / this"))
    if alone:
        caption = f"All together but one: {title}, on {where}"
        settings.append(_setting(f"{title}, each left out alone", caption, alone, "left out", "all / this"))
    return Summary(_findings(variants), plots, settings, _remarks(record))


def _timed(variants: Sequence[Record]) -> list[Record]:
    return [variant for variant in variants if variant["ok"]]


def _findings(timed: Sequence[Record]) -> list[str]:
    """The gain of the full set, and what each speed-up adds."""
    if len(timed) < 2:
        return ["Nothing to compare: fewer than two variants were timed."]
    last = timed[-1]
    together = f"{' + '.join(last['speedups'])}: {ratio_text(last['ratio'])} times as fast as the plain loop."
    findings = [together]
    for variant in timed[1:]:
        ratio, exactness = variant["ratio_before"], variant["exactness"]
        verdict = f"{ratio_text(ratio)}: {ratio['verdict']}"
        findings.append(f"{variant['name']} after {ratio['of']}: {verdict}; {exactness}.")
    return findings


def _remarks(record: Record) -> list[str]:
    missing = [one for one in (*record["variants"], *record["left_out_alone"]) if not one["ok"]]
    return [
        *(f"no number: {variant['name']}: {variant['why_not']}" for variant in missing),
        *(f"left out: {left_out['name']}: {left_out['why']}" for left_out in record["left_out"]),
        *record["notes"],
        f"Exact variants gave the plain loop's losses of the first {record['checked_steps']} steps within "
        "the error budget; for the others the table says by how much the loss differs after them.",
    ]


def _setting(title: str, caption: str, timed: Sequence[Record], first: str, before: str) -> Setting:
    names = {"name": first, "before": before}
    rows, comparable = [], {}
    for variant in timed:
        cells = variant_cells(variant, added=first == "added")
        rows.append({names.get(column, column): text for column, text in cells.items()})
        comparable[f"{variant['name']}, ms"] = digits(variant["step_ms"]["median"])
        if variant["ratio"] is not None:
            comparable[f"none / {variant['name']}"] = ratio_text(variant["ratio"])
    return Setting(title, Table(caption, rows, words=[first, "verdict", "answers"]), comparable=comparable)
