"""Compare the measured choice with the fastest backend.

    python benchmarks/measured_choice.py

For each shape, `choose` measures again and chooses a backend. Then all usable backends are timed for longer,
in alternating blocks, and the chosen one is compared with the fastest. A ratio of 1.00 means that it is the
fastest.
"""

import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

import torch
import tyro

from flashmore.backends.choose import Problem, choose, one_pass
from flashmore.call import CallOptions
from flashmore.measuring.environment import environment
from flashmore.measuring.measure import alternate
from flashmore.measuring.result import as_text
from flashmore.measuring.statistics import ratio, spread
from flashmore.rules import Dtype

SHAPES = (
    (32, 4, 16, 16),
    (8, 4, 64, 16),
    (2, 4, 256, 16),
    (2, 4, 256, 64),
    (1, 4, 1024, 16),
    (1, 4, 1024, 64),
)
BLOCKS = 40
BLOCK_SECONDS = 0.05


@dataclass(frozen=True)
class Options:
    """Compare the measured choice with the fastest backend on this machine."""

    device: str = "cpu"
    """Device to use."""
    dtype: Dtype = "float32"
    """Dtype of q, k and v."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main() -> int:
    """Measure every shape and print the table or the record."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    with tempfile.TemporaryDirectory() as folder:  # an empty cache: every choice is measured here and now
        os.environ["FLASHMORE_CACHE"] = folder
        rows = [row(problem(shape, options))
                for shape in SHAPES]  # fmt: skip
    record = {"rows": rows, "environment": environment(torch.device(options.device))}
    if options.json:
        print(as_text(record), end="")
    else:
        print("B, H, T, D            chosen   best     chosen / best (95 %)    choosing")
        for each in rows:
            value = each["ratio"]
            interval = f"{value['value']:.3f} ({value['low']:.3f} – {value['high']:.3f})"
            shape = ", ".join(map(str, each["shape"]))
            print(f"{shape:<21} {each['chosen']:<8} {each['best']:<8} {interval:<23} {each['seconds']:.1f} s")
    return 0


def problem(shape: tuple[int, int, int, int], options: Options) -> Problem:
    """Causal attention of this shape."""
    B, H, L, D = shape
    call = CallOptions(batch_size=B, n_head=H, length=L, head_dim=D, dtype=options.dtype)
    return Problem(call, torch.device(options.device))


def row(problem: Problem) -> dict[str, Any]:
    """One shape: what was chosen, what is best, and how far they are apart."""
    choice = choose("auto", problem)
    timed = [candidate.name for candidate in choice.candidates if candidate.time_ms]
    runs = {name: one_pass(name, problem) for name in timed}
    slowest = max(candidate.time_ms.median for candidate in choice.candidates if candidate.time_ms)
    repeats = max(1, round(BLOCK_SECONDS / (slowest / 1000)))
    samples = alternate(runs, blocks=BLOCKS, repeats=repeats, warmup=1)
    best = min(timed, key=lambda name: spread(samples[name]).median)
    return {
        "shape": problem.key()["shape"], "chosen": choice.backend, "best": best, "seconds": choice.seconds,
        "ratio": asdict(ratio(samples[choice.backend], samples[best])),
        "ms": {name: asdict(spread(blocks)) for name, blocks in samples.items()}, "samples_ms": samples,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
