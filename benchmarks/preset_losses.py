"""Measure the test loss of a preset over several seeds, on makemore's split.

    python benchmarks/preset_losses.py --data names.txt --preset names-long --seeds 1 2 3 4 5

Each seed is one command in a separate process; its seconds of training include those of its teachers. The
presets were chosen on names held out of the training part (docs/log.md). Here they are trained on all of it,
and the test part is evaluated once, at the end.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from comparison import run_python
from flashmore.config import Preset
from flashmore.errors import FlashmoreError
from flashmore.runs import Run
from flashmore.training.result import result_of

TOLD = ("test_loss", "test_loss_unleaked", "train_seconds", "step_ms", "steps", "parameters")


@dataclass(frozen=True)
class Options:
    """Train a preset with several seeds."""

    data: Path
    """Names, one per line."""
    preset: Preset = "names-long"
    """Preset to train."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Seeds of the initial weights and the data order."""
    teachers: int | None = None
    """Number of teachers of each run; None means the preset's."""
    threads: int = 2
    """CPU threads."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def run(options: Options, seed: int) -> dict[str, Any]:
    """Train with one seed to the end; what the run says of itself."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "flashmore", "train", str(options.data.resolve()), "--preset", options.preset]
        words += ["--split", "makemore", "--device", "cpu", "--seed", str(seed), "--out", "run", "--json"]
        words += [] if options.teachers is None else ["--teachers", str(options.teachers)]
        result: dict[str, Any] = json.loads(run_python(words, options.threads, Path(folder)))
        teachers = [result_of(Run.open(path)) for path in sorted(Path(folder).glob("run-teacher-*"))]
    found = {"seed": seed} | {name: result[name] for name in TOLD}
    found["teachers"] = [{name: getattr(each, name) for name in TOLD} for each in teachers]
    found["train_seconds"] += sum(each["train_seconds"] for each in found["teachers"])
    found["wall_seconds"] = time.perf_counter() - began
    print(_words(found), file=sys.stderr)
    return found


def _words(found: dict[str, Any]) -> str:
    losses = f"test loss {found['test_loss']:.4f}, unleaked {found['test_loss_unleaked']:.4f}"
    return f"seed {found['seed']}: {losses}; {found['steps']:,} steps, {found['train_seconds']:.1f} s"


def main() -> int:
    """Train with every seed and print what they come to."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        runs = [run(options, seed) for seed in options.seeds]
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    means = {name: statistics.mean(found[name] for found in runs) for name in TOLD[:3]}
    if options.json:
        print(
            json.dumps(
                {
                    "preset": options.preset,
                    "threads": options.threads,
                    "mean": means,
                    "runs": runs,
                }
            )
        )
        return 0
    for name, mean in means.items():
        values = [found[name] for found in runs]
        print(f"{name:<20} mean {mean:.4f}, lowest {min(values):.4f}, highest {max(values):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
