"""`flashmore demo`: train, compare and time attention on the built-in names."""

from pathlib import Path
from typing import Literal

from flashmore.cli import bench
from flashmore.cli import compare as compare_command
from flashmore.cli.bench import BlockBar
from flashmore.cli.page import write_page
from flashmore.cli.parse import command, require_writable
from flashmore.cli.show import draw_picture, stdout
from flashmore.config import TrainConfig
from flashmore.errors import Interrupted
from flashmore.generation.options import GenerateOptions

DEVICE: Literal["cpu"] = "cpu"
"""Always the CPU: on other devices `flash` does not support float32."""

SAMPLES_EVERY = 100
"""Steps between the names that the page replays."""


@command("demo")
def main(*, out: Path = Path("demo"), picture: Path = Path("demo/names.png")) -> int:
    """Train a bigram and a transformer on the built-in names, compare them, and time fused attention.

    The two models are also written as a web page, names.html, that generates names in the browser.

    Args:
        out: Folder for the runs.
        picture: PNG file for the plot of the comparison.
    """
    require_writable("--picture", picture, endings=(".png",))
    require_writable("--out", out, folder=True)

    from flashmore.benchmark.step.bench import bench_steps
    from flashmore.comparison import compare, figure_of

    configs = (
        TrainConfig(model="bigram", device=DEVICE, samples_every=SAMPLES_EVERY),
        TrainConfig(attention="flash", device=DEVICE, samples_every=SAMPLES_EVERY),
    )
    runs = [compare_command.train_into(out, config) for config in configs]
    rows = compare(runs, GenerateOptions(count=12, seed=3407))
    compare_command.show(rows)
    draw_picture(picture, lambda: figure_of(rows))
    page = out / "names.html"
    write_page([run.path for run in reversed(runs)], page)

    # The experiment this project grew from: the same model with manual and fused attention.
    makemore = TrainConfig(preset="makemore", device=DEVICE)
    with BlockBar(bench.BLOCKS) as bar:
        record = bench_steps(makemore, timing=bar.timing())
    bench.show(record)
    if not record["complete"]:
        found = "by Ctrl-C while timing steps"
        raise Interrupted("the complete demo", found, "Time them with: flashmore bench step")
    run = runs[-1].path
    stdout().print(
        "",
        "What to try next:",
        f"  open {page} in a browser",
        f"  flashmore generate {run} --prefix ma --new-only",
        f"  flashmore score {run} emma xqzw",
        "  flashmore train YOUR_FILE.txt           # brands, places, words: one per line",
        "  flashmore compare --models bigram mlp gru transformer --picture models.png",
        "  docs/attention.md                       # why fused attention can be faster",
    )
    return 0
