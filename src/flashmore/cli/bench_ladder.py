"""`flashmore bench ladder`: what each documented speed-up brings, one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD

from flashmore.benchmark.wording import LADDER_NUMBERS, machine, rung_cells
from flashmore.cli.bench_outputs import BlockBar, Outputs, give, preset_recipe
from flashmore.cli.ineffective import refuse_ineffective
from flashmore.cli.parse import parse
from flashmore.cli.show import stdout, table
from flashmore.errors import RecipeError
from flashmore.terminal import say
from flashmore.training.recipe import Preset, Recipe

Found = Mapping[str, Any]
BLOCKS = 20
SECONDS, SECONDS_WITH_EACH_LEFT_OUT = 180.0, 1200.0
VARIED = ("attention", "dtype", "optimizer", "schedule")
"""Fields of the recipe that the ladder itself decides, rung by rung."""


@dataclass(frozen=True)
class BenchLadder(Outputs):
    """Add the catalogue's speed-ups one after the other to the plain loop, and time what each one brings.

    Exact ones are first held against the plain loop's losses; one that differs gets no number. The rungs then
    take turns in short blocks, so that a drifting machine hurts all alike. --speedups says which to add:
    `auto` and `all` mean every one that works here.
    """

    recipe: Recipe
    preset: Preset = "makemore"
    """Where the other options' defaults come from; `makemore` repeats makemore's training parameters."""
    leave_one_out: bool = False
    """Also leave each one alone out of all together."""
    blocks: int = BLOCKS
    """Blocks of each rung; fewer than 20 say little."""
    seconds: float | None = None
    """About how long all may take; a speed-up whose compiling would not fit is left out, and said. None means
    180, or 1,200 with --leave-one-out, where nearly every one is compiled again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise RecipeError("a sensible --seconds", f"{self.seconds}", "above 0, for example 180")


def main(argv: Sequence[str]) -> int:
    """Run `flashmore bench ladder`."""
    command = parse(BenchLadder, "bench ladder", argv, _defaults(argv))
    refuse_ineffective(command.recipe, argv, ("--eval-every", "--log-every"))
    start = _defaults(argv).recipe
    for name in VARIED:
        if getattr(command.recipe, name) != getattr(start, name):
            found = f"--{name} {getattr(command.recipe, name)}"
            raise RecipeError(f"a ladder that decides --{name} itself, rung by rung", found, "without it")

    from flashmore.benchmark.ladder.bench import climb
    from flashmore.benchmark.ladder.record import ladder_record
    from flashmore.benchmark.plots.ladder import ladder_plot

    usual = SECONDS_WITH_EACH_LEFT_OUT if command.leave_one_out else SECONDS
    seconds = usual if command.seconds is None else command.seconds
    with BlockBar(command.blocks) as bar:
        ladder = climb(
            command.recipe,
            leave_one_out=command.leave_one_out,
            blocks=command.blocks,
            seconds=seconds,
            say=bar.say,
            after_block=bar.after_block,
        )
    record = ladder_record(ladder)
    for note in record["notes"]:
        say(f"note: {note}")
    return give(record, command, show, ladder_plot)


def _defaults(argv: Sequence[str]) -> BenchLadder:
    """The preset's defaults with what is varied left open."""
    recipe = preset_recipe(argv)
    return BenchLadder(replace(recipe, attention="auto", dtype="auto", optimizer="auto", schedule="auto"))


def show(record: Found) -> None:
    """Print the ladder, what was left out alone, what has no rung, and every warning."""
    console = stdout()
    recipe = record["recipe"]
    sizes = f"{recipe['layers']} layers, {recipe['heads']} heads, {recipe['channels']} channels"
    shape = f"context {record['context']:,}, batch {record['batch']}, {recipe['model']}"
    console.print(
        "", f"Speed-ups added one after the other: {shape}, {sizes}; {machine(record['environment'])}"
    )
    console.print(_table_of(record["rungs"], "added", "the one before / this"))
    if any(rung["ok"] for rung in record["left_out_alone"]):
        console.print("Each left out alone, against all together:")
        console.print(_table_of(record["left_out_alone"], "left out", "all / this"))
    for rung in (*record["rungs"], *record["left_out_alone"]):
        if not rung["ok"]:
            console.print(f"no number: {rung['name']}: {rung['why_not']}")
    for left_out in record["left_out"]:
        console.print(f"left out: {left_out['name']}: {left_out['why']}")
    for warning in record["warnings"]:
        console.print(f"warning: {warning['code']}: {warning['message']}", f"  {warning['advice']}")


def _table_of(rungs: Sequence[Found], first: str, before: str) -> Any:
    numbers = (*LADDER_NUMBERS[:5], before, *LADDER_NUMBERS[5:])
    made = table(first, *numbers, "verdict", "answers", numbers=numbers)
    made.box = SIMPLE_HEAD
    for rung in (rung for rung in rungs if rung["ok"]):
        cells = rung_cells(rung, added=first == "added")
        cells[before] = cells["before"]
        made.add_row(*(cells[name] for name in ("name", *numbers, "verdict", "answers")))
    return made
