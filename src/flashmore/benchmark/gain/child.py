"""The process that measures what rewrites bring: an example or a script runs before and after, in turn."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from flashmore.benchmark.gain.attention import replays
from flashmore.benchmark.gain.measure import BEFORE, RESULT
from flashmore.benchmark.gain.variants import Optimizers, StepTimer, Switch, Variant
from flashmore.measuring.environment import environment
from flashmore.measuring.measure import alternate, repeats_for
from flashmore.measuring.memory import peak_bytes
from flashmore.measuring.warnings import load_meter
from flashmore.upgrade.isolated import end_with_parent
from flashmore.upgrade.trace.capture import Catcher, Watched
from flashmore.upgrade.trace.user import UserCodeFailed, load_example, run_script, told
from flashmore.upgrade.trace.versions import NotSwapped

BLOCKS = 20
BLOCK_SECONDS = 0.05
WARMUP = 2
DROPPED_STEPS = 2
"""Of each version, at the start of a script: what is made only once is made in them."""


def main(argv: list[str]) -> int:
    """Measure an example or a script.

    Args:
        argv: the process to end with, and a JSON file with `sites`, `variants` (see `variants.Variant`),
            `optimizers` (places), `example`, `run` and `folder`. The result is written to `folder/gain.json`.
    """
    end_with_parent(int(argv[0]))
    request = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    others = load_meter()
    try:
        result = _of_example(request) if request["example"] is not None else _of_run(request)
        threads = 1 if torch.cuda.is_available() else torch.get_num_threads()
        result |= {"others": others(), "threads": threads}
    except (UserCodeFailed, NotSwapped) as failed:
        result = {"problem": str(failed)}
    except Exception as error:  # noqa: BLE001 - the user's model may raise anything in a step
        result = {"problem": told(error)}
    (Path(request["folder"]) / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return 0


def _of_example(request: Mapping[str, Any]) -> dict[str, Any]:
    """Whole steps and attention alone, before and after, in alternating blocks."""
    example = load_example(request["example"])
    watched = [Watched(**site["watched"]) for site in request["sites"]]
    with Catcher(watched, lambda _: None):
        example()
    variants = [Variant(**each) for each in request["variants"] if each["rewritten"]]
    if not variants:
        return {"problem": "an example makes no steps of an optimizer: use --run"}
    switch = Switch(variants, Optimizers(()))
    device = _device(example.model)

    def step_of(name: str) -> Callable[[], None]:
        def run() -> None:
            switch.to(name)
            _step(example, device)

        return run

    runs: dict[str, Callable[[], object]] = {
        name: step_of(name) for name in (BEFORE, *(each.name for each in variants))
    }
    alone, sites = replays(request["sites"], watched, device)
    runs |= alone
    for run in runs.values():
        for _ in range(WARMUP):
            run()
    peaks = {name: peak_bytes(run, device) for name, run in runs.items()}
    samples = _alternated(runs)
    switch.to(BEFORE)
    return {
        "problem": None, "samples_ms": samples, "peak_bytes": peaks, "sites": sites, "device": str(device),
        "whole": "forward and backward of the model", "environment": environment(device),
    }  # fmt: skip


def _alternated(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[list[float]]]:
    resolution = time.get_clock_info("perf_counter").resolution
    repeats = {
        name: repeats_for(run, block_seconds=BLOCK_SECONDS, resolution=resolution)
        for name, run in runs.items()
    }
    return alternate(runs, blocks=BLOCKS, repeats=repeats, warmup=0, most_seconds=2 * BLOCK_SECONDS)


def _of_run(request: Mapping[str, Any]) -> dict[str, Any]:
    """The script once: its own optimizer steps, the code before and after in turn; then attention alone."""
    places = [(path, first, last) for path, first, last in request["optimizers"]]
    timer = StepTimer([Variant(**each) for each in request["variants"]], places)
    problem = None
    with timer:
        try:
            run_script(request["run"])
        except UserCodeFailed as failed:
            problem = str(failed)
    if timer.failed is not None:
        return {"problem": timer.failed}
    if not timer.steps:
        return {
            "problem": problem
            or "the script never called step() of a torch.optim optimizer, so there is nothing to time"
        }
    watched = [Watched(**site["watched"]) for site in request["sites"]]
    for number, one in enumerate(watched):
        captured = Path(request["captured"]) / f"{number}.pt"
        one.seen = torch.load(captured, weights_only=True) if captured.exists() else []
        one.calls = max(1, round(request["calls"][number] / timer.steps))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    alone, sites = replays(request["sites"], watched, device)
    peaks = {name: peak_bytes(run, device) for name, run in alone.items()}
    samples = _alternated(alone) if alone else {}
    return {
        "problem": problem, "samples_ms": samples | timer.samples_ms(DROPPED_STEPS), "peak_bytes": peaks,
        "sites": sites, "device": str(device), "whole": "a step of the script",
        "environment": environment(device),
    }  # fmt: skip


def _step(example: Any, device: torch.device) -> None:
    """Forward, and backward from the mean square of all float results, where there is a gradient."""
    out = example()
    leaves = _tensors(tree_leaves(out))
    loss = sum(t.float().square().mean() for t in leaves if t.is_floating_point() and t.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
        example.model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__"):  # a dataclass of results, which torch's trees do not know
            found += [value for value in vars(leaf).values() if isinstance(value, Tensor)]
    return found


def _device(model: torch.nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
