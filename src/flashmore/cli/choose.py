"""`flashmore choose`: measure the fastest attention backend on this machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flashmore.call import CallOptions
from flashmore.cli.bench import show
from flashmore.cli.model_config import heads_in
from flashmore.cli.parse import parse, require_writable
from flashmore.config import usable_threads
from flashmore.terminal import say, write_json


@dataclass(frozen=True)
class Choose:
    """Measure which backend computes attention fastest here, and cache the result.

    `train --attention auto` uses the same result. The cache, in $FLASHMORE_CACHE or the user's cache folder,
    has an entry for each device, torch release, number of threads and attention call.
    """

    call: CallOptions
    from_config: Path | None = None
    """Take the number of heads and the head dimension from a Hugging Face model's config.json."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to use; `auto` uses a GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 keeps PyTorch's default."""
    fresh: bool = False
    """Measure again even if there is a cached result."""
    out: Path | None = None
    """Write the record to this file."""
    json: bool = False
    """Print the record to stdout as JSON, and nothing else."""

    def __post_init__(self) -> None:
        self.call.require_measurable()
        usable_threads(self.threads)


def main(argv: Sequence[str]) -> int:
    """Run `flashmore choose`."""
    record, command = measured(argv)
    if command.out is not None:
        from flashmore.measuring.result import write_record

        write_record(record, command.out)
    if command.json:
        write_json(record)
    else:
        show(record)
        if not record["measuring_s"]:
            say("from the cache; use --fresh to measure again")
    return 0


def measured(argv: Sequence[str]) -> tuple[dict[str, Any], Choose]:
    """The record that these arguments ask for, and the arguments."""
    call = CallOptions(**heads_in(argv))  # type: ignore[arg-type]
    command = parse(Choose, "choose", argv, Choose(call))
    require_writable("--out", command.out)

    import torch

    from flashmore.backends.choose import Problem, choose
    from flashmore.measuring.result import make_record
    from flashmore.training.resolve import resolve_device

    if command.threads:
        torch.set_num_threads(usable_threads(command.threads))
    device = resolve_device(command.device)
    problem = Problem(command.call, device)
    choice = choose("auto", problem, fresh=command.fresh or command.out is not None)
    if choice.seconds:
        say(f"{choice.backend}: {choice.why}")
    body = {
        "warnings": [],
        "chosen": choice.backend,
        "measuring_s": choice.seconds,
        "problem": problem.key(),
        "candidates": [asdict(candidate) for candidate in choice.candidates],
    }
    return make_record("choose", device, body), command
