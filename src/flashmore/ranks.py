"""The rank of this process, which torchrun gives in environment variables, and where it prints.

Rank 0 alone prints on the terminal.
"""

import os
import sys

_terminal: int | None = None
"""The stderr of a rank other than 0."""


def world_size() -> int:
    """How many processes torchrun started together; 1 without torchrun."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """This process's number on this machine, from 0."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many of these processes are on this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def machine() -> int:
    """The number of this machine among those that torchrun uses, from 0."""
    return _number("GROUP_RANK", 0) if world_size() > 1 else 0


def is_connected() -> bool:
    """Whether this process has found the others."""
    module = sys.modules.get("torch.distributed")
    return module is not None and module.is_initialized()


def max_restarts() -> int:
    """How often torchrun starts all processes again after one has failed."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0) if world_size() > 1 else 0


def be_silent() -> None:
    """Discard what this process prints, until it has a log file."""
    global _terminal
    _terminal = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    print_to(nowhere)
    os.close(nowhere)


def print_to(file: int) -> None:
    """Send stdout and stderr of this process to an open file."""
    for number in (1, 2):
        os.dup2(file, number)


def speak() -> None:
    """Print on the stderr that this process was started with, to say why it ends."""
    if _terminal is not None:
        os.dup2(_terminal, 2)


def _number(name: str, without: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else without
