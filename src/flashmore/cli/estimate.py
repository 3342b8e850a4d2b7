"""`flashmore estimate`: what a training step costs each of several GPUs or processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from flashmore.cli.parse import defaults, parse, refuse_ineffective
from flashmore.cli.show import stdout, table
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, option_of, require_valid
from flashmore.strict_json import read
from flashmore.terminal import Cells, write_json

if TYPE_CHECKING:
    from flashmore.training.estimate import Cost, Hardware

MOST_RANKS = 2**20
LARGEST_RECORD = 2**22
"""Most bytes read; a record of benchmarks/scaling.py has about 10,000."""
CONSTANTS = {
    "tflops": ("TFLOP/s", math.ulp(0.0), 1e9, "above 0 to 1e9"),
    "bandwidth_gb_s": ("GB/s", math.ulp(0.0), 1e9, "above 0 to 1e9"),
    "latency_us": ("µs a message", 0.0, 1e9, "from 0 to 1e9"),
    "overlap": ("", 0.0, 1.0, "from 0 to 1"),
}
"""Of the hardware, each an option: its unit, its smallest and largest value, and these in words."""
HOLDS = {
    "weights": "4 bytes a parameter",
    "gradients": "4 bytes a parameter",
    "optimizer": "AdamW's two moments, Muon's one",
    "gathered": "the blocks in use and the layers outside of blocks, in one piece",
    "whole gradients": "of the layers that are in one piece",
    "message buffers": "the gradient, as it is sent and received",
    "activations": "of a slice, at 4 bytes each; an upper bound",
}
"""Where the bytes of each kind come from."""


@dataclass(frozen=True)
class Estimate:
    """Estimate the memory, arithmetic and communication of a training step on GPUs or CPU processes.

    It takes the options of `flashmore train`. --parallel auto counts as ddp here, because the memory of the
    GPUs is not known. With --device cpu it counts
    what Gloo sends, otherwise NCCL. It also predicts the time if the hardware is described by the options
    below or by a record of benchmarks/scaling.py. docs/scaling.md compares estimates with measurements.
    """

    config: TrainConfig
    """Data, model and training. Some defaults depend on --model and --preset."""
    ranks: Annotated[int, arg(aliases=("--gpus",))] = 1
    """Number of GPUs, or of CPU processes."""
    tflops: float | None = None
    """Arithmetic that a GPU or process attains in training, in 10¹² floating-point operations per second."""
    bandwidth_gb_s: float | None = None
    """Bandwidth at which it sends while receiving at the same rate, in 10⁹ bytes per second."""
    latency_us: float | None = None
    """Latency of an empty message, in microseconds."""
    overlap: float | None = None
    """Share of the communication that is hidden behind arithmetic, from 0 to 1. If omitted, 0."""
    fit: Path | None = None
    """Take omitted values from this record of benchmarks/scaling.py."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= MOST_RANKS:
            valid = f"a whole number from 1 to {MOST_RANKS:,}"
            raise ConfigError("a valid --ranks or --gpus", f"{self.ranks}", valid)
        for name, (_, least, most, valid) in CONSTANTS.items():
            value = getattr(self, name)
            require_valid(name, value, value is None or least <= value <= most, valid)


def main(argv: Sequence[str]) -> int:
    """Run `flashmore estimate`."""
    command = parse(Estimate, "estimate", argv, Estimate(defaults(argv)))
    refuse_ineffective(command.config, argv)
    if command.config.model != "transformer":
        found = f"--model {command.config.model}"
        raise ConfigError("a model whose cost is known", found, "--model transformer")
    constants = _constants(command)

    from dataclasses import replace

    import torch

    from flashmore.models.registry import parameters_of
    from flashmore.parallel import Ranks
    from flashmore.speedups import GROUPS, switches
    from flashmore.training.corpus import read_corpus
    from flashmore.training.decide import members
    from flashmore.training.estimate import Hardware, cost_of
    from flashmore.training.fit import fit
    from flashmore.training.resolve import resolve_model, resolve_parallel

    corpus = read_corpus(command.config)
    config = fit(command.config, corpus)[0]
    model_config = resolve_model(config, corpus)
    if config.attention != "auto":
        model_config = replace(model_config, attention=config.attention)
    if config.parallel == "auto":
        config = replace(config, parallel="ddp")
    offered = {name for each in config.speedups for name in (members(each) if each in GROUPS else [each])}
    config = replace(config, speedups=switches(offered) or ("none",))
    ranks = Ranks(0, command.ranks)
    device = torch.device("cpu" if config.device == "cpu" else "cuda")
    config = resolve_parallel(config, model_config, device, ranks)
    tokens = corpus.datasets(config, torch.device("cpu")).train.tokens_a_batch
    cost = cost_of(config, model_config, ranks, tokens)
    hardware = Hardware(**{name: value for name, (value, _) in constants.items()}) if constants else None
    facts = {
        "parameters": parameters_of(model_config),
        "ranks": ranks.size,
        "parallel": config.parallel,
        "tokens": tokens,
        "slices": len(ranks.slices(config)),
    }
    if command.json:
        write_json(_document(facts, cost, constants, hardware))
    else:
        _show(facts, cost, constants, hardware)
    return 0


