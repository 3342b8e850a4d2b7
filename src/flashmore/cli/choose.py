"""`flashmore choose`: measure the fastest attention backend on this machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flashmore.cli.parse import parse, require_writable
from flashmore.cli.show import stdout, table
from flashmore.errors import ConfigError
from flashmore.terminal import say, write_json

if TYPE_CHECKING:
    from flashmore.backends.choose import Choice, Problem


@dataclass(frozen=True)
class Choose:
    """Measure which backend computes causal self-attention fastest here, and cache the answer.

    `--attention auto` uses the same answer. It is cached for this device, torch release, number of threads,
    dtype, shape and dropout, in $FLASHMORE_CACHE or the user's cache folder.
    """

    batch_size: int = 32
    """Number of sequences."""
    n_head: int = 4
    """Attention heads."""
    length: int = 16
    """Positions per sequence."""
    head_dim: int = 16
    """Channels per head."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of q, k and v."""
    dropout: float = 0.0
    """Probability of dropping an attention weight."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to use; `auto` selects a GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's default."""
    fresh: bool = False
    """Measure again even if the answer is cached."""
    out: Path | None = None
    """Write the record to this file."""
    json: bool = False
    """Print the record, one JSON document, on stdout and nothing else."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_head", "length", "head_dim"):
            if getattr(self, name) < 1:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"a sensible {option}", str(getattr(self, name)), "a whole number from 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError("a sensible --dropout", str(self.dropout), "at least 0 and below 1")


def main(argv: Sequence[str]) -> int:
    """Run `flashmore choose`."""
    command = parse(Choose, "choose", argv)
    require_writable("--out", command.out)

    import torch

    from flashmore.backends.choose import Problem, choose
    from flashmore.measuring.result import make_record, write_record
    from flashmore.training.resolve import resolve_device

    if command.threads:
        torch.set_num_threads(command.threads)
    shape = (command.batch_size, command.n_head, command.length, command.head_dim)
    device = resolve_device(command.device)
    problem = Problem(shape, getattr(torch, command.dtype), device, command.dropout)
    choice = choose("auto", problem, fresh=command.fresh or command.out is not None)
    record = make_record("choose", device, _body(choice, problem))
    if command.out is not None:
        write_record(record, command.out)
    if command.json:
        write_json(record)
    else:
        _show(choice)
    return 0


def _body(choice: "Choice", problem: "Problem") -> dict[str, object]:
    return {
        "warnings": [],
        "chosen": choice.backend,
        "measuring_s": choice.seconds,
        "problem": problem.key(),
        "candidates": [asdict(candidate) for candidate in choice.candidates],
    }


def _show(choice: "Choice") -> None:
    numbers = ("ms", "quartiles", "first quartile / best")
    rows = table("backend", *numbers, "why it has no time", numbers=numbers)
    best = min(candidate.time_ms.low for candidate in choice.candidates if candidate.time_ms)
    for candidate in choice.candidates:
        if candidate.time_ms is None:
            rows.add_row(candidate.name, "", "", "", candidate.why_not)
            continue
        median, low, high = candidate.time_ms.median, candidate.time_ms.low, candidate.time_ms.high
        rows.add_row(candidate.name, f"{median:.3f}", f"{low:.3f} – {high:.3f}", f"{low / best:.2f}", "")
    stdout().print(rows)
    stdout().print(f"chosen: {choice.backend}")
    say(
        f"measured in {choice.seconds:.1f} s"
        if choice.seconds
        else "as measured before; --fresh measures again"
    )
