"""One training step: makemore's against ours, or makemore's own with its attention exchanged.

Ours is makemore's model with its training parameters and every exact speed-up: before anything is timed, all
its gradients are held against makemore's own, from the same weights and names.
"""

import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import Record, run_python
from flashmore.errors import UsageError
from flashmore.measuring.statistics import ratio, spread
from makemore_options import Options

STEP_LINE = re.compile(r"^step (\d+) \| loss [\d.]+ \| step time ([\d.]+)ms$", re.MULTILINE)
SWAPPED = Path(__file__).with_name("makemore_swapped.py").resolve()
GRADIENTS = Path(__file__).with_name("makemore_gradients.py").resolve()
TOLERANCE = 1e-5
"""Of the largest gradient of each tensor."""
SETTLED = 100
"""Steps at the start that are not counted: caches and clocks are cold, data workers are starting."""


def compare_steps(options: Options) -> dict[str, Any]:
    """Time training steps on both sides, a process at a time, in turn."""
    sides = SIDES[options.what]
    gradients = check_gradients(options) if "flashmore" in sides else None
    samples: dict[str, list[list[float]]] = {name: [] for name in sides}
    for done in range(options.runs):
        for name, run in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                samples[name].append(run(Path(folder), options))
            print(
                f"{done + 1}/{options.runs} {name} {statistics.median(samples[name][-1]):.2f} ms",
                file=sys.stderr,
            )
    first, second = sides
    checked = {} if gradients is None else {"gradients": gradients}
    return checked | {
        "what": options.what,
        "of": first,
        "to": second,
        "ratio": asdict(ratio(samples[first], samples[second])),
        "step_ms": {name: asdict(spread(blocks)) for name, blocks in samples.items()},
        "samples_ms": samples,
        "device": options.device,
        "threads": options.threads,
        "steps": options.steps,
    }


def check_gradients(options: Options) -> dict[str, Any]:
    """What the comparison of gradients printed.

    Raises:
        UsageError: a gradient is further away than rounding explains: then there is no number.
    """
    words = [str(GRADIENTS), str(options.script), str(options.names)]
    found: dict[str, Any] = json.loads(run_python(words, options.threads, Path.cwd()).splitlines()[-1])
    if found["worst"] > TOLERANCE:
        raise UsageError(
            f"gradients within {TOLERANCE:g} of makemore's",
            f"{found['worst']:.2g} in {found['tensor']}",
            "a mend",
        )
    print(f"gradients are within {found['worst']:.1g} of makemore's", file=sys.stderr)
    return found


def makemore_steps_ms(folder: Path, options: Options) -> list[float]:
    """The step times that an unchanged makemore prints of itself, every tenth step."""
    return _printed_steps_ms([str(options.script)], folder, options)


def swapped_steps_ms(folder: Path, options: Options) -> list[float]:
    """The same with the seed experiment's change applied in memory."""
    return _printed_steps_ms([str(SWAPPED), str(options.script)], folder, options)


def _printed_steps_ms(script: list[str], folder: Path, options: Options) -> list[float]:
    words = [*script, "-i", str(options.names), "-o", str(folder), "--device", options.device]
    output = run_python([*words, "--max-steps", str(options.steps)], options.threads, cwd=folder)
    return [float(ms) for step, ms in STEP_LINE.findall(output) if int(step) >= SETTLED]


def flashmore_steps_ms(folder: Path, options: Options) -> list[float]:
    """The step times in the metrics of a run with makemore's split and training parameters."""
    run = folder / "run"
    words = ["-m", "flashmore", "train", str(options.names), "--out", str(run)]
    words += ["--preset", "makemore", "--split", "makemore", "--speedups", "exact"]
    words += ["--device", options.device, "--max-steps", str(options.steps)]
    run_python(words, options.threads, cwd=folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["step_ms"] for line in lines if line["step"] > SETTLED]


SIDES: dict[str, dict[str, Callable[[Path, Options], list[float]]]] = {
    "step": {"makemore": makemore_steps_ms, "flashmore": flashmore_steps_ms},
    "swap": {"makemore": makemore_steps_ms, "makemore, fused": swapped_steps_ms},
}


def report_steps(record: Record) -> None:
    """Print the figures for people."""
    for name, step in record["step_ms"].items():
        print(f"{name:<16} {step['median']:.2f} ms a step (quartiles {step['low']:.2f} – {step['high']:.2f})")
