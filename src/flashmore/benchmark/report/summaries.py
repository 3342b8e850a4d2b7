"""What a report and the terminal show of a record: sentences, tables and plots; nothing is computed anew."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flashmore.benchmark.plots import MIB, ablation_plot, attention_plot, step_plot
from flashmore.benchmark.report.values import (
    PASSES,
    Plot,
    Record,
    Setting,
    Summary,
    Table,
    compared,
    digits,
    machine,
    passes_of,
    setting_words,
)
from flashmore.measuring.statistics import Ratio

QUESTIONS = {
    "step": "training step",
    "ablation": "ablation of speed-ups",
    "attention": "attention alone",
    "choose": "choice of a backend",
}
"""By kind of record, in the order of a report's tables."""
SEED_EXPERIMENT = "The original experiment, on its author's laptop: 6.77 → 5.81 ms, 1.17 times as fast."
PACE = "the machine's speed changed, and a ratio only compares neighbouring blocks"
ABLATION_DISPENSABLE = (
    "quartiles", "characters/s", "results", "first step, s", "peak MiB", "break-even step", "95 % interval",
)  # fmt: skip
ATTENTION_DISPENSABLE = (
    "quartiles of both", "quartiles of forward", "quartiles of backward", "first call, ms", "TFLOP/s",
    "GFLOP/s", "error / budget", "forward, ms", "backward, ms", "peak MiB",
)  # fmt: skip
SIZES = ("model", "n_layer", "n_head", "n_embd")
Comparable = dict[str, str | float]


def summarize(record: Record) -> Summary:
    """Everything that is shown of a record."""
    kinds = {"step": _of_steps, "ablation": _of_ablation, "attention": _of_attention, "choose": _of_choice}
    where = machine(record["environment"])
    return replace(kinds[record["kind"]](record, where), question=QUESTIONS[record["kind"]], machine=where)


def _quantity(value: float | None, unit: float = 1) -> str:
    return "–" if value is None else digits(value / unit)


def _share(error: float | None, budget: float | None) -> str:
    return "–" if error is None or not budget else f"{error / budget:.2f}"


def _quartiles(spread: Record) -> str:
    return f"{digits(spread['low'])} – {digits(spread['high'])}"


def _interval(ratio: Record) -> str:
    return f"{ratio['low']:.3f} – {ratio['high']:.3f}"


def _ratio_text(ratio: Record) -> str:
    return f"{ratio['value']:.3f} ({_interval(ratio)})"


def _pair(ratio: Record) -> str:
    return f"{ratio['of']} / {ratio['to']}"


def ratio_cells(ratio: Record | None, column: str) -> dict[str, str]:
    """A ratio, its interval and its verdict; empty cells for None."""
    found = ("", "", "") if ratio is None else (f"{ratio['value']:.3f}", _interval(ratio), ratio["verdict"])
    return dict(zip((column, "95 % interval", "verdict"), found, strict=True))


def doubts(ratios: Mapping[str, Sequence[Any]]) -> list[str]:
    """Remarks on ratios that are undecided, or that the medians beside them contradict.

    Each ratio is given by its name, with the spreads of its two variants, None where one has none.
    """
    undecided, odd = [], []
    for name, (ratio, of, to) in ratios.items():
        if ratio.get("more_blocks"):
            undecided.append(f"{name} ({ratio['more_blocks']:,})")
        found = Ratio(ratio["value"], ratio["low"], ratio["high"], 0)
        if of and to and found.contradicts(of["median"] / to["median"]):
            odd.append(name)
    lines = {
        f"inconclusive, with an estimate of the blocks still needed: {', '.join(undecided)}": undecided,
        f"the medians contradict the ratio of {', '.join(odd)}: {PACE}": odd,
    }
    return [line for line, names in lines.items() if names]


def _context_title(found: Record) -> str:
    return f"T {found['context']:,}, batch {found['batch']}"


def _sizes(config: Record, *names: str) -> str:
    return ", ".join(f"{name} {config[name]}" for name in names if name in config)


