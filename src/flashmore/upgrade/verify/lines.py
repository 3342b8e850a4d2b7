"""The process in which a fragment's lines run: it is sent inputs, and answers with tensors.

What is tried and what the answers mean is the judge's; see `runner`.
"""

import gc
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.upgrade.site import Fragment
from flashmore.upgrade.verify.case import Lines, LinesRaised, Setting, raised, run
from flashmore.upgrade.verify.dropout import draw
from flashmore.upgrade.verify.functions import functions_of
from flashmore.upgrade.verify.kernels import selected
from flashmore.upgrade.verify.messages import Message, encoded, made, receive
from flashmore.upgrade.verify.tensors import Argument

Side = Literal["old", "new"]
_FIRST_OTHER = 3
"""The first file descriptor after stdin, stdout and stderr."""


@dataclass(frozen=True)
class Limits:
    """What the processes of one test may take."""

    until: float
    """A time of `time.monotonic`, for lines that wait instead of computing."""
    seconds: float
    """How long that was when the test began: for the message."""
    processor_seconds: float
    """Processor time of each process. Unlike `seconds` it does not depend on what else the machine does."""
    message_bytes: int
    """Of one message."""


def serve(connection: "Connection[Any, Any]", fragment: Fragment, side: Side, limits: Limits) -> None:
    """Run one side's lines as often as the judge asks, until it closes the connection."""
    _confine(connection, limits)
    torch.set_num_threads(1)
    try:
        lines = functions_of(fragment)[side == "new"]
        why_not = None
    except Exception as error:  # noqa: BLE001 - told to the judge, as the answer to whatever it asks
        why_not = [type(error).__name__, str(error)]
    while True:
        try:
            asked = receive(connection, limits.message_bytes)
        except EOFError:
            return
        try:
            with raised():
                answer: Message = ({"raised": why_not}, {}) if why_not else _answer(lines, *asked)
                connection.send_bytes(encoded(*answer))
        except LinesRaised as error:
            connection.send_bytes(encoded({"raised": [error.kind, error.message]}, {}))
        except MemoryError:
            connection.send_bytes(encoded({"raised": ["MemoryError", "the test ran out of memory"]}, {}))


def _answer(lines: Lines, text: Mapping[str, Any], tensors: dict[str, Tensor]) -> Message:
    """The outputs of a run and its gradients, or many draws, or the kernels that were selected."""
    if text["do"] == "draws":
        seeds = range(*text["seeds"])
        return {}, {"draws": draw(lines, lambda: made(text["arguments"], tensors), seeds)}
    setting = Setting(**text["setting"])
    torch.default_generator.manual_seed(0)
    arguments = made(text["arguments"], tensors)
    if text["do"] == "kernels":
        return {"kernels": selected(lines, arguments, setting)}, {}
    return {}, run(lines, arguments, setting, double=text["double"])


def warm_up() -> None:
    """Let torch do, before a process is forked for every fragment, what it does on a first call alone."""
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    for setting in (Setting(autocast="bfloat16", math_kernel=True), Setting()):
        run(lambda x: F.scaled_dot_product_attention(x @ x, x, F.dropout(x)), [Argument("x", x, x)], setting)
    gc.collect()
    gc.freeze()  # else the first collection in each fork copies all that torch has made


def limit_time(seconds: float) -> None:
    """End this process by SIGPROF after so much processor time; 0 for no limit."""
    if hasattr(signal, "setitimer"):  # not on Windows, where the limit by the clock is left
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _confine(connection: "Connection[Any, Any]", limits: Limits) -> None:
    """Give up what the lines do not need: other files, writing, a dump, more time of the processor.

    Memory is limited already: by the judge, whose limit is inherited.
    """
    try:
        import resource
    except ImportError:  # Windows: the judge's limit of time is left
        return
    empty = os.open(os.devnull, os.O_RDWR)
    for used in (0, 1):
        os.dup2(empty, used)
    kept = connection.fileno()
    os.closerange(_FIRST_OTHER, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    limit_time(limits.processor_seconds)
    most = int(limits.processor_seconds) + 2  # where SIGPROF is of no avail
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
