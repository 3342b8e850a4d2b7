"""The processes that run a fragment's lines, as the judge sees them: one for the old, one for the new ones.

The judge starts them, sends inputs, and gets tensors back. It never runs the lines itself, so nothing that
they do reaches the comparison, the other lines, or another fragment. On Linux they are forks of the judge,
which has imported torch and has one thread; elsewhere they start anew, which takes seconds.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from multiprocessing.connection import wait

import torch
from torch import Tensor

from flashmore.specs import backends
from flashmore.upgrade.site import Fragment
from flashmore.upgrade.verify.allowed import compiled
from flashmore.upgrade.verify.case import LinesRaised, Setting
from flashmore.upgrade.verify.lines import Limits, Side, serve
from flashmore.upgrade.verify.messages import (
    Message,
    Unreadable,
    check_results,
    describe,
    encoded,
    receive,
)
from flashmore.upgrade.verify.tensors import Argument

_START = "fork" if sys.platform == "linux" else "spawn"
_SAID = 4096
"""How much of what a process writes on stderr is kept: the last bytes."""
_LEAVING_SECONDS = 5.0
"""How long a process that closed its connection may take to end."""


class RunnerEnded(Exception):
    """A process that runs lines has ended, answers nonsense, or takes too long; the message says which."""


@contextmanager
def runners(fragment: Fragment, limits: Limits) -> "Iterator[tuple[Runner, Runner]]":
    """The old lines and the new ones, each in a process of its own.

    Raises:
        NotAllowed: they hold something that a test does not run, or need a package that is not here.
    """
    compiled(fragment)
    with ExitStack() as stack:
        old, new = (stack.enter_context(Runner(fragment, side, limits)) for side in ("old", "new"))
        yield old, new


class Runner:
    """The judge's side of one process; use it as a context."""

    def __init__(self, fragment: Fragment, side: Side, limits: Limits) -> None:
        self.limits = limits
        self.references: dict[bytes, dict[str, Tensor]] = {}
        """By the digest of what was asked: precisions with and without autocast ask for the same."""
        context = multiprocessing.get_context(_START)
        self.connection, other = context.Pipe()
        arguments = (other, fragment, side, limits)
        self.process = context.Process(target=serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
        self.said = b""
        with _as_stderr() as self.errors:
            self.process.start()
        other.close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()
        if self.errors is not None:
            os.close(self.errors)

    def run(
        self, arguments: Sequence[Argument], setting: Setting, *, double: bool = False
    ) -> dict[str, Tensor]:
        """See `flashmore.upgrade.verify.case.run`."""
        described, tensors = describe(arguments)
        message = encoded({**described, "do": "run", "setting": asdict(setting), "double": double}, tensors)
        key = hashlib.blake2b(message).digest()
        if double and key in self.references:
            return self.references[key]
        with _readable():
            found = check_results(self._ask(message)[1], arguments)
        if double:
            self.references[key] = found
        return found

    def draws(self, arguments: Sequence[Argument], seeds: range) -> Tensor:
        """All numbers of the outputs for each seed: (seeds, numbers), float64.

        Raises:
            LinesRaised: the lines do not take these arguments.
        """
        described, tensors = describe(arguments)
        asked = {**described, "do": "draws", "seeds": [seeds.start, seeds.stop]}
        found = self._ask(encoded(asked, tensors))[1]
        drawn = found.get("draws")
        if drawn is None or drawn.dtype != torch.float64 or drawn.dim() != 2 or len(drawn) != len(seeds):
            raise RunnerEnded("the process that ran the lines gave an unexpected answer: no draws")
        return drawn

    def kernels(self, arguments: Sequence[Argument], setting: Setting) -> tuple[str, str] | None:
        """The kernels of the first call of SDPA on the CPU and on CUDA; None if there is no call."""
        described, tensors = describe(arguments)
        asked = {**described, "do": "kernels", "setting": asdict(setting)}
        found = self._ask(encoded(asked, tensors))[0].get("kernels")
        names = set(backends())
        if not isinstance(found, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and names.issuperset(map(str, pair)) for pair in found
        ):
            raise RunnerEnded("the process that ran the lines gave an unexpected answer: no kernels")
        return tuple(found[0]) if found else None

    def _ask(self, message: bytes) -> Message:
        try:
            self.connection.send_bytes(message)
            self._wait()
            with _readable():
                answer = receive(self.connection, self.limits.message_bytes)
        except (EOFError, OSError):
            raise RunnerEnded(self._how_it_ended()) from None
        if "raised" in answer[0]:
            kind, why = (str(each)[:200] for each in answer[0]["raised"])
            if kind in ("NotAllowed", "MemoryError"):
                raise RunnerEnded(why)
            raise LinesRaised(kind, why)
        return answer

    def _wait(self) -> None:
        """Wait for an answer, and listen meanwhile, so that no process waits for a reader of its stderr."""
        while True:
            left = max(0.0, self.limits.until - time.monotonic())
            ready = wait([self.connection] if self.errors is None else [self.connection, self.errors], left)
            self._listen()
            if self.connection in ready:
                return
            if not ready:
                raise RunnerEnded(f"the test took longer than {self.limits.seconds:g} s")

    def _listen(self) -> None:
        """Keep the end of what the process has written on stderr."""
        if self.errors is None:
            return
        try:
            while more := os.read(self.errors, 2**16):
                self.said = (self.said + more)[-_SAID:]
        except BlockingIOError:
            return
        os.close(self.errors)
        self.errors = None

    def _how_it_ended(self) -> str:
        """Why there is no answer, with the last line that the process has written; that text is untrusted."""
        self.process.join(_LEAVING_SECONDS)
        self._listen()
        lines = self.said.decode(errors="replace").strip().splitlines()
        code = self.process.exitcode
        if code == -getattr(signal, "SIGPROF", 0):
            return f"the lines took longer than {self.limits.processor_seconds:.2g} s of processor time"
        how = (
            "it closed its connection" if code is None else f"signal {-code}" if code < 0 else f"exit {code}"
        )
        return f"the process that ran the lines ended ({how}): {(lines or ['no output'])[-1][:200]}"


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except Unreadable as error:
        raise RunnerEnded(f"the process that ran the lines gave an unexpected answer: {error}") from None


@contextmanager
def _as_stderr() -> Iterator[int | None]:
    """A pipe that is the stderr of a process which is started meanwhile; gives its end to read from.

    None on Windows, where a process that is started takes no descriptor along.
    """
    if os.name == "nt":
        yield None
        return
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    kept = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield reading
    finally:
        os.dup2(kept, 2)
        os.close(kept)
