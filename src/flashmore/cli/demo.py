"""`flashmore demo`: the whole story on the built-in names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from flashmore.cli import compare as compare_command
from flashmore.cli.parse import parse
from flashmore.cli.show import say, stdout, table
from flashmore.generation.options import GenerateOptions
from flashmore.training.recipe import Recipe, recipe_for

BLOCKS = 30
SEED_EXPERIMENT_MS = (6.77, 5.81)
TITLE = "One training step, same model and training parameters"


@dataclass(frozen=True)
class Demo:
    """Train a Bigram and a Transformer on the built-in names, compare them, and time fused attention."""

    out: Path = Path("demo")
    """Folder for the runs."""
    picture: Path = Path("demo/names.png")
    """Where the comparison goes, as a PNG."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore demo`."""
    command = parse(Demo, "demo", argv)

    from flashmore.comparison import compare, draw
    from flashmore.runs import Run
    from flashmore.training.loop import train
    from flashmore.training.progress import ProgressLine
    from flashmore.training.session import unused_folder

    runs = []
    for recipe in (recipe_for("bigram"), replace(recipe_for("transformer"), attention="flash")):
        with ProgressLine() as line:
            runs.append(Run.open(train(recipe, unused_folder(recipe.model, command.out), line).run))
    rows = compare(runs, GenerateOptions(count=12, seed=3407))
    draw(rows, command.picture)
    compare_command.show(rows)
    say(f"the same as a picture: {command.picture}")
    _time_attention(recipe_for("transformer", "makemore"))
    _what_next(runs[-1].path)
    return 0


def _time_attention(recipe: Recipe) -> None:
    """The experiment this project grew from: the same model by hand and fused, step for step."""
    from flashmore.benchmark.step import compare_steps

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("timing attention by hand and fused, in turn", total=BLOCKS)
        timed = compare_steps(
            recipe,
            ("manual", "flash"),
            blocks=BLOCKS,
            after_block=lambda done: progress.update(task, completed=done),
        )
    numbers = ("ms a step", "quartiles")
    rows = table("attention", *numbers, title=TITLE, numbers=numbers)
    for name, spread in timed.spreads_ms.items():
        rows.add_row(name, f"{spread.median:.2f}", f"{spread.low:.2f} – {spread.high:.2f}")
    console = stdout()
    console.print(rows)
    ratio = timed.ratios["flash"]
    console.print(
        f"manual / flash = {ratio.value:.3f}, 95 % interval {ratio.low:.3f} – {ratio.high:.3f}: {ratio.verdict}"
    )
    by_hand, fused = SEED_EXPERIMENT_MS
    console.print(f"(the experiment this grew from, on its author's laptop: {by_hand} → {fused} ms)")


def _what_next(run: Path) -> None:
    stdout().print(
        "\nWhat to try next:\n"
        f"  flashmore generate {run} --prefix ma --new-only\n"
        f"  flashmore score {run} emma xqzw\n"
        "  flashmore train YOUR_FILE.txt           # brands, places, words: one a line\n"
        "  flashmore compare --models bigram mlp gru transformer --picture models.png\n"
        "  docs/attention.md                       # why fused attention can be faster"
    )
