"""The process that judges tests: fragments come in on stdin, tests go out on stdout, one JSON line each.

It makes the inputs, compares, and says the verdict. The lines run in processes of their own, which it starts
for each fragment; see `runner`.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec import convert

from flashmore.upgrade.site import Fragment
from flashmore.upgrade.verify.result import Verification, not_tested

READY = "ready"
MESSAGE_BYTES = 2**24
"""Of what lines answer to synthetic inputs, the largest of which has 2,240 numbers."""


def processor_seconds() -> float:
    """Processor time of this process, and of those that it started and that have ended."""
    return sum(os.times()[:4])


def limit_memory(more_bytes: int) -> None:
    """Let this process, and each that it starts, have so many bytes more than it has now, and dump none.

    Where the system has no such limits (Windows), nothing happens: the limit of time is left.
    """
    try:
        import resource
    except ImportError:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(argv: list[str]) -> int:
    """Test what comes in until nothing more comes.

    Args:
        argv: two words: the bytes that a test may take, and the seconds.

    The requests, one JSON document each, have a fragment, its assumptions, what the report says it ran on,
    the path of captured inputs or None, and the processor time that each process may take or None.
    """
    import warnings

    import torch

    from flashmore.upgrade.verify.lines import limit_time, warm_up

    warnings.simplefilter("ignore")  # what torch warns of in someone's lines is no part of the answer
    torch.set_num_threads(1)
    warm_up()
    most_bytes, seconds = int(argv[0]), float(argv[1])
    limit_memory(most_bytes)
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if "torch.optim." in request["fragment"]["new"]:  # which takes a second, once
            import torch._dynamo
        began = processor_seconds()
        verification = _tested(request, most_bytes, seconds)
        limit_time(0)
        answer = {**asdict(verification), "seconds": processor_seconds() - began}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


def _tested(request: dict[str, Any], most_bytes: int, seconds: float) -> Verification:
    """One request's test, under its limits."""
    from flashmore.upgrade.verify.captured import verify_captured
    from flashmore.upgrade.verify.fragment import verify_fragment
    from flashmore.upgrade.verify.lines import Limits, limit_time
    from flashmore.upgrade.verify.runner import RunnerEnded

    limits = Limits(
        until=time.monotonic() + seconds,
        seconds=seconds,
        processor_seconds=request["processor_seconds"] or seconds,
        message_bytes=MESSAGE_BYTES if request["captured"] is None else most_bytes,
    )
    limit_time(limits.processor_seconds)
    fragment, assumptions = convert(request["fragment"], Fragment), tuple(request["assumptions"])
    try:
        if request["captured"] is None:
            return verify_fragment(fragment, assumptions, limits)
        return verify_captured(fragment, assumptions, Path(request["captured"]), request["on"], limits)
    except RunnerEnded as ended:
        why = str(ended)
    except MemoryError:
        why = "the test ran out of memory"
    except RuntimeError as error:
        why = f"torch says: {str(error).partition(chr(10))[0]}"
    return not_tested(why, on=request["on"], assumptions=assumptions)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