def _timed(variants: Sequence[Record]) -> list[Record]:
    return [variant for variant in variants if variant["ok"]]


def _of_steps(record: Record, where: str) -> Summary:
    contexts = [record, *record["further_contexts"]]
    plots = []
    if any(_timed(found["variants"]) for found in contexts):
        title = f"Milliseconds per training step on {where}"
        below = "Every sample as a dot, with median and quartiles; see the tables below for the numbers."
        plots.append(Plot("steps", title, below, partial(step_plot, record)))
    sizes = _sizes(record["config"], *SIZES, "dtype")
    settings = [_step_setting(found, f"on {where}; {sizes}") for found in contexts]
    findings = [finding for found in contexts for finding in _step_findings(found)]
    return Summary(findings, plots, settings, [SEED_EXPERIMENT])


def _step_findings(found: Record) -> list[str]:
    """One sentence per ratio, or a sentence that there is none."""
    findings = []
    for ratio in found["ratios"]:
        subject = f"{ratio['to']} is " * (ratio["verdict"] in ("faster", "slower"))
        interval = f"{ratio['value']:.3f} (95 %: {_interval(ratio)})"
        findings.append(f"{_pair(ratio)} = {interval}: {subject}{ratio['verdict']}")
    return [f"{_context_title(found)}: {finding}." for finding in findings or ["nothing to compare"]]


def _step_setting(found: Record, where: str) -> Setting:
    title, timed, share = _context_title(found), _timed(found["variants"]), found["attention_share"]
    rows = [
        {
            "attention": variant["name"],
            "ms a step": digits(variant["step_ms"]["median"]),
            "quartiles": _quartiles(variant["step_ms"]),
            **ratio_cells(ratio, f"{timed[0]['name']} / this"),
            "peak MiB": _quantity(variant["peak_bytes"], MIB),
            "error / budget": _share(variant["budget_used"], 1),
        }
        for variant, ratio in zip(timed, [None, *found["ratios"]], strict=False)
    ]
    remarks = [f"skipped: {one['name']}: {one['why_not']}" for one in found["variants"] if not one["ok"]]
    steps = [variant["step_ms"] for variant in timed]
    pairs = zip(found["ratios"], steps[1:], strict=False)
    remarks += [*doubts({_pair(ratio): (ratio, steps[0], step) for ratio, step in pairs}), *_exchange(timed)]
    comparable: Comparable = {f"{one['name']}, ms": one["step_ms"]["median"] for one in timed}
    comparable |= {_pair(ratio): _ratio_text(ratio) for ratio in found["ratios"]}
    if share is not None:
        comparable["attention's share"] = f"{100 * share:.0f} %"
    caption = f"One training step at {title} {where}"
    table = Table(caption, rows, ("attention", "verdict"), (), ("error / budget", "quartiles", "peak MiB"))
    return Setting(title, table, share_sentence(found), [*remarks, *found["notes"]], comparable)


def share_sentence(found: Record) -> str:
    """Attention's share of a training step at one context, and the most that a kernel can gain (Amdahl)."""
    share = found["attention_share"]
    if share is None:
        return "Nothing was timed."
    name = next((variant["name"] for variant in found["variants"] if variant["ok"]), "the first variant")
    told = f"Attention alone takes {100 * share:.0f} % of {name}'s step"
    low, high = found["attention_share_low"], found["attention_share_high"]
    if low is not None and high is not None:
        told += f" (95 %: {100 * low:.1f} – {100 * high:.1f} %)"
    if found["most_gain"] is None:
        return f"{told}."
    return f"{told}: removing all of it would make the step at most {found['most_gain']:.2f} times as fast."


