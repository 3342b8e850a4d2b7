"""A program for torchrun: every rank trains one run after the other, as a list in a JSON file says.

Each job has `out`, and either `config`, the options of a new run, or `changes`, those of a resumed one.
"""

import json
import sys
from pathlib import Path

from flashmore import TrainConfig, resume, train


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        if "config" in job:
            train(TrainConfig(**job["config"]), job["out"])
        else:
            resume(job["out"], job.get("steps"), **job["changes"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
