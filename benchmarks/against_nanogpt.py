"""Compare flashmore with nanoGPT, alternating between an unmodified checkout and flashmore.

    python benchmarks/against_nanogpt.py --nanogpt PATH --what shakespeare --data input.txt
    python benchmarks/against_nanogpt.py --nanogpt PATH --what gpt2-124m [--data train.bin]

nanoGPT is Karpathy's GPT trainer, https://github.com/karpathy/nanoGPT. Nothing of it is copied: PATH
is your own checkout, which runs in a separate process, in a temporary folder with the data.

`shakespeare` is the CPU configuration of nanoGPT's README. It measures the seconds of training until the
validation loss is at most 1.88, the final loss in the README. Evaluation and saving are excluded on both
sides. nanoGPT's log contains the time of each iteration; those with an evaluation count as the median of the
others. A side that does not reach the loss counts with the time of its whole run, which for nanoGPT is less
than it would have needed. nanoGPT estimates its loss from random windows of the validation part; flashmore
computes it over the whole part.
"""

import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tyro

from comparison import answer, run_python
from flashmore.errors import UsageError
from flashmore.measuring.statistics import ratio

Sample = TypeVar("Sample")

ITERATION = re.compile(r"^iter (\d+): loss [\d.naif]+, time ([\d.]+)ms", re.MULTILINE)
EVALUATION = re.compile(r"^step (\d+): train loss [\d.]+, val loss ([\d.]+)$", re.MULTILINE)
TARGET = 1.88
EVAL_EVERY = 100
"""Iterations between nanoGPT's evaluations."""
README_FLAGS = [
    "--device=cpu", "--compile=False", "--log_interval=1", "--block_size=64", "--batch_size=12",
    "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
]  # fmt: skip
STEPS, SETTLED = 100, 30
"""Of gpt2-124m: steps of each run, and how many at the start are not counted (compilation, clocks)."""
BATCH, CONTEXT = 12, 1024
IDS, PADDED_IDS = 50_257, 50_304
MATRIX = 8192
"""Side of the square bf16 matrices whose product gives the card's matrix rate."""


@dataclass(frozen=True)
class Options:
    """Compare flashmore with a nanoGPT checkout on this machine."""

    nanogpt: Path
    """The checkout: a folder with train.py."""
    what: Literal["shakespeare", "gpt2-124m"] = "shakespeare"
    """`shakespeare`: seconds of training to a validation loss of 1.88 with the README's CPU configuration.
    `gpt2-124m`: tokens per second with 124 million parameters; needs CUDA."""
    data: Path | None = None
    """For `shakespeare`: the text. If omitted, data/shakespeare_char/input.txt of the checkout. For
    `gpt2-124m`: a .bin file of 16-bit ids. If omitted, random ids."""
    runs: int = 2
    """Number of processes of each side; they alternate."""
    threads: int = 2
    """CPU threads of both sides."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


@dataclass(frozen=True)
class Reached:
    """How one run came to the target, or its whole length and lowest loss where it did not."""

    seconds: float
    steps: int
    val_loss: float
    reached: bool


def main() -> int:
    """Run the comparison that the options name."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    return answer(lambda: compare(options), report, as_json=options.json)


def compare(options: Options) -> dict[str, Any]:
    """Both sides, one after the other, as often as asked."""
    if not (options.nanogpt / "train.py").is_file():
        raise UsageError("a nanoGPT checkout", f"no train.py in {options.nanogpt}", "--nanogpt PATH")
    return compare_shakespeare(options) if options.what == "shakespeare" else compare_gpt2(options)


