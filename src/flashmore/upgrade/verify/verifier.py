"""Test rewrites: one process judges them, others run the lines, with limits of time and memory.

Nothing of the user's is imported in any of them: only the extracted lines run, after `allowed` has read them.
What the test tries is `family`'s, how it judges is `case`'s, where the lines run is `runner`'s.
"""

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from msgspec import convert

from flashmore.upgrade.isolated import command, environment
from flashmore.upgrade.site import Site
from flashmore.upgrade.verify.child import READY, processor_seconds
from flashmore.upgrade.verify.result import Verification, not_tested

SECONDS = 300.0
"""How long one test may take by the clock, where its processes wait instead of computing."""
BYTES = 4 * 2**30
FILE_SECONDS = 9.0
"""Processor time of all tests of one file; a file may hold any number of places whose lines do not end.

A test takes a third of a second to two seconds. The same lines are tested once, however often they occur.
"""
PROCESSES = 3
"""Of a test: the judge, the old lines, the new lines; each may take the same share of what is left."""
LEAST_SECONDS = 0.05
"""Processor time with which no test is begun any more."""
START_SECONDS = 120.0
"""Importing torch takes two seconds, and far more from a slow disk."""
JUDGING_SECONDS = 30.0
"""What the judge may take beyond the lines' own time before it is given up."""
LONGEST_LINE = 4096


class _Ended(Exception):
    """The child has gone, or does not answer in time."""


class Verifier:
    """A process that judges one fragment after the other; use it as a context.

    Args:
        seconds: how long one test may take.
        memory_bytes: how much memory all of it may take, beyond what torch itself needs.
    """

    def __init__(self, seconds: float = SECONDS, memory_bytes: int = BYTES) -> None:
        self.seconds = seconds
        self.memory_bytes = memory_bytes
        self.child: subprocess.Popen[str] | None = None
        self.spent: dict[str, float] = defaultdict(float)
        self.known: dict[str, Verification] = {}

    def verify(self, site: Site, captured: Path | None = None, on: str = "synthetic tensors") -> Verification:
        """Test one site; a child that crashes, hangs or runs out of memory is a test that failed.

        Args:
            site: a site with a fragment.
            captured: what `flashmore.upgrade.trace.tracer` wrote: real inputs, instead of synthetic ones.
            on: what the report says the test ran on.
        """
        if site.fragment is None:
            return not_tested("no lines could be extracted", on=on, assumptions=site.assumptions)
        request = {
            "fragment": asdict(site.fragment),
            "assumptions": site.assumptions,
            "captured": None if captured is None else str(captured),
            "on": on,
        }
        try:
            if captured is not None:  # of a program that the user has chosen to run
                return self._ask(json.dumps({**request, "processor_seconds": None}))
            return self._verify_on_synthetic(site.path, request)
        except _Ended as ended:
            self._end()
            return not_tested(str(ended), on=on, assumptions=site.assumptions)

    def _verify_on_synthetic(self, path: str, request: dict[str, Any]) -> Verification:
        """A test within what its file has left, or the same one as before."""
        key = json.dumps(request)
        if key in self.known:
            return self.known[key]
        share = (FILE_SECONDS - self.spent[path]) / PROCESSES
        if share < LEAST_SECONDS:
            why = f"the tests of this file have used up their {FILE_SECONDS:g} s of processor time"
            return not_tested(why, on=request["on"], assumptions=tuple(request["assumptions"]))
        began = processor_seconds()
        try:
            verification = self._ask(json.dumps({**request, "processor_seconds": share}))
            self.spent[path] += verification.seconds
        except _Ended:
            self._end()
            self.spent[path] += processor_seconds() - began
            raise
        if verification.cases:
            self.known[key] = verification
        return verification

    def _ask(self, request: str) -> Verification:
        if self.child is None:
            self._start()
        assert self.child is not None
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(request + "\n")
            self.child.stdin.flush()
        except OSError:
            raise _Ended(self._how_it_ended()) from None
        too_late = f"the test took longer than {self.seconds:g} s"
        return convert(json.loads(self._line(self.seconds + JUDGING_SECONDS, too_late)), Verification)

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="flashmore-")
        self.child = subprocess.Popen(
            command("flashmore.upgrade.verify.child", str(self.memory_bytes), str(self.seconds)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            errors="replace", env=environment(), cwd=self.folder.name, start_new_session=True,
        )  # fmt: skip
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        self.lines: queue.Queue[str] = queue.Queue()
        self.said: deque[str] = deque(maxlen=1)
        threading.Thread(target=_pass_on, args=(self.child.stdout, self.lines), daemon=True).start()
        self.listener = threading.Thread(target=_keep_last, args=(self.child.stderr, self.said), daemon=True)
        self.listener.start()
        if self._line(START_SECONDS, "the process for tests did not start").strip() != READY:
            raise _Ended("the process for tests did not start")

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
        self.listener.join(JUDGING_SECONDS)
        if code == -getattr(signal, "SIGPROF", 0):
            return "the comparison exceeded the processor time left for this file"
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        return f"the process that compares ended ({how}): {(self.said or ['no output'])[0][:200]}"

    def _end(self) -> None:
        if self.child is None:
            return
        end_with_all_it_started(self.child)
        self.listener.join(JUDGING_SECONDS)
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            with suppress(OSError):  # what was not yet written has no reader any more
                assert pipe is not None
                pipe.close()
        self.folder.cleanup()
        self.child = None

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


def end_with_all_it_started(process: "subprocess.Popen[Any]") -> None:
    """Kill a process that was started in a session of its own, and all that it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _pass_on(stream: IO[str], lines: "queue.Queue[str]") -> None:
    """Hand over every line, and an empty one at the end."""
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # the pipe was closed under us: nobody listens any more
        pass
    lines.put("")


def _keep_last(stream: IO[str], said: "deque[str]") -> None:
    """Keep the last line that is not empty, or the end of it."""
    with suppress(ValueError):
        while line := stream.readline(LONGEST_LINE):
            if line.strip():
                said.append(line.strip())