Constants = dict[str, tuple[float, str]]
"""The value of each constant of the hardware, and where it comes from."""


def _constants(command: Estimate) -> Constants:
    """Those of the hardware; none if nothing is known of it.

    Raises:
        ConfigError: some are given, others are missing.
    """
    fitted = {} if command.fit is None else _fitted(command.fit)
    found: Constants = {}
    for name in CONSTANTS:
        given = getattr(command, name)
        if given is not None:
            found[name] = given, "given"
        elif name in fitted:
            found[name] = fitted[name], f"measured: {command.fit}"
    if not found:
        return {}
    found.setdefault("overlap", (0.0, "assumed"))
    if missing := [option_of(name) for name in CONSTANTS if name not in found]:
        wanted = "all of --tflops, --bandwidth-gb-s and --latency-us, or none"
        raise ConfigError(wanted, f"no {' and no '.join(missing)}", "the missing options, or --fit RECORD")
    return found


def _fitted(path: Path) -> dict[str, float]:
    """The constants in a record of benchmarks/scaling.py.

    Raises:
        DataError: the file cannot be read, or is not JSON.
        ConfigError: it is not such a record.
    """
    wanted, valid = f"a record of benchmarks/scaling.py in {path}", "a file written by it with --json"
    record = read(path, wanted, valid, LARGEST_RECORD, again=False)
    found = record.get("fitted") if isinstance(record, dict) else None
    if not isinstance(found, dict) or found.keys() != CONSTANTS.keys():
        raise ConfigError(wanted, "a JSON document of another kind", valid)
    for name, (_, least, most, meant) in CONSTANTS.items():
        if type(value := found[name]) not in (int, float) or not least <= value <= most:
            raise ConfigError(wanted, f"{name} {value!r}"[:200], meant)
    return found


def _document(
    facts: dict[str, Any], cost: "Cost", constants: Constants, hardware: "Hardware | None"
) -> dict[str, Any]:
    document = facts | {
        "memory_bytes": cost.memory,
        "offloaded_bytes": cost.offloaded,
        "checkpoint_bytes": cost.checkpoint,
        "flop": cost.flop,
        "sent_bytes": cost.sent,
        "messages": cost.messages,
        "hardware": {name: {"value": value, "source": source} for name, (value, source) in constants.items()},
        "seconds": None,
    }
    if hardware is None:
        return document
    seconds = cost.seconds(hardware)
    parts = {field.name: getattr(seconds, field.name) for field in fields(seconds)}
    return document | {"seconds": parts | {"step": seconds.step}}


def _show(facts: dict[str, Any], cost: "Cost", constants: Constants, hardware: "Hardware | None") -> None:
    size, tokens = facts["ranks"], facts["tokens"]
    title = f"{facts['parameters']:,} parameters on {size:,} rank{'s' * (size > 1)}"
    if size > 1:
        title += f" with --parallel {facts['parallel']}"
    title += f", {tokens:,.0f} tokens a step"
    rows = table("of each rank", "", "source", numbers=("",))
    for places, where in ((cost.memory, ""), (cost.offloaded, " in CPU memory")):
        for name, count in places.items():
            rows.add_row(name + where, f"{count / 1e9:,.3f} GB", f"counted: {HOLDS[name]}")
    rows.add_row("memory, all", f"{sum(cost.memory.values()) / 1e9:,.3f} GB", "their sum")
    copy = "counted: its copy of weights and optimizer, in CPU memory"
    rows.add_row("checkpoint on rank 0", f"{cost.checkpoint / 1e9:,.3f} GB", copy)
    rows.add_section()
    per_token = "counted: 6 a parameter and token, and attention"
    rows.add_row("arithmetic a step", f"{cost.flop / 1e12:,.3f} TFLOP", per_token)
    rows.add_row("sent a step", f"{cost.sent / 1e9:,.3f} GB", "counted")
    rows.add_row("messages a step", f"{cost.messages:,}", "counted: one after the other")
    if hardware is not None:
        _add_times(rows, cost, constants, hardware, size)
    console = stdout()
    console.print(title, rows)
    if hardware is None:
        console.print("to predict the time: --tflops, --bandwidth-gb-s and --latency-us, or --fit RECORD")


def _add_times(rows: Cells, cost: "Cost", constants: Constants, hardware: "Hardware", size: int) -> None:
    rows.add_section()
    for name, (value, source) in constants.items():
        rows.add_row(name.partition("_")[0], f"{value:,.4g} {CONSTANTS[name][0]}".strip(), source)
    rows.add_section()
    seconds = cost.seconds(hardware)
    times = {
        "computing": (seconds.compute, "predicted: arithmetic / rate"),
        "communicating": (seconds.communication, "predicted: bytes / bandwidth + messages · latency"),
        "of it hidden": (seconds.hidden, "predicted: overlap · it, at most the arithmetic beside it"),
        "a step": (seconds.step, "predicted: computing + communicating - hidden"),
    }
    for name, (value, source) in times.items():
        rows.add_row(name, f"{1000 * value:,.2f} ms", source)
    faster = size * seconds.compute / seconds.step
    rows.add_row("faster than 1 rank", f"{faster:,.2f} x", "predicted: with the same batch")
