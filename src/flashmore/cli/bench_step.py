"""`flashmore bench step`: time whole training steps with different attention backends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD

from flashmore.benchmark.wording import (
    SEED_EXPERIMENT_MS,
    machine,
    seed_experiment_sentence,
    share_sentence,
)
from flashmore.cli.bench_outputs import BlockBar, Outputs, give
from flashmore.cli.parse import defaults, parse, refuse_ineffective, value_of
from flashmore.cli.show import stdout, table
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.specs import Attention, backends, model_spec
from flashmore.terminal import Terminal, say

Found = Mapping[str, Any]
BLOCKS = 30

MIB = 2**20


@dataclass(frozen=True)
class BenchStep(Outputs):
    """Time whole training steps of the same model, data and seed with two or more attention backends.

    Each backend is first compared with manual attention in float64; one that exceeds the error budget of its
    precision is not timed. The variants then alternate in short blocks, so that drift affects all equally.
    """

    config: TrainConfig
    """Data, model and training; --model and --preset decide some of the defaults."""
    variants: tuple[Attention, ...] = ("manual", "flash")
    """Attention backends, the first of which is the baseline; a name may be repeated."""
    lengths: tuple[int, ...] = ()
    """Lengths T of rows from a stream of all names; none means padded names, as in training."""
    blocks: int = BLOCKS
    """Blocks per variant; fewer than 20 are imprecise."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore bench step`."""
    command = parse(BenchStep, "bench step", argv, BenchStep(defaults(argv, "makemore")))
    if model_spec(command.config.model).attends:  # the others are refused as such
        refuse_ineffective(command.config, argv, ("--speedups", "--eval-interval", "--log-interval"))
    if command.config.attention != "auto":
        option = f"--attention {command.config.attention}"
        raise ConfigError("attention backends to compare", option, "--variants manual flash")
    if not command.variants:
        raise ConfigError("--variants to compare", "none", ", ".join(("auto", *backends())))

    from flashmore.benchmark.plots.step import step_plot
    from flashmore.benchmark.step.record import bench_steps

    with BlockBar(command.blocks) as bar:
        record = bench_steps(
            command.config,
            command.variants if value_of("--variants", argv) is not None else None,
            command.lengths,
            shrink_batch=value_of("--batch-size", argv) is None,
            blocks=command.blocks,
            say=bar.say,
            after_block=bar.after_block,
        )
    for found in (record, *record["further_contexts"]):
        for note in found["notes"]:
            say(f"note: {note}")
    return give(record, command, show, step_plot)


def show(record: Found) -> None:
    """Print a table for each context, its conclusions, and every warning."""
    console = stdout()
    for number, found in enumerate((record, *record["further_contexts"])):
        show_context(found, record, console, beside_seed_experiment=number == 0)
    for warning in record["warnings"]:
        console.print(f"warning: {warning['code']}: {warning['message']}", f"  {warning['advice']}")


def show_context(found: Found, record: Found, console: Terminal, *, beside_seed_experiment: bool) -> None:
    """Print one context's table and attention's share."""
    environment, config = record["environment"], record["config"]
    where = machine(environment)
    sizes = f"{config['n_layer']} layers, {config['n_head']} heads, {config['n_embd']} channels"
    shape = f"context {found['context']:,}, batch {found['batch']}"
    console.print("", f"One training step: {shape}, {sizes}, {config['dtype']}; {where}")
    console.print(_table_of(found, beside_seed_experiment=beside_seed_experiment))
    for variant in found["variants"]:
        if not variant["ok"]:
            console.print(f"left out: {variant['name']}: {variant['why_not']}")
    console.print(share_sentence(found))
    if beside_seed_experiment:
        console.print(seed_experiment_sentence())


def _table_of(found: Found, *, beside_seed_experiment: bool) -> Any:
    timed = [variant for variant in found["variants"] if variant["ok"]]
    first = timed[0]["name"] if timed else "first"
    numbers = ("ms a step", "quartiles", "peak MiB", f"{first} / this")
    headers = ["attention", *numbers, "95 %", "verdict", "error/budget"]
    if beside_seed_experiment:
        headers.append("seed experiment, ms")
    made = table(*headers, numbers=(*numbers, "error/budget", "seed experiment, ms"))
    made.box = SIMPLE_HEAD
    ratios: list[Found | None] = [None, *found["ratios"]]
    for variant, ratio in zip(timed, ratios, strict=False):
        step, peak = variant["step_ms"], variant["peak_bytes"]
        cells = [
            variant["name"],
            f"{step['median']:.2f}",
            f"{step['low']:.2f} – {step['high']:.2f}",
            "" if peak is None else f"{peak / MIB:,.1f}",
            "" if ratio is None else f"{ratio['value']:.3f}",
            "" if ratio is None else f"{ratio['low']:.3f} – {ratio['high']:.3f}",
            "" if ratio is None else ratio["verdict"],
            f"{variant['budget_used']:.2f}",
        ]
        if beside_seed_experiment:
            theirs = SEED_EXPERIMENT_MS.get(variant["name"])
            cells.append("" if theirs is None else f"{theirs:.2f}")
        made.add_row(*cells)
    return made