def _exchange(timed: Sequence[Record]) -> list[str]:
    """The share of communication in the step of each variant of several ranks, as one remark."""
    found = [(one["name"], one["communication"]) for one in timed if "communication" in one]
    shares = (
        f"{name} {_percent(one['share'])} ({_percent(one['low'])} – {_percent(one['high'])})"
        for name, one in found
    )
    return [f"Communication takes this share of a step (95 %): {', '.join(shares)}."] if found else []


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _of_ablation(record: Record, where: str) -> Summary:
    title, sizes = _context_title(record), _sizes(record["config"], *SIZES)
    variants, alone = _timed(record["variants"]), _timed(record["left_out_alone"])
    plots, settings = [], []
    if variants:
        heading = f"Milliseconds per training step on {where}, speed-up by speed-up"
        below = "A bar for each variant with its quartiles; see the table below for the numbers."
        plots.append(Plot("ablation", heading, below, partial(ablation_plot, record)))
        caption = f"Speed-ups added one by one: {title}, on {where}; {sizes}"
        settings.append(_ablation_setting(title, caption, variants, variants, "added", "before / this"))
    if alone:
        caption = f"All but one: {title}, on {where}; {sizes}"
        title = f"{title}, each left out alone"
        settings.append(_ablation_setting(title, caption, alone, variants, "left out", "all / this"))
    every = (*record["variants"], *record["left_out_alone"])
    remarks = [
        *(f"not timed: {one['name']}: {one['why_not']}" for one in every if not one["ok"]),
        *(f"skipped: {one['name']}: {one['why']}" for one in record["left_out"]),
        *record["notes"],
        f"Exact variants gave the plain loop's losses of the first {record['checked_steps']} steps within "
        "the error budget; for the others, the table gives the difference in loss after these steps.",
    ]
    return Summary(_ablation_findings(variants), plots, settings, remarks)


def _ablation_findings(timed: Sequence[Record]) -> list[str]:
    """The gain of the full set, and what each speed-up adds."""
    if len(timed) < 2:
        return ["Nothing to compare: fewer than two variants were timed."]
    kept = [one for one in timed[1:] if one.get("kept", True)]
    findings = [
        f"{' + '.join(last['speedups'])}: {_ratio_text(last['ratio'])} times as fast as the plain loop."
        for last in kept[-1:]
    ] or ["No speed-up is kept: each was slower."]
    for variant in timed[1:]:
        ratio = variant["ratio_before"]
        verdict = f"{_ratio_text(ratio)}: {ratio['verdict']}"
        findings.append(f"{variant['name']} after {ratio['of']}: {verdict}; {variant['exactness']}.")
    return findings


def _ablation_setting(
    title: str, caption: str, timed: Sequence[Record], others: Sequence[Record], first: str, before: str
) -> Setting:
    rows: list[dict[str, str]] = []
    comparable: Comparable = {}
    steps = {one["name"]: one["step_ms"] for one in (*others, *timed)}
    ratios = [one["ratio"] | {"more_blocks": 0} for one in timed if one["ratio"]]  # its verdict is not shown
    ratios += [one["ratio_before"] for one in timed if one["ratio_before"]]
    remarks = doubts({_pair(one): (one, steps.get(one["of"]), steps.get(one["to"])) for one in ratios})
    remarks += _exchange(timed)
    for variant in timed:
        name, step, ratio = variant["name"], variant["step_ms"], variant["ratio"]
        total, added = ratio_cells(ratio, "none / this"), ratio_cells(variant["ratio_before"], before)
        del total["verdict"], added["95 % interval"]
        pays, earns = variant["break_even_steps"], first == "added" and variant["ratio_before"] is not None
        rows.append(
            {
                first: name,
                "ms a step": digits(step["median"]),
                "quartiles": _quartiles(step),
                "characters/s": f"{variant['characters_per_s']:,.0f}",
                **total,
                **added,
                "peak MiB": "" if variant["peak_bytes"] is None else digits(variant["peak_bytes"] / MIB),
                "first step, s": _quantity(variant["first_step_seconds"]),
                "break-even step": (f"{pays:,}" if pays else "never" if pays is None else "at once") * earns,
                "results": _likeness(variant),
            }
        )
        comparable[f"{name}, ms"] = step["median"]
        if ratio is not None:
            comparable[f"none / {name}"] = _ratio_text(ratio)
    table = Table(caption, rows, (first, "verdict", "results"), dispensable=ABLATION_DISPENSABLE)
    return Setting(title, table, remarks=remarks, comparable=comparable)


