"""Names drawn a second: makemore's own `generate` against ours, from the same trained weights.

Names end early only where the weights are trained: one model is trained by ours on makemore's split, and its
weights are given to makemore's Transformer under makemore's names for them; its logits are checked before
anything is timed. makemore is called as its `print_samples` calls it: BOS alone, max_new_tokens one less
than its block size, do_sample, no top-k. Both sides give ids; neither is timed at turning them into text.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import Record, run_python
from flashmore.measuring.statistics import ratio, spread
from makemore_options import Options

SIDES = ("makemore", "flashmore")
SIDE = Path(__file__).with_name("makemore_generate_side.py").resolve()


def compare_generation(options: Options) -> dict[str, Any]:
    """Train one model, then time calls that draw from it on both sides, a process at a time, in turn."""
    script = options.script
    documents: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["-m", "flashmore", "train", str(options.names)]
        words += ["--out", str(folder / "run"), "--split", "makemore", "--device", "cpu"]
        words += ["--activation", "gelu_tanh"]  # makemore's
        run_python([*words, "--max-steps", str(options.steps)], options.threads, cwd=folder)
        for done in range(options.runs):
            for side in SIDES:
                words = [str(SIDE), side, str(script), str(folder / "run")]
                output = run_python([*words, str(options.batch)], options.threads, cwd=folder)
                documents[side].append(json.loads(output.splitlines()[-1]))
                shown = statistics.median(documents[side][-1]["call_ms"])
                print(f"{done + 1}/{options.runs} {side} {shown:.1f} ms a call", file=sys.stderr)
    samples = {side: [document["call_ms"] for document in documents[side]] for side in SIDES}
    names_per_s = {
        side: asdict(spread([[1e3 * options.batch / ms for ms in block] for block in samples[side]]))
        for side in SIDES
    }
    return {
        "what": "generate",
        "of": SIDES[0],
        "to": SIDES[1],
        "ratio": asdict(ratio(samples[SIDES[0]], samples[SIDES[1]])),
        "names_per_s": names_per_s,
        "call_ms": {side: asdict(spread(blocks)) for side, blocks in samples.items()},
        "floor": _floor([document["floor"] for document in documents["flashmore"]], samples["flashmore"]),
        "samples_ms": samples,
        "batch": options.batch,
        "threads": options.threads,
        "steps": options.steps,
    }


def _floor(floors: list[dict[str, float]], samples: list[list[float]]) -> dict[str, float]:
    """The median of each process's floor, and how many times as long a call takes."""
    values = {key: statistics.median(floor[key] for floor in floors) for key in floors[0]}
    return values | {"gap": spread(samples).median / values["floor_ms"]}


def report_generation(record: Record) -> None:
    """Print the figures for people."""
    for side, speed in record["names_per_s"].items():
        quartiles = f"quartiles {speed['low']:,.0f} – {speed['high']:,.0f}"
        print(f"{side:<16} {speed['median']:,.0f} names a second ({quartiles})")
    floor = record["floor"]
    print(
        f"floor            {floor['floor_ms']:.1f} ms a call: {floor['positions']:,.0f} different prefixes × "
        f"{floor['flop_per_position']:,.0f} FLOP at {floor['gflop_per_s']:.0f} GFLOP/s; "
        f"ours takes {floor['gap']:.2f} times as long"
    )
