"""The summary of a record of kind `step`."""

from flashmore.benchmark.plots.step import step_plot
from flashmore.benchmark.report.svg import plot_of
from flashmore.benchmark.report.values import Record, Setting, Summary, Table
from flashmore.benchmark.wording import (
    MIB,
    context_title,
    digits,
    interval,
    machine,
    quantity,
    quartiles,
    ratio_cells,
    ratio_text,
    seed_experiment_sentence,
    share_sentence,
)

SIZES = ("model", "n_layer", "n_head", "n_embd", "dtype")


def summarize(record: Record) -> Summary:
    """Everything a report shows of the record."""
    where, config = machine(record["environment"]), record["config"]
    contexts = [record, *record["further_contexts"]]
    plots = []
    if any(map(_timed, contexts)):
        title = f"Milliseconds a training step on {where}"
        below = "Every sample as a dot, with median and quartiles; the tables below have the numbers."
        plots.append(plot_of(step_plot(record), "steps", title, below))
    sizes = ", ".join(f"{name} {config[name]}" for name in SIZES if name in config)
    settings = [_setting(found, f"on {where}; {sizes}") for found in contexts]
    findings = [finding for found in contexts for finding in _findings(found)]
    return Summary(findings, plots, settings, [seed_experiment_sentence()])


def _timed(found: Record) -> list[Record]:
    return [variant for variant in found["variants"] if variant["ok"]]


def _findings(found: Record) -> list[str]:
    """One sentence per ratio, or a sentence that there is none."""
    findings = []
    for ratio in found["ratios"]:
        verdict = ratio["verdict"]
        verdict = verdict if verdict == "no difference" else f"{ratio['to']} is {verdict}"
        findings.append(
            f"{ratio['of']} / {ratio['to']} = {ratio['value']:.3f} (95 %: {interval(ratio)}): {verdict}"
        )
    return [f"{context_title(found)}: {finding}." for finding in findings or ["nothing to compare"]]


def _setting(found: Record, where: str) -> Setting:
    title, share = context_title(found), found["attention_share"]
    missing = [variant for variant in found["variants"] if not variant["ok"]]
    remarks = [f"left out: {variant['name']}: {variant['why_not']}" for variant in missing]
    comparable = {f"{variant['name']}, ms": digits(variant["step_ms"]["median"]) for variant in _timed(found)}
    comparable |= {f"{ratio['of']} / {ratio['to']}": ratio_text(ratio) for ratio in found["ratios"]}
    if share is not None:
        comparable["attention's share"] = f"{100 * share:.0f} %"
    table = Table(f"One training step at {title} {where}", _cells(found), words=["attention", "verdict"])
    return Setting(title, table, share_sentence(found), [*remarks, *found["notes"]], comparable)


def _cells(found: Record) -> list[dict[str, str]]:
    timed = _timed(found)
    return [
        {
            "attention": variant["name"],
            "ms a step": digits(variant["step_ms"]["median"]),
            "quartiles": quartiles(variant["step_ms"]),
            **ratio_cells(ratio, f"{timed[0]['name']} / this"),
            "peak MiB": quantity(variant["peak_bytes"], MIB),
            "error / budget": "–" if variant["budget_used"] is None else f"{variant['budget_used']:.2f}",
        }
        for variant, ratio in zip(timed, [None, *found["ratios"]], strict=False)
    ]
