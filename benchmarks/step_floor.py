"""Compare a training step with its lower bound, and show where the rest of the time goes.

    python benchmarks/step_floor.py --preset makemore --speedups exact

The lower bound ("floor") is the time of the step's matrix products alone: the forward and both backward
products of every linear layer and those of Muon, in the shapes of the step, the fastest of many rounds; plus
attention's arithmetic at the same rate. There is one for PyTorch's BLAS and one for oneDNN, which compiled
steps use where it is faster. Floors and step alternate. Then PyTorch's profiler
(https://docs.pytorch.org/docs/stable/profiler.html) shows what the step's time is spent on, with a separate
trainer, because profiling takes time.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from flashmore.benchmark.attention.plan import attention_flops
from flashmore.config import Preset, TrainConfig
from flashmore.errors import FlashmoreError
from flashmore.measuring.result import as_text
from flashmore.models.config import ModelConfig
from flashmore.training.corpus import read_corpus
from flashmore.training.dataset import Dataset
from flashmore.training.optimizers import NEWTON_SCHULZ_STEPS, muon_matrices
from flashmore.training.resolve import Resolved, resolve, resolve_device
from flashmore.training.trainer import Trainer

GROUPS = {
    "attention": ("scaled_dot_product", "flash_attention"),
    "matrix products": ("mm_out", "linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm", "Gemm"),
    "kernels made by the compiler": ("cpp_fused", "triton"),
    "copies and allocations": ("aten::copy_", "aten::empty", "aten::to", "aten::_to_copy", "aten::clone"),
}
"""What the names of the profiler's events hold; the first group that fits counts, all else is `other`."""
ROUNDS, PROFILED = 60, 20
PRODUCTS_A_STEP = 4
"""Of r × r matrices in a step of Newton–Schulz (`flashmore.training.optimizers.inverse_square_roots`)."""


@dataclass(frozen=True)
class Options:
    """Compare a training step with the time of its matrix products."""

    preset: Preset = "makemore"
    """Preset of the model and its training."""
    data: Path | None = None
    """Names, one per line. If omitted, the built-in names. Of a long text, only the sizes matter."""
    split: str = "80/10/10"
    """As for `flashmore train`."""
    speedups: tuple[str, ...] = ("exact",)
    """As for `flashmore train`."""
    threads: int = 2
    """CPU threads."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main() -> int:
    """Measure and print."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        found = measure(options)
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(as_text(found), end="")
        return 0
    print(f"step   {found['step_ms']:.2f} ms, median; {', '.join(found['speedups'])}")
    for name, floor in found["floors"].items():
        rate = f"{found['gflop']:.3f} GFLOP at {floor['gflop_per_s']:.0f} GFLOP/s"
        print(
            f"floor  {floor['ms']:.2f} ms by {name}: {rate}; the step takes {floor['gap']:.2f} times as long"
        )
    for name, value in found["profile_ms"].items():
        print(f"  {name:<30} {value:.2f} ms")
    return 0


def measure(options: Options) -> dict[str, Any]:
    """Floor and step in turn, and the profile."""
    torch.set_num_threads(options.threads)
    resolved, data = _resolved(options)
    model_config = resolved.model_config
    trainer = resolved.trainer(data)
    tokens = _tokens(trainer)
    layers, layers_gflop = _layers(trainer.model, tokens)
    matrices, muon_gflop = _matrices(trainer.model, resolved.config)
    products_gflop = layers_gflop + muon_gflop
    gflop = products_gflop + _attention_gflop(trainer, model_config)
    for _ in range(ROUNDS):  # compiling, caches, clocks
        trainer.train_step().item()
    steps: list[float] = []
    floors: dict[str, list[float]] = {name: [] for name in PRODUCTS}
    for _ in range(ROUNDS):
        for name, product in PRODUCTS.items():
            floors[name] += _times_ms(partial(_run, layers, matrices, product), 5)
        steps += _times_ms(lambda: trainer.train_step().item(), 5)
    step_ms = statistics.median(steps)

    def floor(times_ms: list[float]) -> dict[str, float]:
        rate = 1000 * products_gflop / min(times_ms)
        return {"ms": 1000 * gflop / rate, "gflop_per_s": rate, "gap": step_ms * rate / (1000 * gflop)}

    return {
        "preset": options.preset,
        "speedups": resolved.config.speedups,
        "threads": options.threads,
        "tokens": tokens,
        "step_ms": step_ms,
        "gflop": gflop,
        "floors": {name: floor(times_ms) for name, times_ms in floors.items()},
        "profile_ms": _profile(resolved, data),
    }