def compare_shakespeare(options: Options) -> dict[str, Any]:
    """Train on both sides until the target, a process at a time, in turn."""
    text = options.data or options.nanogpt / "data" / "shakespeare_char" / "input.txt"
    if not text.is_file():
        raise UsageError(f"the text at {text}", "no such file", "--data FILE, nanoGPT's input.txt")
    sides = {"nanoGPT": nanogpt_to_target, "flashmore": flashmore_to_target}
    samples: dict[str, list[Reached]] = {name: [] for name in sides}
    in_turn(options, sides, samples, text.resolve(), lambda run: f"{run.seconds:.1f} s, {run.steps} steps")
    if not all(run.reached for run in samples["flashmore"]):
        best = min(run.val_loss for run in samples["flashmore"])
        raise UsageError(f"a validation loss of {TARGET} on our side", f"{best:.4f}", "the text of nanoGPT")
    seconds = {name: [[run.seconds] for run in runs] for name, runs in samples.items()}
    return {
        "what": options.what,
        "of": "nanoGPT",
        "to": "flashmore",
        "ratio": asdict(ratio(seconds["nanoGPT"], seconds["flashmore"])),
        "unit": "seconds",
        "median": {name: statistics.median(run.seconds for run in runs) for name, runs in samples.items()},
        "samples": {name: [asdict(run) for run in runs] for name, runs in samples.items()},
        "target_val_loss": TARGET,
        "threads": options.threads,
    }


def nanogpt_to_target(options: Options, folder: Path, text: Path) -> Reached:
    """Prepare the data and train as nanoGPT's README says, both with its own unchanged scripts."""
    data = folder / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    checkout = options.nanogpt.resolve()
    script = data / "prepare.py"
    shutil.copy(checkout / "data" / "shakespeare_char" / "prepare.py", script)
    shutil.copy(text, data / "input.txt")
    # It imports requests for a download that is not needed here; an empty module of that name will do.
    (data / "requests.py").touch()
    run_python([str(script)], options.threads, folder)
    flags = [*README_FLAGS, "--eval_iters=50", f"--eval_interval={EVAL_EVERY}"]
    output = run_nanogpt(options, folder, [str(checkout / "config" / "train_shakespeare_char.py"), *flags])
    times = {int(step): float(ms) for step, ms in ITERATION.findall(output)}
    usual = statistics.median(ms for step, ms in times.items() if step % EVAL_EVERY)
    steps_ms = [usual if step % EVAL_EVERY == 0 else times[step] for step in sorted(times)]
    losses = [(int(step), float(loss)) for step, loss in EVALUATION.findall(output)]
    return until_target(steps_ms, losses)


def flashmore_to_target(options: Options, folder: Path, text: Path) -> Reached:
    """Train with the preset and read its metrics."""
    words = [str(text), "--preset", "shakespeare-fast", "--device", "cpu"]
    lines = run_flashmore(words, options, folder)
    steps_ms: list[float] = []
    for line in lines:
        steps_ms += [line["step_ms"]] * (line["step"] - len(steps_ms))
    return until_target(steps_ms, [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line])


def until_target(steps_ms: list[float], losses: list[tuple[int, float]]) -> Reached:
    """The time of the steps before the first evaluation at or below the target.

    Args:
        steps_ms: of every step, from the first.
        losses: (updates made before, validation loss) of every evaluation.
    """
    for step, loss in losses:
        if loss <= TARGET:
            return Reached(sum(steps_ms[:step]) / 1000, step, loss, reached=True)
    return Reached(sum(steps_ms) / 1000, len(steps_ms), min(loss for _, loss in losses), reached=False)


