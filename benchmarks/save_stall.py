"""Measure how much a checkpoint every few seconds slows training down.

    python benchmarks/save_stall.py

Short blocks of steps with one save at their beginning alternate with blocks without. Each ends when the
checkpoint is on the disk, so what they take longer is the whole cost of a save; the median of all pairs is
compared with the time between saves. Afterwards the parts of a save are timed one by one.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from flashmore.config import TrainConfig
from flashmore.errors import FlashmoreError
from flashmore.files import replace_file
from flashmore.measuring.environment import environment
from flashmore.measuring.result import as_text
from flashmore.models.registry import count_parameters
from flashmore.runs.checkpoint import Image
from flashmore.training.session import Session
from flashmore.training.starting import begun

WARM_UP, RESAMPLED = 5, 10_000


@dataclass(frozen=True)
class Options:
    """Measure the cost of saving while training."""

    seconds: float = 10.0
    """Seconds between two saves."""
    steps: int = 20
    """Steps of a block, which take a few seconds."""
    pairs: int = 40
    """Blocks with and without a save."""
    n_layer: int = 8
    """Layers of the Transformer."""
    n_embd: int = 512
    """Its width; with 8 layers, 25 million parameters."""
    batch_size: int = 1
    """Windows of 64 characters per step."""
    folder: Path | None = None
    """Folder on the disk to save to. If omitted, that for temporary files."""
    threads: int = 2
    """CPU threads."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main() -> int:
    """Measure and print."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = measure(options, Path(folder) / "run")
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(as_text(found), end="")
        return 0
    low, high = found["slower_95"]
    print(
        f"{found['parameters']:,} parameters, {found['bytes']:,} bytes, a step of {found['step_ms']:.0f} ms"
    )
    print(f"a save every {options.seconds:g} s: {found['slower']:+.2%} time ({low:+.2%} to {high:+.2%})")
    share = found["cpu_ms"] / 1000 / options.seconds / options.threads
    print(f"  processor time {found['cpu_ms']:.0f} ms a save, {share:.2%} of {options.threads} threads")
    print("  training waits " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in found["waits_ms"].items()))
    print("  in the thread " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in found["thread_ms"].items()))
    return 0


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Train a Transformer on random ids."""
    config = TrainConfig(
        mode="text", preset="shakespeare", vocab_size=65, n_layer=options.n_layer, n_embd=options.n_embd,
        n_head=8, batch_size=options.batch_size, device="cpu", attention="flash", speedups=("fused-adamw",),
        threads=options.threads, max_steps=10**6,
    )  # fmt: skip
    with begun(config, folder) as session, session.saver:
        for _ in range(WARM_UP):
            session.trainer.train_step().item()
        session.save()  # the first one allocates the buffer
        session.saver.wait()
        step_ms = statistics.median(_ms(lambda: session.trainer.train_step().item()) for _ in range(10))
        blocks: dict[str, list[float]] = {"with": [], "without": []}
        for name in _order(options.pairs):
            blocks[name].append(_block(session, options.steps, save=name == "with"))
            print(f"{name} a save: {blocks[name][-1]:.2f} s for {options.steps} steps", file=sys.stderr)
        parts = _parts(session)
    costs = [one - other for one, other in zip(blocks["with"], blocks["without"], strict=True)]
    cost = statistics.median(costs)
    return {
        "parameters": count_parameters(session.trainer.model),
        "step_ms": step_ms,
        "steps": options.steps,
        "seconds": options.seconds,
        "threads": options.threads,
        **parts,
        "blocks_s": blocks,
        "slower": cost / options.seconds,
        "slower_95": [bound / options.seconds for bound in _interval(costs)],
        "environment": environment(torch.device("cpu")),
    }


def _order(pairs: int) -> Iterator[str]:
    """In turn, each first in every other pair, so that a drift of the machine's speed favours neither."""
    for pair in range(pairs):
        yield from ("with", "without") if pair % 2 else ("without", "with")


def _block(session: Session, steps: int, *, save: bool) -> float:
    began = time.perf_counter()
    if save:
        session.save()
    for _ in range(steps):
        session.trainer.train_step().item()
    session.saver.wait()
    return time.perf_counter() - began


def _interval(costs: list[float]) -> tuple[float, float]:
    """95 % of the medians of resampled pairs, in seconds."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(costs, k=len(costs))) for _ in range(RESAMPLED))
    return medians[RESAMPLED // 40], medians[-RESAMPLED // 40]


def _parts(session: Session) -> dict[str, Any]:
    """What a save spends its time on, without training beside it."""
    weights, optimizer = dict(session.trainer.model.state_dict()), session.trainer.optimizer_state()
    image = Image()
    image.take(weights, optimizer)
    path = session.run.checkpoint(session.trainer.done)
    state = session.run.load_state()
    data = torch.empty(sum(value.nbytes for value in (weights | optimizer).values()), dtype=torch.uint8)

    def save() -> None:
        image.take(weights, optimizer)
        image.write(path, session.run.digest, state)

    return {
        "bytes": data.numel(),
        "cpu_ms": min(1000 * _cpu_seconds(save) for _ in range(5)),
        "waits_ms": {
            "to check that weights are finite": _least_ms(
                lambda: [bool(bound.isfinite()) for value in weights.values() for bound in value.aminmax()]
            ),
            "to copy": _least_ms(lambda: image.take(weights, optimizer)),
        },
        "thread_ms": {
            "all": _least_ms(lambda: image.write(path, session.run.digest, state)),
            "writing alone": _least_ms(lambda: replace_file(path, data.numpy().data)),
        },
    }


def _cpu_seconds(act: Callable[[], object]) -> float:
    """Processor time of all threads."""
    began = time.process_time()
    act()
    return time.process_time() - began


def _ms(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - began)


def _least_ms(act: Callable[[], object]) -> float:
    return min(_ms(act) for _ in range(5))


if __name__ == "__main__":
    sys.exit(main())
