"""Real inputs for tests: the user's example or script runs in a child process, and the sites are watched.

The user's own modules are imported here alone, and only where `--example` or `--run` asks for it. Whatever
goes wrong there is told; what was seen before is kept.
"""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import convert

from flashmore.upgrade.isolated import command
from flashmore.upgrade.site import Site
from flashmore.upgrade.trace.child import STATUS
from flashmore.upgrade.verify.result import CaseResult, Verification, not_tested
from flashmore.upgrade.verify.verifier import Verifier, end_with_all_it_started

SECONDS = 300.0
"""How long an example or a script may take."""
SECONDS_TO_NOTICE = 0.2
"""After so long a signal to end is noticed at the latest."""

ENDED_ITSELF = "the run ended early, without an error"


@dataclass(frozen=True)
class Source:
    """What to run: one of the two."""

    example: str | None = None
    """`module:function`, found from the working directory."""
    run: tuple[str, ...] = ()
    """A script and its arguments."""

    def __str__(self) -> str:
        if self.example is not None:
            return f"--example {self.example}"
        return f"--run '{' '.join(self.run)}'"


@dataclass(frozen=True)
class Traced:
    """What a run brought."""

    verifications: list[Verification]
    """One for each site, in their order."""
    problem: str | None
    """What went wrong in the user's code; None where it ran to its end."""


def verify_traced(
    sites: Sequence[Site],
    source: Source,
    verifier: Verifier,
    *,
    rewritten: Mapping[Path, str] | None = None,
    seconds: float = SECONDS,
) -> Traced:
    """Run the user's program once, and replay each site on what it was given there.

    Args:
        sites: each with a fragment; their paths are as seen from the working directory.
        source: what to run.
        verifier: the process for the tests.
        rewritten: files with their whole new source. An example is run with them too, and its outputs and
            the gradients of its weights become one more case of each test.
        seconds: how long it may take; what was seen until then counts.
    """
    with tempfile.TemporaryDirectory(prefix="flashmore-") as name:
        folder = Path(name)
        status = watch(sites, source, folder, seconds, rewritten or {})
        return Traced(_replayed(sites, source, folder, status, verifier), status["problem"])


def _replayed(
    sites: Sequence[Site], source: Source, folder: Path, status: dict[str, Any], verifier: Verifier
) -> list[Verification]:
    verifications = []
    on = f"the inputs from {source}"
    for number, site in enumerate(sites):
        captured = folder / f"{number}.pt"
        if captured.exists():
            verifications.append(_with_whole(verifier.verify(site, captured, on), status["whole"]))
            continue
        why = status["why_not"][number] if status["why_not"] else None
        reason = "these lines were not reached" if why is None else f"its inputs could not be kept: {why}"
        reason = f"{reason}; {status['problem']}" if status["problem"] and why is None else reason
        verifications.append(not_tested(reason, on=on, assumptions=site.assumptions))
    return verifications


def _with_whole(verification: Verification, whole: dict[str, Any] | None) -> Verification:
    """A test with the case of the whole example, which refutes it where the result differs."""
    if whole is None:
        return verification
    case = convert(whole, CaseResult)
    verification = replace(verification, cases=(*verification.cases, case))
    if case.result != "differs":
        return verification
    return replace(verification, passed=False, why_not=verification.why_not or f"{case.name}: {case.detail}")


def watch(
    sites: Sequence[Site],
    source: Source,
    folder: Path,
    seconds: float,
    rewritten: Mapping[Path, str] | None = None,
) -> dict[str, Any]:
    """Run the user's program under watch; what is seen of site n comes to lie in `folder/n.pt`.

    Returns:
        `problem` (or None), `why_not` and `calls` of each site, both empty where the run was cut off, and
        `whole`: the case of the whole example, or None.
    """
    request = {
        "sites": [watched_site(site) for site in sites],
        "example": source.example,
        "run": list(source.run),
        "folder": str(folder),
        "rewritten": {str(path.resolve()): text for path, text in (rewritten or {}).items()},
    }
    said = run_child("flashmore.upgrade.trace.child", request, folder, seconds)
    try:
        status: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except OSError:
        problem = said or ENDED_ITSELF
        status = {"problem": problem, "why_not": [], "calls": [], "whole": None}
    return status


def watched_site(site: Site) -> dict[str, Any]:
    """What a child process needs to know to watch a site; plain JSON values."""
    assert site.fragment is not None
    return {
        "path": str(Path(site.path).resolve()),
        "line": site.line,
        "end_line": site.end_line,
        "inputs": [(given.name, given.source) for given in site.fragment.inputs],
    }


def run_child(module: str, request: dict[str, Any], folder: Path, seconds: float) -> str | None:
    """Run one of our modules in a process of its own, with all that it starts, for so long at most.

    Args:
        module: of ours; it is given this process, to end with it, and the request's file.
        request: plain JSON values.
        folder: for the request and for what the process prints.
        seconds: how long it may take.

    Returns:
        What went wrong, or None.

    Raises:
        SystemExit: SIGTERM or SIGHUP asked this process to end. What it started has ended before it.
    """
    asked = folder / "request.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    with (
        _asked_to_end() as asked_to_end,
        (folder / "output").open("w+", encoding="utf-8", errors="replace") as output,
    ):
        process = subprocess.Popen(
            command(module, str(os.getpid()), str(asked)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _wait(process, seconds, asked_to_end)
        finally:
            end_with_all_it_started(process)
        if asked_to_end:
            raise SystemExit(128 + asked_to_end[0])
        output.seek(0)
        last = (output.read().strip().splitlines() or ["no output"])[-1][:300]
    if code is None:
        return f"the run took longer than {seconds:g} s"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the run ended with {how}: {last}" if code else None


def _wait(process: "subprocess.Popen[bytes]", seconds: float, asked_to_end: Sequence[int]) -> int | None:
    """The exit code of a process; None where it goes on, for the time is over or a signal has come."""
    until = time.monotonic() + seconds
    while not asked_to_end and (left := until - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, SECONDS_TO_NOTICE))
    return process.poll()


@contextmanager
def _asked_to_end() -> Iterator[list[int]]:
    """Keep the signals that ask this process to end, instead of ending at once and leaving a child behind.

    What is ignored stays ignored: nohup does that with SIGHUP.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, before[number])