def _resolved(options: Options) -> tuple[Resolved, Dataset]:
    config = TrainConfig(preset=options.preset)
    config = replace(config, device="cpu", speedups=options.speedups, threads=options.threads)
    if config.mode == "text":  # random ids
        config = replace(config, vocab_size=config.vocab_size or 65)
    else:
        config = replace(config, file=options.data, split=options.split)
    corpus = read_corpus(config)
    resolved = resolve(config, corpus, resolve_device("cpu"))
    return resolved, corpus.datasets(resolved.config, resolved.device).train


def _tokens(trainer: Trainer) -> int:
    """Real characters in a step: the median of some batches."""
    return int(statistics.median((trainer.batches(step)[0].targets >= 0).sum().item() for step in range(20)))


def _blas(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.T)


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


PRODUCTS = {"PyTorch's BLAS": _blas, "oneDNN": _onednn}
"""Products of a matrix and the transpose of another."""
Layer = tuple[Tensor, Tensor, Tensor]
"""Input, gradient of the output, weight."""


def _layers(model: nn.Module, tokens: int) -> tuple[list[Layer], float]:
    """Every linear layer; and the GFLOP of output, gradient of the input and gradient of the weight."""
    layers, flop = [], 0
    for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
        x, g = torch.randn(tokens, layer.in_features), torch.randn(tokens, layer.out_features)
        layers.append((x, g, layer.weight.detach().clone()))
        flop += 3 * 2 * tokens * layer.weight.numel()
    return layers, flop / 1e9


def _matrices(model: nn.Module, config: TrainConfig) -> tuple[list[list[Tensor]], float]:
    """The matrices that Muon updates, by their smaller dimension, and the GFLOP of their products."""
    groups: dict[int, list[Tensor]] = {}
    flop = 0
    for matrix in muon_matrices(model).values() if config.optimizer == "muon" else ():
        r, columns = sorted(matrix.shape)
        groups.setdefault(r, []).append(torch.randn(r, columns))
        flop += 2 * 2 * r * r * columns + NEWTON_SCHULZ_STEPS * PRODUCTS_A_STEP * 2 * r**3
    return list(groups.values()), flop / 1e9


@torch.no_grad()
def _run(
    layers: list[Layer], matrices: list[list[Tensor]], product: Callable[[Tensor, Tensor], Tensor]
) -> None:
    for x, g, weight in layers:
        product(x, weight)
        product(g, weight.T)
        product(g.T, x.T)
    for group in matrices:
        roots = torch.stack([product(matrix, matrix) for matrix in group])  # (n, r, r)
        for _ in range(NEWTON_SCHULZ_STEPS * PRODUCTS_A_STEP):
            torch.bmm(roots, roots)
        for matrix, root in zip(group, roots, strict=True):
            product(root, matrix.T)


def _attention_gflop(trainer: Trainer, model_config: ModelConfig) -> float:
    """Of all layers, forward and backward, over real characters."""
    batch = trainer.batches(0)[0]
    segments = batch.segments
    lengths = (
        [batch.ids.size(1)] * len(batch.ids)
        if segments is None
        else segments.real.view(segments.rows, -1).sum(1).tolist()
    )
    D = model_config.n_embd // model_config.n_head
    one = (attention_flops(1, model_config.n_head, T, T, D, causal=True, which="both") for T in lengths)
    return model_config.n_layer * sum(one) / 1e9


def _times_ms(run: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return times


def _profile(resolved: Resolved, data: Dataset) -> dict[str, float]:
    """Milliseconds a step by group, with the compiler's kernels named one by one."""
    torch._inductor.config.cpp.enable_kernel_profile = True
    trainer = resolved.trainer(data)
    with tempfile.TemporaryDirectory() as cache:  # whose step is compiled with names for its kernels
        os.environ["FLASHMORE_CACHE"] = cache
        for _ in range(PROFILED):
            trainer.train_step().item()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(PROFILED):
            trainer.train_step().item()
    groups = dict.fromkeys((*GROUPS, "other"), 0.0)
    for event in profiler.key_averages():
        name = next((group for group, parts in GROUPS.items() if any(p in event.key for p in parts)), "other")
        groups[name] += event.self_cpu_time_total / 1000 / PROFILED
    return groups


if __name__ == "__main__":
    sys.exit(main())
