"""Shared by all comparisons with other programs: alternating processes, the result, the exit code."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flashmore.errors import FlashmoreError, UsageError
from flashmore.measuring.result import as_text

Record = Mapping[str, Any]


def run_python(words: list[str], threads: int, cwd: Path, further: Mapping[str, str] | None = None) -> str:
    """Run Python to its end with this many CPU threads, writing no bytecode; what it printed on stdout.

    Args:
        words: what follows `python` on the command line.
        threads: for OpenMP and MKL.
        cwd: the folder it runs in.
        further: variables of its environment.

    Raises:
        UsageError: it failed.
    """
    counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment = os.environ | counts | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(further or {})
    command = [sys.executable, *words]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no word on stderr"]
        raise UsageError(
            f"{' '.join(command[:4])} to run", f"exit {done.returncode}: {last[0]}", "a checkout that runs"
        )
    return done.stdout


def answer(compare: Callable[[], Record], show: Callable[[Record], None], *, as_json: bool) -> int:
    """Compare and print the record, or its figures with its ratio if there is one; the exit code."""
    try:
        record = compare()
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if as_json:
        print(as_text(record), end="")
        return 0
    show(record)
    if (value := record.get("ratio")) is not None:
        interval = f"95 % {value['low']:.2f} – {value['high']:.2f}"
        print(f"ratio {value['value']:.2f} ({interval}); above 1: {record['to']} is faster")
    return 0
