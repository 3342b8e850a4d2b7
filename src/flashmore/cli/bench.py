"""`flashmore bench WHAT …`: dispatch to the benchmarks' own files."""

import importlib
from collections.abc import Sequence

from flashmore.errors import UsageError
from flashmore.terminal import write

WHAT = {
    "step": "whole training steps of one model under two or more attention backends",
    "ablation": "training steps with the documented speed-ups added one after the other",
    "attention": "the kernels alone: time, memory and error against T",
}


def main(argv: Sequence[str]) -> int:
    """Run `flashmore bench`."""
    if not argv or argv[0] in ("-h", "--help"):
        write(_help())
        return 0 if argv else 2
    what, *rest = argv
    if what not in WHAT:
        raise UsageError("something to measure: flashmore bench WHAT", f"'{what}'", ", ".join(WHAT))
    command = importlib.import_module(f"flashmore.cli.bench_{what}")
    return int(command.main(rest))


def _help() -> str:
    lines = "\n".join(f"  {what:<10} {does}" for what, does in WHAT.items())
    return (
        "usage: flashmore bench WHAT [OPTIONS]\n\n"
        "Measure what training, attention and each speed-up cost on this machine, and how sure that is.\n\n"
        f"{lines}\n\n"
        "flashmore bench WHAT --help tells the options.\n"
    )