def compare_gpt2(options: Options) -> dict[str, Any]:
    """Time steps of 124 million parameters on both sides, a process at a time, in turn."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError("an NVIDIA GPU for gpt2-124m", "torch sees none", "--what shakespeare, or a GPU")
    sides = {"nanoGPT": nanogpt_gpt2_ms, "flashmore": flashmore_gpt2_ms}
    samples: dict[str, list[list[float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as kept:
        tokens = options.data or Path(kept) / "random.bin"
        if options.data is None:
            np.random.default_rng(0).integers(IDS, size=2**21, dtype=np.uint16).tofile(tokens)
        in_turn(
            options, sides, samples, tokens.resolve(), lambda ms: f"{statistics.median(ms):.1f} ms a step"
        )
    medians = {name: statistics.median(ms for run in runs for ms in run) for name, runs in samples.items()}
    tokens_per_s = {name: 1000 * BATCH * CONTEXT / ms for name, ms in medians.items()}
    rate = matrix_rate()
    layers, channels = 12, 768
    parameters = PADDED_IDS * channels + layers * 12 * channels**2
    flops = 6 * parameters + 12 * layers * channels * CONTEXT  # of the whole T × T, as nanoGPT counts
    return {
        "what": options.what,
        "of": "nanoGPT",
        "to": "flashmore",
        "ratio": asdict(ratio(samples["nanoGPT"], samples["flashmore"])),
        "unit": "step_ms",
        "median": medians,
        "tokens_per_s": tokens_per_s,
        "device": torch.cuda.get_device_name(),
        "matrix_flops_per_s": rate,
        "flops_per_token": flops,
        "share_of_matrix_rate": {name: flops * value / rate for name, value in tokens_per_s.items()},
        "samples": samples,
        "batch": BATCH,
        "context": CONTEXT,
    }


def nanogpt_gpt2_ms(options: Options, folder: Path, tokens: Path) -> list[float]:
    """Step times of nanoGPT's default configuration, compiled, one batch an update."""
    data = folder / "data" / "openwebtext"
    data.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        (data / name).symlink_to(tokens)
    flags = ["--gradient_accumulation_steps=1", f"--batch_size={BATCH}", f"--max_iters={STEPS}"]
    output = run_nanogpt(options, folder, [*flags, "--eval_iters=1", "--eval_interval=1000000"])
    return [float(ms) for step, ms in ITERATION.findall(output) if int(step) >= SETTLED]


def flashmore_gpt2_ms(options: Options, folder: Path, tokens: Path) -> list[float]:
    """Step times of our preset, from its metrics."""
    words = [str(tokens), "--preset", "gpt2-124m", "--device", "cuda", "--batch-size", str(BATCH)]
    lines = run_flashmore([*words, "--max-steps", str(STEPS), "--split", "99/1/0"], options, folder)
    return [line["step_ms"] for line in lines if line["step"] > SETTLED]


def matrix_rate() -> float:
    """Multiplications and additions a second of large bf16 matrix products, the fastest of 20."""
    import torch

    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / 10)
    return float(2 * MATRIX**3 / min(seconds))


def in_turn(
    options: Options,
    sides: Mapping[str, Callable[[Options, Path, Path], Sample]],
    samples: dict[str, list[Sample]],
    data: Path,
    say: Callable[[Sample], str],
) -> None:
    """Run every side once in each round, each in a temporary folder of its own."""
    for done in range(options.runs):
        for name, run in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                samples[name].append(run(options, Path(folder).resolve(), data))
            print(f"{done + 1}/{options.runs} {name} {say(samples[name][-1])}", file=sys.stderr)


def run_nanogpt(options: Options, folder: Path, words: list[str]) -> str:
    """Run train.py of the checkout where it finds its data and may write; what it printed."""
    checkout = options.nanogpt.resolve()
    (folder / "configurator.py").symlink_to(checkout / "configurator.py")  # it is read from the folder
    return run_python(
        [str(checkout / "train.py"), *words, f"--out_dir={folder / 'out'}"], options.threads, folder
    )


def run_flashmore(words: list[str], options: Options, folder: Path) -> list[dict[str, Any]]:
    """Train in a process of its own; the lines of its metrics."""
    run = folder / "run"
    run_python(["-m", "flashmore", "train", *words, "--out", str(run)], options.threads, folder)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def report(record: Mapping[str, Any]) -> None:
    """Print the figures for people."""
    for name, value in record["median"].items():
        print(f"{name:<12} {value:,.1f} {record['unit']}")
    for name, value in record.get("share_of_matrix_rate", {}).items():
        print(
            f"{name:<12} {record['tokens_per_s'][name]:,.0f} tokens/s, {100 * value:.1f} % of the matrix rate"
        )


if __name__ == "__main__":
    sys.exit(main())