def _likeness(variant: Record) -> str:
    """How close a variant's results are to the plain loop's."""
    if variant["budget_used"] is not None:
        return f"exact, {100 * variant['budget_used']:.0f} % of the error budget"
    if variant["loss_difference"] is not None:
        return f"{variant['exactness']}: loss {variant['loss_difference']:+.4f}"
    return "–"


def _of_attention(record: Record, where: str) -> Summary:
    plots = []
    whole = _timed(compared(record["rows"]))
    passes = " and on ".join(dict.fromkeys(PASSES[passes_of(row)] for row in record["rows"]))
    settings = [_attention_setting(record, found, where) for found in record["crossovers"]]
    findings = [f"{setting.title}: {setting.conclusion}" for setting in settings] or ["Nothing was measured."]
    title = f"of {passes} against T on {where}"
    below = (
        "A line for each backend, log–log, with dotted lines that grow like T and like T²; the tables have "
        "the numbers."
    )
    if whole:
        plots.append(Plot("time", f"Time {title}", below, partial(attention_plot, record, "time_ms")))
    if any(row["peak_bytes"] for row in whole):
        plots.append(
            Plot("memory", f"Peak memory {title}", below, partial(attention_plot, record, "peak_bytes"))
        )
    note = (
        f"Budgets: {digits(record['memory_budget_bytes'] / 2**30)} GiB and {record['time_budget_s']:g} s. "
        "T is the number of keys. Memory is what a pass needs beyond its inputs. Errors are the "
        "differences of the output and the gradients from float64, as a share of the error budget."
    )
    return Summary(findings, plots, settings, [note])


def _attention_setting(record: Record, found: Record, where: str) -> Setting:
    words = setting_words(found)
    rows, ratios = ([one for one in record[of] if setting_words(one) == words] for of in ("rows", "ratios"))
    title = ", ".join(words)
    told = (PASSES | {"both": "both passes"})[passes_of(found)]
    spreads = {(row["T"], row["backend"]): row["time_ms"] for row in _timed(compared(rows))}
    comparable: Comparable = {
        f"T {T:,}: {backend}, {told}, ms": time["median"] for (T, backend), time in spreads.items()
    }
    comparable |= {f"T {ratio['T']:,}: {_pair(ratio)}": _ratio_text(ratio) for ratio in ratios}
    comparable["fused faster from T ="] = "–" if found["T"] is None else f"{found['T']:,}"
    caption = f"Attention alone on {where}: {title}; times are medians"
    table = Table(caption, _attention_cells(rows, ratios), ("backend", "verdict"), (), ATTENTION_DISPENSABLE)
    pairs = {
        f"{one['to']} at T {one['T']:,}": (one, *(spreads.get((one["T"], one[end])) for end in ("of", "to")))
        for one in ratios
    }
    conclusion = crossover_sentence(found["T"], ratios)
    return Setting(title, table, conclusion, [*left_out(rows), *doubts(pairs)], comparable)


def _attention_cells(rows: Sequence[Record], ratios: Sequence[Record]) -> list[dict[str, str]]:
    medians = {(row["T"], row["backend"], row["pass"]): row["time_ms"]["median"] for row in _timed(rows)}
    against = {(ratio["T"], ratio["to"]): ratio for ratio in ratios}
    whole = _timed(compared(rows))
    fast = max((row["tflop_per_s"] for row in whole), default=0.0) >= 1
    return [
        {
            "T": f"{row['T']:,}",
            "backend": row["backend"],
            **{
                f"{which}, ms": _quantity(medians.get((row["T"], row["backend"], which)))
                for which in ("forward", "backward", "both")
                if passes_of(row) in ("both", which)
            },
            f"quartiles of {passes_of(row)}": _quartiles(row["time_ms"]),
            "first call, ms": _quantity(row.get("cold_ms")),
            "TFLOP/s" if fast else "GFLOP/s": digits(row["tflop_per_s"] * (1 if fast else 1000)),
            "peak MiB": _quantity(row["peak_bytes"], MIB),
            "error / budget": _share(row["error"], row["error_budget"]),
            **ratio_cells(against.get((row["T"], row["backend"])), "manual / this"),
        }
        for row in whole
    ]


