"""Which speed-ups a run uses: those requested and supported, or those that pay off for its length."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, TrainingFailed
from flashmore.models.config import ModelConfig
from flashmore.ranks import world_size
from flashmore.specs import model_spec
from flashmore.speedups import CATALOGUE, EXACT, GROUPS, SWITCHES, switches
from flashmore.training.compiled.products import has_bfloat16

Quartiles = tuple[float, float, float]


class Decision(NamedTuple):
    """The speed-ups of a run."""

    speedups: tuple[str, ...]
    notes: tuple[str, ...]
    """What is on, and what is left out and why."""
    later: tuple[str, ...] = ()
    """Speed-ups with which later runs would be faster, if their step was compiled by then."""


FREE = ("fused-adamw", "pack", "trim")
"""Enabled by `auto` wherever supported: no start-up cost and no loss of precision."""
FEWEST_PACKED = 64
"""Smallest batch size at which packing beats trimming on a CPU without compilation: 4 % faster at 128, 9 %
slower at 32 (docs/log.md). With compilation packing always wins, since changing sizes would recompile."""
COMPILE_SECONDS = 30.0
"""Rough time of the first compilation: 16 to 34 s on two CPU cores (docs/results.md)."""
COMPILE_SAVES = 0.5
"""Share of an eager packed step that compiling saves on the same machine: 0.48 to 0.56."""
LATER_SECONDS = 15.0
"""From this training time on, later runs that find the compiled step save more than a few seconds."""
FEWEST_MEASURED = 500
"""With fewer steps `auto` does not measure whether compiling or a CUDA graph pays off."""
_KERNEL = "{} uses PyTorch's recurrent kernel, which cannot be compiled or captured"


def decide(
    config: TrainConfig,
    model_config: ModelConfig,
    device: torch.device,
    step_ms: Callable[[tuple[str, ...]], Quartiles],
    is_cached: Callable[[tuple[str, ...]], bool],
    *,
    replaceable: bool = False,
) -> Decision:
    """Decide the speed-ups of a run.

    Args:
        config: `speedups` holds names and groups.
        step_ms: returns the quartiles of the time of a step with given speed-ups, in ms; called only if
            `auto` considers compiling or a CUDA graph.
        is_cached: returns whether the compiled step with given speed-ups needs no compiling.
        replaceable: leave out a name that cannot work here instead of refusing it, for a run made elsewhere.

    Raises:
        ConfigError: an unknown name, or a speed-up asked for by name that cannot work here.
    """
    named = set(switches(name for name in config.speedups if name not in GROUPS))
    offered = [name for group in config.speedups if group in GROUPS for name in members(group)]
    around = named | {name for name in offered if why_not(name, config, model_config, device) is None}
    cached = "compile" in named and is_cached(switches(named))
    chosen: set[str] = set()
    notes: list[str] = []

    def obstacle(name: str, excluding: Collection[str], including: Collection[str]) -> str | None:
        entry = CATALOGUE[name]
        if why := why_not(name, config, model_config, device, cached=cached):
            return why
        if others := [other for other in entry.excludes if other in excluding]:
            return f"it cannot be combined with {', '.join(others)}"
        if missing := [other for other in entry.needs if other not in including]:
            return f"it requires {', '.join(missing)}"
        return None

    for name in switches(named):
        why = obstacle(name, named, chosen if replaceable else around)
        if why is None:
            chosen.add(name)
        elif replaceable:
            notes.append(f"{name}, which this run used, is skipped: {why}")
        else:
            wanted = f"the speed-up {name} ({CATALOGUE[name].title})"
            raise ConfigError(wanted, why, "--speedups auto, exact or all, which skip it")
    for name in offered:
        if name in chosen:
            continue
        why = obstacle(name, chosen, chosen)
        if why is None:
            chosen.add(name)
        elif "auto" not in config.speedups:
            notes.append(f"{name} skipped: {why}")
    if "auto" in config.speedups:
        return _worth_preparing(config, model_config, device, chosen, named, step_ms, is_cached, notes)
    return _decision(chosen, notes)


def _decision(chosen: Collection[str], notes: list[str], later: Collection[str] = ()) -> Decision:
    enabled = switches(chosen)
    return Decision(enabled, (f"speed-ups: {', '.join(enabled) or 'none'}", *notes), switches(later))


def members(group: str) -> tuple[str, ...]:
    """The speed-ups that a group offers, of those that exclude each other the one that gains more first."""
    if group == "none":
        return ()
    if group == "auto":
        return FREE
    # Packing leaves nothing to trim, and a graph leaves no launches to save.
    order = sorted(SWITCHES, key=lambda name: {"pack": 1, "trim": 2}.get(name, 0))
    return tuple(name for name in order if group == "all" or CATALOGUE[name].exactness == EXACT)


def why_not(
    name: str, config: TrainConfig, model_config: ModelConfig, device: torch.device, *, cached: bool = False
) -> str | None:
    """Why a speed-up cannot work for this run; None if it can.

    Args:
        cached: the compiled step is in the cache, so that it needs no compiler.
    """
    entry, spec = CATALOGUE[name], model_spec(model_config.model)
    if device.type not in entry.devices:
        return f"it works on {', '.join(entry.devices)}, but this run uses {device.type}"
    if name in ("cuda-graph", "replay", "compile"):
        if spec.recurrent_kernel:
            return _KERNEL.format(model_config.model)
        if config.dtype == "float16":
            return "float16 loss scaling decides in every step whether to update"
        if config.activation_checkpointing:
            return "activation checkpointing works in eager steps only"
        if config.parallel == "fsdp" and world_size() > 1:
            return "a sharded model has no gradient in one piece"
    if name in ("cuda-graph", "replay") and (world_size() > 1 or config.grad_accum > 1 or config.slices):
        return "a graph captures a whole batch in one process"
    if entry.model and not spec.has(entry.model):
        return f"it needs a transformer, and this model is {model_config.model}"
    if name in ("pack", "trim", "resident") and config.mode == "text":
        return "windows of a long text have no padding, and are read from a memory map"
    if name == "compile":
        return _why_not_compile(model_config, device, cached=cached)
    on_cuda = device.type == "cuda"
    if name == "bf16" and not (torch.cuda.is_bf16_supported(False) if on_cuda else has_bfloat16()):
        return "bfloat16 would be slower: this machine has no instructions for it"
    return None


def _why_not_compile(model_config: ModelConfig, device: torch.device, *, cached: bool) -> str | None:
    if model_config.attention_dropout:
        return "it does not support dropout on attention weights"
    if cached:
        return None
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++") if os.name != "nt" else ("cl",)
    if not any(compiler and shutil.which(compiler) for compiler in compilers):
        return "torch.compile needs a C++ compiler, but none was found (on Debian: apt install g++)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on CUDA, but it is not installed"
    return None


def _worth_preparing(
    config: TrainConfig,
    model_config: ModelConfig,
    device: torch.device,
    chosen: set[str],
    named: set[str],
    step_ms: Callable[[tuple[str, ...]], Quartiles],
    is_cached: Callable[[tuple[str, ...]], bool],
    notes: list[str],
) -> Decision:
    """Add a CUDA graph if it is faster, or the compiler if the run is long enough to recoup it.

    A graph is faster if its upper quartile is below the lower one without it.
    Speed-ups requested by name stay: a graph excludes packing and trimming, compiling excludes trimming.
    """

    def skipped(name: str) -> str | None:
        if why := why_not(name, config, model_config, device):
            return why
        if config.max_steps < FEWEST_MEASURED:
            return f"too few steps ({config.max_steps:,}) to recoup its start-up time"
        return None

    if device.type == "cuda" and not {"cuda-graph", "compile"} & chosen and not {"pack", "trim"} & named:
        captured = (chosen - {"pack", "trim"}) | {"cuda-graph", "replay"}
        why = skipped("cuda-graph")
        if why is None:
            try:
                without, within = (step_ms(switches(names)) for names in (chosen, captured))
            except (RuntimeError, TrainingFailed) as error:  # cannot be captured, or does not fit in memory
                why = f"PyTorch: {str(error).partition(chr(10))[0]}"
            else:
                why = f"{within[1]:.2f} ms a step with it, {without[1]:.2f} ms without"
                if within[2] < without[0]:
                    chosen = captured
                elif within[1] < without[1]:
                    why += ", but the quartiles overlap"
        notes.append(f"cuda-graph {'used' if chosen is captured else 'skipped'}: {why}")
    if "compile" not in chosen and "trim" not in named:
        compiled = (chosen - {"trim"}) | {"compile"}
        possible = why_not("compile", config, model_config, device, cached=True) is None
        if possible and is_cached(switches(compiled)):
            notes.append("compile used: the compiled step is in the cache")
            return _decision(compiled, notes)
        why, later = skipped("compile"), set[str]()
        pays = False
        if why is None:
            _, ms, _ = step_ms(switches(chosen))
            break_even = 1000 * COMPILE_SECONDS / (COMPILE_SAVES * ms)
            pays = config.max_steps >= break_even
            later = compiled if config.max_steps * ms / 1000 >= LATER_SECONDS else later
            why = (
                f"it pays off from about {break_even:,.0f} steps "
                f"(about {COMPILE_SECONDS:.0f} s once, and {COMPILE_SAVES:.0%} of {ms:.1f} ms a step saved)"
            )
        notes.append(f"compile {'used' if pays else 'skipped'}: {why}")
        if pays:
            return _decision(compiled, notes)
        if device.type == "cpu" and "pack" in chosen - named and config.batch_size < FEWEST_PACKED:
            chosen = (chosen - {"pack"}) | {"trim"}
        return _decision(chosen, notes, later)
    return _decision(chosen, notes)
