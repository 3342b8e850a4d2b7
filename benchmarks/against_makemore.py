"""Hold flashmore against makemore: the user's own checkout, unchanged, in turn with ours.

    python benchmarks/against_makemore.py --makemore PATH --what step|swap

makemore is Karpathy's name generator, https://github.com/karpathy/makemore. Nothing of it is copied: PATH is
a checkout of the user's own, run in a process of its own. It needs TensorBoard, as flashmore[dev] has it.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from flashmore.errors import FlashmoreError, UsageError
from flashmore.measuring.statistics import ratio, spread

STEP_LINE = re.compile(r"^step (\d+) \| loss [\d.]+ \| step time ([\d.]+)ms$", re.MULTILINE)
SWAPPED = Path(__file__).with_name("makemore_swapped.py").resolve()
SETTLED = 100
"""Steps at the start that are not counted: caches and clocks are cold, data workers are starting."""


@dataclass(frozen=True)
class Options:
    """Compare flashmore with a makemore checkout on this machine."""

    makemore: Path
    """The checkout: a folder with makemore.py."""
    what: Literal["step", "swap"] = "step"
    """`step`: one training step, makemore's against ours, same model and training parameters. `swap`:
    makemore's own step, by hand and with its attention exchanged in memory for the fused one."""
    data: Path | None = None
    """Names to train on; none means the checkout's own names.txt."""
    runs: int = 5
    """Processes on each side, in turn."""
    steps: int = 400
    """Training steps in each process."""
    threads: int = 2
    """CPU threads on both sides."""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


def main() -> int:
    """Run the comparison that the options name."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        record = compare_steps(options)
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        report(record)
    return 0


def compare_steps(options: Options) -> dict[str, Any]:
    """Time training steps on both sides, a process at a time, in turn."""
    script = (options.makemore / "makemore.py").resolve()
    if not script.is_file():
        raise UsageError("a makemore checkout", f"no makemore.py in {options.makemore}", "--makemore PATH")
    data = (options.data or options.makemore / "names.txt").resolve()
    sides = SIDES[options.what]
    samples: dict[str, list[list[float]]] = {name: [] for name in sides}
    for done in range(options.runs):
        for name, run in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                samples[name].append(run(script, data, Path(folder), options))
            print(
                f"{done + 1}/{options.runs} {name} {statistics.median(samples[name][-1]):.2f} ms",
                file=sys.stderr,
            )
    first, second = sides
    return {
        "what": options.what,
        "of": first,
        "to": second,
        "ratio": asdict(ratio(samples[first], samples[second])),
        "step_ms": {name: asdict(spread(blocks)) for name, blocks in samples.items()},
        "samples_ms": samples,
        "threads": options.threads,
        "steps": options.steps,
    }


def makemore_steps_ms(script: Path, data: Path, folder: Path, options: Options) -> list[float]:
    """The step times that an unchanged makemore prints of itself, every tenth step."""
    return _printed_steps_ms([str(script)], data, folder, options)


def swapped_steps_ms(script: Path, data: Path, folder: Path, options: Options) -> list[float]:
    """The same with the seed experiment's change applied in memory."""
    return _printed_steps_ms([str(SWAPPED), str(script)], data, folder, options)


def _printed_steps_ms(script: list[str], data: Path, folder: Path, options: Options) -> list[float]:
    words = [sys.executable, *script, "-i", str(data), "-o", str(folder), "--max-steps", str(options.steps)]
    output = run_process(words, options.threads, cwd=folder)
    return [float(ms) for step, ms in STEP_LINE.findall(output) if int(step) >= SETTLED]


def flashmore_steps_ms(_: Path, data: Path, folder: Path, options: Options) -> list[float]:
    """The step times in the metrics of a run with makemore's split and training parameters."""
    run = folder / "run"
    words = [sys.executable, "-m", "flashmore.cli.main", "train", str(data), "--out", str(run)]
    words += ["--preset", "makemore", "--split", "makemore", "--device", "cpu", "--steps", str(options.steps)]
    run_process(words, options.threads, cwd=folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["step_ms"] for line in lines if line["step"] > SETTLED]


SIDES: dict[str, dict[str, Callable[[Path, Path, Path, Options], list[float]]]] = {
    "step": {"makemore": makemore_steps_ms, "flashmore": flashmore_steps_ms},
    "swap": {"makemore": makemore_steps_ms, "makemore, fused": swapped_steps_ms},
}


def run_process(words: list[str], threads: int, cwd: Path) -> str:
    """Run a process to its end with this many CPU threads; what it printed on stdout."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no word on stderr"]
        raise UsageError(
            f"{' '.join(words[:3])} to run", f"exit {done.returncode}: {last[0]}", "a checkout that runs"
        )
    return done.stdout


def report(record: dict[str, Any]) -> None:
    """Print the figures for people."""
    for name, step in record["step_ms"].items():
        print(f"{name:<16} {step['median']:.2f} ms a step (quartiles {step['low']:.2f} – {step['high']:.2f})")
    value = record["ratio"]
    interval = f"95 % {value['low']:.2f} – {value['high']:.2f}"
    print(f"ratio {value['value']:.2f} ({interval}); above 1: {record['to']} is faster")


if __name__ == "__main__":
    sys.exit(main())
