"""`flashmore bench ablation`: measure each documented speed-up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD

from flashmore.benchmark.wording import ABLATION_NUMBERS, machine, variant_cells
from flashmore.cli.bench_outputs import BlockBar, Outputs, give
from flashmore.cli.parse import defaults, parse, refuse_ineffective
from flashmore.cli.show import stdout, table
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.terminal import say

Found = Mapping[str, Any]
BLOCKS = 20
SECONDS, SECONDS_WITH_EACH_LEFT_OUT = 180.0, 1200.0
VARIED = ("--attention", "--dtype", "--optimizer", "--lr-schedule")
"""Options that the ablation sets for each variant."""


@dataclass(frozen=True)
class BenchAblation(Outputs):
    """Add the catalogue's speed-ups one at a time to the plain loop, and time each variant.

    Exact ones must first reproduce the plain loop's losses, or they are not timed. The variants then
    alternate in short blocks, so that drift affects all equally. --speedups selects which to add: `auto` and
    `all` mean every one that works here.
    """

    config: TrainConfig
    """Data, model and training; --model and --preset decide some of the defaults."""
    leave_one_out: bool = False
    """Also leave each one out of the full set."""
    blocks: int = BLOCKS
    """Blocks per variant; fewer than 20 are imprecise."""
    seconds: float | None = None
    """Approximate time limit; speed-ups whose compilation would exceed it are left out, with a note. None
    means 180, or 1,200 with --leave-one-out, where nearly every variant is compiled again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ConfigError("a sensible --seconds", f"{self.seconds}", "above 0, for example 180")


def main(argv: Sequence[str]) -> int:
    """Run `flashmore bench ablation`."""
    command = parse(BenchAblation, "bench ablation", argv, BenchAblation(defaults(argv, "makemore")))
    refuse_ineffective(command.config, argv, ("--eval-interval", "--log-interval", *VARIED))

    from flashmore.benchmark.ablation.bench import ablate
    from flashmore.benchmark.ablation.record import ablation_record
    from flashmore.benchmark.plots.ablation import ablation_plot

    usual = SECONDS_WITH_EACH_LEFT_OUT if command.leave_one_out else SECONDS
    seconds = usual if command.seconds is None else command.seconds
    with BlockBar(command.blocks) as bar:
        ablation = ablate(
            command.config,
            leave_one_out=command.leave_one_out,
            blocks=command.blocks,
            seconds=seconds,
            say=bar.say,
            after_block=bar.after_block,
        )
    record = ablation_record(ablation)
    for note in record["notes"]:
        say(f"note: {note}")
    return give(record, command, show, ablation_plot)


def show(record: Found) -> None:
    """Print the ablation, the leave-one-out variants, what has no variant, and every warning."""
    console = stdout()
    config = record["config"]
    sizes = f"{config['n_layer']} layers, {config['n_head']} heads, {config['n_embd']} channels"
    shape = f"context {record['context']:,}, batch {record['batch']}, {config['model']}"
    console.print(
        "", f"Speed-ups added one after the other: {shape}, {sizes}; {machine(record['environment'])}"
    )
    console.print(_table_of(record["variants"], "added", "the one before / this"))
    if any(variant["ok"] for variant in record["left_out_alone"]):
        console.print("Each left out alone, against all together:")
        console.print(_table_of(record["left_out_alone"], "left out", "all / this"))
    for variant in (*record["variants"], *record["left_out_alone"]):
        if not variant["ok"]:
            console.print(f"no number: {variant['name']}: {variant['why_not']}")
    for left_out in record["left_out"]:
        console.print(f"left out: {left_out['name']}: {left_out['why']}")
    for warning in record["warnings"]:
        console.print(f"warning: {warning['code']}: {warning['message']}", f"  {warning['advice']}")


def _table_of(variants: Sequence[Found], first: str, before: str) -> Any:
    numbers = (*ABLATION_NUMBERS[:5], before, *ABLATION_NUMBERS[5:])
    made = table(first, *numbers, "verdict", "answers", numbers=numbers)
    made.box = SIMPLE_HEAD
    for variant in (variant for variant in variants if variant["ok"]):
        cells = variant_cells(variant, added=first == "added")
        cells[before] = cells["before"]
        made.add_row(*(cells[name] for name in ("name", *numbers, "verdict", "answers")))
    return made
