"""Which speed-ups a run uses: those requested and supported, or those that pay off for its length."""

import importlib.util
import os
import shutil
from collections.abc import Callable

import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, TrainingFailed
from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec
from flashmore.speedups import CATALOGUE, EXACT, GROUPS, SWITCHES, Speedups

FREE = ("fused-adamw", "pack", "trim")
"""Enabled by `auto` wherever supported: no start-up cost and no loss of precision."""
FEWEST_PACKED = 64
"""Smallest batch size at which packing beats trimming on a CPU without compilation: 4 % faster at 128, 9 %
slower at 32 (docs/log.md). With compilation packing always wins, since changing sizes would recompile."""
COMPILE_SECONDS = 30.0
"""Rough time of the first compilation: 16 to 34 s on two CPU cores (docs/results.md)."""
COMPILE_SAVES = 0.4
"""Share of an eager packed step that compiling saves on the same machine."""
FEWEST_MEASURED = 500
"""With fewer steps `auto` does not measure whether compiling or a CUDA graph pays off."""


def decide(
    config: TrainConfig,
    model_config: ModelConfig,
    device: torch.device,
    step_ms: Callable[[Speedups], float],
) -> tuple[Speedups, tuple[str, ...]]:
    """Decide the speed-ups of a run.

    Args:
        config: `speedups` holds names and groups.
        model_config: the model's sizes.
        device: the training device.
        step_ms: returns the time of a step with given speed-ups, in ms; called only if `auto` considers
            compiling or a CUDA graph.

    Returns:
        The speed-ups, and human-readable notes: what is on, and what is left out and why.

    Raises:
        ConfigError: an unknown name, or a speed-up asked for by name that cannot work here.
    """
    named = {name for name in config.speedups if name not in GROUPS}
    Speedups.of(named)  # refuses an unknown name
    chosen = set(named)
    notes: list[str] = []
    offered = [name for group in config.speedups if group in GROUPS for name in _members(group)]
    around = named | {name for name in offered if why_not(name, config, model_config, device) is None}
    for name in sorted(named, key=list(CATALOGUE).index):
        why = why_not(name, config, model_config, device) or _excluded(name, named) or _missing(name, around)
        if why is not None:
            wanted = f"the speed-up {name} ({CATALOGUE[name].title})"
            raise ConfigError(wanted, why, "--speedups auto, exact or all, which leave it out")
    for name in offered:
        if name in chosen:
            continue
        why = why_not(name, config, model_config, device) or _excluded(name, chosen) or _missing(name, chosen)
        if why is None:
            chosen.add(name)
        elif "auto" not in config.speedups:
            notes.append(f"left out {name}: {why}")
    # Speed-ups requested by name stay: a graph excludes packing and trimming, compiling excludes trimming.
    weighs_graph = device.type == "cuda" and not {"cuda-graph", "compile"} & chosen
    if "auto" in config.speedups and weighs_graph and not {"pack", "trim"} & named:
        chosen, note = _with_cuda_graph(config, model_config, device, chosen, step_ms)
        notes.append(note)
    if "auto" in config.speedups and "compile" not in chosen and "trim" not in named:
        pays, note = _compiling_pays(config, model_config, device, Speedups.of(chosen), step_ms)
        notes.append(note)
        if pays:
            chosen = (chosen - {"trim"}) | {"compile"}
        elif device.type == "cpu" and "pack" in chosen - named and config.batch_size < FEWEST_PACKED:
            chosen = (chosen - {"pack"}) | {"trim"}
    speedups = Speedups.of(chosen)
    return speedups, (f"speed-ups: {_list(speedups.names)}", *notes)


def _members(group: str) -> tuple[str, ...]:
    if group == "none":
        return ()
    if group == "auto":
        return FREE
    # Of two that exclude each other, the one that gains more comes first: packing leaves nothing to trim, and
    # a graph leaves no launches to save.
    order = sorted(SWITCHES, key=lambda name: {"pack": 1, "trim": 2}.get(name, 0))
    return tuple(name for name in order if group == "all" or CATALOGUE[name].exactness == EXACT)


def _excluded(name: str, chosen: set[str]) -> str | None:
    others = [other for other in CATALOGUE[name].excludes if other in chosen]
    return f"it cannot be together with {_list(others)}" if others else None


