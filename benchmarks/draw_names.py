"""Time the drawing of names; a part of gpu.py and regressions.py. Prints one JSON document.

python benchmarks/draw_names.py RUN DEVICE COUNT CALLS

It uses flashmore's public names alone, so that it also runs with other versions. A call opens the run, draws
COUNT names, including equal ones, and looks each of them up in the data.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from flashmore import FlashmoreError, GenerateOptions, Run, generate


def main() -> int:
    """Time the calls, after one that is not counted."""
    folder, device, count, calls = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    call_ms = []
    try:
        for seed in range(calls + 1):
            began = time.perf_counter()
            options = GenerateOptions(count=count, max_draws=count, repeats=True, seed=seed)
            made = generate(Run.open(folder), options, device=device)
            call_ms.append(1000 * (time.perf_counter() - began))
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    drawn = {"device": device, "draws": made.draws, "names": len(made.names), "call_ms": call_ms[1:]}
    print(json.dumps(drawn | {"draws_per_s": 1000 * made.draws / statistics.median(call_ms[1:])}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