def left_out(rows: Sequence[Record]) -> list[str]:
    """What was left out of one setting of `bench attention`, with one line per reason."""
    lengths: dict[str, dict[str, list[int]]] = {}
    for row in compared(rows):
        if not row["ok"]:
            lengths.setdefault(row["why_not"], {}).setdefault(row["backend"], []).append(row["T"])
    every = len({row["T"] for row in rows})
    lines = []
    for why, backends in lengths.items():
        where = [
            backend if len(found) == every else f"{backend} at T = {', '.join(f'{T:,}' for T in found)}"
            for backend, found in backends.items()
        ]
        lines.append(f"skipped: {' and '.join(where)}: {why}")
    return lines


def crossover_sentence(T: int | None, ratios: Sequence[Record]) -> str:
    """A sentence on T, the crossover of the setting that these are the ratios of, or on there being none."""
    if not ratios:
        return "No crossover: this needs manual and a fused backend at the same T."
    lengths = sorted({ratio["T"] for ratio in ratios})
    if T is None:
        return f"No crossover: fused attention is not faster up to T = {lengths[-1]:,}."
    if lengths[0] == T:
        return f"Fused attention is faster at every measured T, from {T:,} to {lengths[-1]:,}."
    return f"Fused attention is faster from T = {T:,} on, up to T = {lengths[-1]:,}, the longest measured."


def _of_choice(record: Record, where: str) -> Summary:
    problem = record["problem"]
    (B, H, T, D), mask = problem["shape"], problem.get("mask", "none")
    facts = {
        f"B {B}, H {H}, T {T:,}, D {D}, {problem['dtype']}": True,
        f"S {problem.get('source')}": problem.get("source"),
        f"{problem.get('kv_heads')} heads of k and v": problem.get("kv_heads"),
        f"D_v {problem.get('value_dim')}": problem.get("value_dim"),
        "full": not problem.get("causal", True),
        f"mask {mask}".removesuffix(" True"): mask not in ("none", False),
        f"dropout {problem['dropout_p']:g}": problem["dropout_p"],
        PASSES[passes_of(problem)]: passes_of(problem) != "both",
    }
    title = ", ".join(fact for fact, holds in facts.items() if holds)
    when = f"measured in {record['measuring_s']:.1f} s" if record["measuring_s"] else "from the cache"
    conclusion = f"{record['chosen']} is chosen, {when}."
    timed = [one for one in record["candidates"] if one["time_ms"]]
    spreads = {one["name"]: one["time_ms"] for one in timed}
    ratios = {one["name"]: one["ratio"] for one in timed if one.get("ratio")}
    safe = next((ratio["of"] for ratio in ratios.values()), "safe")
    rows = [
        {
            "backend": name,
            "ms": digits(time["median"]),
            "quartiles": _quartiles(time),
            **ratio_cells(ratios.get(name), f"{safe} / this"),
        }
        for name, time in spreads.items()
    ]
    caption = f"{PASSES[passes_of(problem)].capitalize()}, once, on {where}: medians"
    missing = [one for one in record["candidates"] if not one["time_ms"]]
    pairs = {f"{safe} / {name}": (ratio, spreads.get(safe), spreads[name]) for name, ratio in ratios.items()}
    remarks = [*(f"skipped: {one['name']}: {one['why_not']}" for one in missing), *doubts(pairs)]
    comparable = {f"{name}, ms": time["median"] for name, time in spreads.items()}
    table = Table(caption, rows, ("backend", "verdict"), dispensable=["quartiles"])
    setting = Setting(title, table, conclusion, remarks, comparable)
    return Summary([f"{title}: {conclusion}"], [], [setting])
