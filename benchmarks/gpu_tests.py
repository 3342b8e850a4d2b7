"""Run the tests marked `cuda` and print their outcomes as one JSON document; a part of gpu.py.

python benchmarks/gpu_tests.py [PATH…]
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from flashmore.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]


class Outcomes:
    """A plugin of pytest that keeps what became of every test."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"passed": 0, "skipped": {}, "failed": {}}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test that passed; of the others keep the reason, in the words of pytest."""
        if report.failed:
            self.found["failed"][report.nodeid] = str(report.longrepr)[-2000:]
        elif report.skipped:
            self.found["skipped"][report.nodeid] = str(report.longrepr[-1])
        elif report.when == "call":
            self.found["passed"] += 1


def main() -> int:
    """Run the tests; 0 if there are any and none failed."""
    try:
        import pytest
    except ImportError:
        error = UsageError("pytest for the tests", "it is not installed", "pip install -e '.[dev]'")
        print(error, file=sys.stderr)
        return error.exit_code
    outcomes = Outcomes()
    words = [str(ROOT / path) for path in sys.argv[1:] or ["tests"]]
    with contextlib.redirect_stdout(sys.stderr):
        code = int(pytest.main([*words, f"--rootdir={ROOT}", "-m", "cuda", "-q"], plugins=[outcomes]))
    failed = outcomes.found["failed"]
    print(json.dumps(outcomes.found | {"complete": code in (0, 1)}))
    if failed:
        print(f"{len(failed)} tests failed: {', '.join(failed)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
