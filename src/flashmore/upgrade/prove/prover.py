"""Prove rewrites: the old and the new lines run in a child process with limits of time and memory.

Nothing of the user's is imported here: only the extracted lines run, after `allowed` has read them.
What the proof tries is `family`'s, how it judges is `case`'s.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from flashmore.upgrade.prove.child import READY, fragment_to_json, proof_from_line
from flashmore.upgrade.prove.result import CaseResult, Proof, TensorVerdict, not_proved
from flashmore.upgrade.site import Site

__all__ = ["CaseResult", "Proof", "TensorVerdict", "prove", "prove_all"]

SECONDS = 60.0
"""A proof takes one to three seconds; lines that loop or compute huge powers do not end."""
BYTES = 4 * 2**30
START_SECONDS = 120.0
"""Importing torch takes two seconds, and far more from a slow disk."""


class _Ended(Exception):
    """The child has gone, or does not answer in time."""


class Prover:
    """A child process that proves one fragment after the other; use it as a context.

    Args:
        seconds: how long one proof may take.
        memory_bytes: how much memory all of it may take, beyond what torch itself needs.
    """

    def __init__(self, seconds: float = SECONDS, memory_bytes: int = BYTES) -> None:
        self.seconds = seconds
        self.memory_bytes = memory_bytes
        self.child: subprocess.Popen[str] | None = None

    def prove(self, site: Site, captured: Path | None = None, on: str = "synthetic tensors") -> Proof:
        """Prove one site; a child that crashes, hangs or runs out of memory is a proof that failed.

        Args:
            site: a site with a fragment.
            captured: what `flashmore.upgrade.trace.tracer` wrote: real inputs, instead of synthetic ones.
            on: what the report says the proof ran on.
        """
        if site.fragment is None:
            return not_proved("no lines could be extracted", on=on, assumptions=site.assumptions)
        request = {
            "fragment": fragment_to_json(site.fragment),
            "assumptions": site.assumptions,
            "captured": None if captured is None else str(captured),
            "on": on,
        }
        try:
            return self._ask(json.dumps(request))
        except _Ended as ended:
            self._end()
            return not_proved(str(ended), on=on, assumptions=site.assumptions)

    def _ask(self, request: str) -> Proof:
        if self.child is None:
            self._start()
        assert self.child is not None
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(request + "\n")
            self.child.stdin.flush()
        except OSError:
            raise _Ended(self._how_it_ended()) from None
        return proof_from_line(self._line(self.seconds, f"the proof took longer than {self.seconds:g} s"))

    def _start(self) -> None:
        # No folder of the user's is searched for modules (-P), and no GPU is held: proofs run on the CPU.
        command = [sys.executable, "-P", "-m", "flashmore.upgrade.prove.child", str(self.memory_bytes)]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, encoding="utf-8",
            env=environment,
        )  # fmt: skip
        assert self.child.stdout is not None
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pass_on, args=(self.child.stdout, self.lines), daemon=True).start()
        if self._line(START_SECONDS, "the process for proofs did not start").strip() != READY:
            raise _Ended("the process for proofs did not start")

    def _line(self, seconds: float, too_late: str) -> str:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise _Ended(too_late) from None
        if not line:
            raise _Ended(self._how_it_ended())
        return line

    def _how_it_ended(self) -> str:
        assert self.child is not None
        code = self.child.wait()
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["nothing was said"])[-1][:200]
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        return f"the process that ran the lines ended ({how}): {last}"

    def _end(self) -> None:
        if self.child is None:
            return
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            with suppress(OSError):  # what was not yet written has no reader any more
                assert pipe is not None
                pipe.close()
        self.errors.close()
        self.child = None

    def __enter__(self) -> "Prover":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


def prove(site: Site, *, seconds: float = SECONDS, memory_bytes: int = BYTES) -> Proof:
    """Prove one site on synthetic tensors, in a child process of its own.

    Args:
        site: with a fragment; its path is not opened.
        seconds: how long it may take.
        memory_bytes: how much memory it may take beyond torch's own.

    Returns:
        The proof, or why there is none; crashes, hangs and a lack of memory are reasons, never exceptions.
    """
    with Prover(seconds, memory_bytes) as prover:
        return prover.prove(site)


def prove_all(
    sites: Sequence[Site],
    *,
    seconds: float = SECONDS,
    memory_bytes: int = BYTES,
    after_each: Callable[[int], None] = lambda _: None,
) -> list[Proof]:
    """Prove many sites in one child process; one that crashes it fails alone, and a new child goes on.

    Args:
        sites: each with a fragment, or it is not proved.
        seconds: how long each may take.
        memory_bytes: how much memory all of them may take.
        after_each: is told how many are done.
    """
    with Prover(seconds, memory_bytes) as prover:
        return [_told(prover.prove(site), done, after_each) for done, site in enumerate(sites, 1)]


def _told(proof: Proof, done: int, after_each: Callable[[int], None]) -> Proof:
    after_each(done)
    return proof


def _pass_on(stream: IO[str], lines: "queue.Queue[str]") -> None:
    """Hand over every line, and an empty one at the end."""
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # the pipe was closed under us: nobody listens any more
        pass
    lines.put("")
