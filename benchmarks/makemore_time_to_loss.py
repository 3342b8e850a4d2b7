"""Seconds to makemore's best test loss: whole runs of both sides in turn, on makemore's split.

makemore trains `--their-steps` steps unchanged; its seconds are those of its steps up to the evaluation with
its best test loss, as it prints them (every tenth step stands for ten), without evaluation and sampling. Ours
trains the default config in `--our-steps` steps; its seconds are those of the whole command: imports, data,
steps (from a compiled one, where `flashmore warm` made it), evaluation, saving, samples. If the test loss of
ours is not as good as makemore's best, there is no number. makemore prints a mean over batches of 100 names,
ours is over all characters.
"""

import json
import re
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import Record, run_python
from flashmore.errors import UsageError
from flashmore.measuring.statistics import ratio
from makemore_options import Options

STEP = re.compile(r"^step (\d+) \| loss [\d.]+ \| step time ([\d.]+)ms$")
TEST = re.compile(r"^step (\d+) train loss: [\d.]+ test loss: ([\d.]+)$")
STEPS_A_LINE = 10


def compare_times_to_loss(options: Options) -> dict[str, Any]:
    """Train both sides in turn, each to its end."""
    theirs: list[dict[str, Any]] = []
    ours: list[dict[str, Any]] = []
    for done in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            theirs.append(train_makemore(options, Path(folder)))
        print(f"{done + 1}/{options.runs} makemore {_words(theirs[-1])}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            ours.append(train_flashmore(options, Path(folder), seed=1 + done))
        print(f"{done + 1}/{options.runs} flashmore {_words(ours[-1])}", file=sys.stderr)
        if ours[-1]["test_loss"] > theirs[-1]["test_loss"]:
            found = f"{ours[-1]['test_loss']:.4f} against {theirs[-1]['test_loss']:.4f}"
            raise UsageError("a test loss as good as makemore's best", found, "a longer run of ours")
    samples = {
        "makemore": [[run["seconds"]] for run in theirs],
        "flashmore": [[run["seconds"]] for run in ours],
    }
    return {
        "what": "time-to-loss",
        "of": "makemore",
        "to": "flashmore",
        "ratio": asdict(ratio(samples["makemore"], samples["flashmore"])),
        "samples_s": samples,
        "runs": {"makemore": theirs, "flashmore": ours},
        "threads": options.threads,
        "their_steps": options.their_steps,
    }


def train_makemore(options: Options, folder: Path) -> dict[str, Any]:
    """Run makemore; the best test loss it prints, at which step, and the seconds of its steps up to there."""
    # It evaluates after a step whose number is a multiple of 500, counted from 0.
    words = [str(options.script), "-i", str(options.names), "--max-steps", str(options.their_steps + 1)]
    words += ["-o", str(folder)]
    seconds, best = 0.0, {"test_loss": float("inf")}
    for line in run_python(words, options.threads, cwd=folder).splitlines():
        if step := STEP.match(line):
            seconds += STEPS_A_LINE * float(step[2]) / 1000
        elif (test := TEST.match(line)) and float(test[2]) < best["test_loss"]:
            best = {"test_loss": float(test[2]), "steps": int(test[1]), "seconds": seconds}
    return best


def train_flashmore(options: Options, folder: Path, seed: int) -> dict[str, Any]:
    """Run our default config; its test losses, its steps, and the seconds of the whole command."""
    words = ["-m", "flashmore", "train", str(options.names), "--json"]
    words += ["--split", "makemore", "--device", "cpu"]
    words += ["--seed", str(seed), "--max-steps", str(options.our_steps)]
    began = time.perf_counter()
    output = run_python([*words, "--out", str(folder / "run")], options.threads, cwd=folder)
    seconds, result = time.perf_counter() - began, json.loads(output)
    names = ("test_loss", "test_loss_unleaked", "steps", "step_ms", "train_seconds", "parameters")
    return {name: result[name] for name in names} | {"seconds": seconds}


def _words(run: dict[str, Any]) -> str:
    return f"test loss {run['test_loss']:.4f} at step {run['steps']:,}, {run['seconds']:.1f} s"


def report_times_to_loss(record: Record) -> None:
    """Print the figures for people."""
    for side, runs in record["runs"].items():
        for run in runs:
            print(f"{side:<10} {_words(run)}")
