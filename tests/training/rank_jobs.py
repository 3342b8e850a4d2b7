"""A program for torchrun: every rank trains one run after the other, as a list in a JSON file says.

Each job has `out`, and either `config`, the options of a new run, or `changes`, those of a resumed one; or
`count`, for so many names of it, which rank 0 writes to its `names.json`.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from flashmore import TrainConfig, resume, train
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.parallel import connected
from flashmore.runs import Run


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        if "count" in job:
            with connected("cpu") as ranks:
                made = generate(
                    Run.open(job["out"]), GenerateOptions(count=job["count"], seed=5), ranks=ranks
                )
            if ranks.rank == 0:
                Path(job["out"], "names.json").write_text(json.dumps(asdict(made)), encoding="utf-8")
        elif "config" in job:
            train(TrainConfig(**job["config"]), job["out"])
        else:
            resume(job["out"], job.get("steps"), **job["changes"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