def _missing(name: str, chosen: set[str]) -> str | None:
    missing = [other for other in CATALOGUE[name].needs if other not in chosen]
    return f"it is a part of {_list(missing)}" if missing else None


def why_not(name: str, config: TrainConfig, model_config: ModelConfig, device: torch.device) -> str | None:
    """Why a speed-up cannot work for this run; None if it can."""
    entry = CATALOGUE[name]
    if device.type not in entry.devices:
        return f"it works on {_list(entry.devices)}, and this run is on {device.type}"
    spec = model_spec(model_config.model)
    if name in ("cuda-graph", "replay") and spec.recurrent_kernel:
        found = "PyTorch's own recurrent kernel, whose weights have a place of their own"
        return f"{model_config.model} runs {found}"
    if name in ("cuda-graph", "replay", "compile") and config.dtype == "float16":
        return "float16 needs its loss scaled, which decides in every step whether to update"
    needed = {
        "attention": spec.attends,
        "pad-vocab": "padding_multiple" in spec.options,
        "kv-cache": spec.kv_cache,
        "muon": spec.muon,
    }
    if not needed.get(name, True):
        return f"it is for the transformer, and this model is {model_config.model}"
    if name == "pack" and not spec.packed:
        return f"{model_config.model} reads rows: only the transformer knows where a packed item ends"
    if name in ("pack", "trim", "resident") and config.mode == "text":
        return "the windows of a long text have no padding, and come from its memory map"
    if name == "compile":
        return _why_not_compile(model_config, device)
    if name == "bf16" and not _has_bf16(device):
        return "this machine has no instructions for bfloat16: it would be slower"
    return None


def _why_not_compile(model_config: ModelConfig, device: torch.device) -> str | None:
    if model_spec(model_config.model).recurrent_kernel:
        return (
            f"{model_config.model} runs PyTorch's own recurrent kernel, into which the compiler does not see"
        )
    if model_config.attention_dropout:
        return "dropout on attention weights is not in the graph"
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++") if os.name != "nt" else ("cl",)
    if not any(compiler and shutil.which(compiler) for compiler in compilers):
        return "torch.compile needs a C++ compiler, and none was found (on Debian: apt install g++)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on CUDA, and it is not installed"
    return None


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _with_cuda_graph(
    config: TrainConfig,
    model_config: ModelConfig,
    device: torch.device,
    chosen: set[str],
    step_ms: Callable[[Speedups], float],
) -> tuple[set[str], str]:
    """Add a CUDA graph if it measures faster; also returns a note with the result."""
    why = why_not("cuda-graph", config, model_config, device)
    if why is not None:
        return chosen, f"left out cuda-graph: {why}"
    if config.max_steps < FEWEST_MEASURED:
        return chosen, f"left out cuda-graph: {config.max_steps:,} steps are over before it has paid"
    without = Speedups.of(chosen)
    captured = (chosen - {"pack", "trim"}) | {"cuda-graph", "replay"}
    with_it = Speedups.of(captured)
    try:
        figures = [step_ms(speedups) for speedups in (without, with_it)]
    except (RuntimeError, TrainingFailed) as error:  # cannot be captured, or does not fit in memory
        return chosen, f"left out cuda-graph: torch says: {str(error).partition(chr(10))[0]}"
    told = f"{figures[1]:.2f} ms a step against {figures[0]:.2f} without"
    if figures[1] < figures[0]:
        return captured, f"cuda-graph pays: {told}"
    return chosen, f"left out cuda-graph: {told}"


def _compiling_pays(
    config: TrainConfig,
    model_config: ModelConfig,
    device: torch.device,
    without: Speedups,
    time_step: Callable[[Speedups], float],
) -> tuple[bool, str]:
    why = why_not("compile", config, model_config, device)
    if why is not None:
        return False, f"left out compile: {why}"
    if config.max_steps < FEWEST_MEASURED:
        return False, f"left out compile: {config.max_steps:,} steps are over before it has paid"
    step_ms = time_step(without)
    break_even = 1000 * COMPILE_SECONDS / (COMPILE_SAVES * step_ms)
    figures = f"about {COMPILE_SECONDS:.0f} s once against {COMPILE_SAVES:.0%} of {step_ms:.1f} ms a step"
    if config.max_steps < break_even:
        return False, f"left out compile: it pays from about {break_even:,.0f} steps on ({figures})"
    return True, f"compile pays, from about {break_even:,.0f} steps on ({figures})"


def _list(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "none"
