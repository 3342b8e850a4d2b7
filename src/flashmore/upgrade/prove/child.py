"""The process that a proof runs in: fragments come in on stdin, proofs go out on stdout, one JSON line each.

It gives up what it does not need: files cannot be written, and memory beyond a limit cannot be had.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from flashmore.upgrade.prove.result import Proof, not_proved
from flashmore.upgrade.site import Fragment, Input

READY = "ready"


def fragment_to_json(fragment: Fragment) -> dict[str, Any]:
    """Plain JSON values."""
    return asdict(fragment)


def fragment_from_json(document: Mapping[str, Any]) -> Fragment:
    """The fragment that `fragment_to_json` wrote down."""
    inputs = tuple(
        Input(**{**given, "axes": None if given["axes"] is None else tuple(given["axes"])})
        for given in document["inputs"]
    )
    return Fragment(inputs, document["old"], document["new"])


def limit_memory(more_bytes: int) -> None:
    """Let this process have so many bytes more than it has now, and write no file.

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
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(argv: list[str]) -> int:
    """Prove what comes in until nothing more comes.

    Args:
        argv: one word, the bytes that a proof may take.
    """
    import warnings

    import torch

    from flashmore.upgrade.prove.captured import prove_captured
    from flashmore.upgrade.prove.fragment import prove_fragment

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what torch warns of in someone's lines is no part of the answer
    limit_memory(int(argv[0]))
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        began = perf_counter()
        fragment, assumptions = fragment_from_json(request["fragment"]), tuple(request["assumptions"])
        try:
            if request["captured"] is None:
                proof = prove_fragment(fragment, assumptions)
            else:
                proof = prove_captured(fragment, assumptions, Path(request["captured"]), request["on"])
        except MemoryError:
            proof = not_proved("the proof ran out of its memory", assumptions=assumptions)
        except RuntimeError as error:
            proof = not_proved(f"torch says: {str(error).partition(chr(10))[0]}", assumptions=assumptions)
        answer = {**proof.to_json(), "seconds": perf_counter() - began}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


def proof_from_line(line: str) -> Proof:
    """What `main` wrote for one fragment."""
    return Proof.from_json(json.loads(line))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
