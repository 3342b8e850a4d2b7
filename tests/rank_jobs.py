"""Ranks for tests, and a program for torchrun: every rank does one job after the other, as a JSON file lists.

Each job has `out`, and either `config`, the options of a new run, or `changes`, those of a resumed one; or
`count`, for so many names of it, which rank 0 writes to its `names.json`.
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flashmore import TrainConfig, resume, train
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.parallel import connected
from flashmore.runs import Run

NAMES = str(Path(__file__).parent / "golden" / "names.txt")
SMALL: dict[str, Any] = {
    "file": NAMES, "n_layer": 1, "n_embd": 16, "n_head": 2, "max_steps": 20, "eval_interval": 10,
    "log_interval": 1, "batch_size": 16, "learning_rate": 1e-3, "lr_schedule": "constant", "warmup_steps": 0,
    "weight_decay": 0.1, "dropout": 0.0, "ngram_smoothing": 0.0, "optimizer": "adamw", "patience": 0,
    "speedups": "none", "device": "cpu", "threads": 1,
}  # fmt: skip
SLICED: dict[str, Any] = SMALL | {"slices": 4, "dropout": 0.2}


def torchrun(ranks: int, jobs: list[dict[str, Any]], folder: Path) -> None:
    """Do one job after the other in so many processes; no warning may come up."""
    listed = folder / f"jobs-{time.monotonic_ns()}.json"
    listed.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [*command, str(listed)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


def job(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    return {"out": str(folder / name), "config": options}


def tensors(run: Path) -> dict[str, Tensor]:
    """Weights and optimizer of the newest checkpoint."""
    return load_file(sorted(run.glob("*.safetensors"))[-1])


def same(one: Path, other: Path) -> bool:
    pair = tensors(one), tensors(other)
    return pair[0].keys() == pair[1].keys() and all(
        torch.equal(pair[0][name], pair[1][name]) for name in pair[0]
    )


class Started:
    """The ranks of one command, each started by hand as torchrun starts them.

    torchrun adds reports of its own to what they print; and here each may have its own options. With two
    machines, the last rank seems to be on the second one.
    """

    def __init__(self, folder: Path, *words: tuple[str, ...], machines: int = 1, **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(words))}
        self.ranks = [
            subprocess.Popen(
                [sys.executable, *each],
                cwd=folder,
                env=os.environ
                | common
                | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
                | {"GROUP_RANK": str(int(machines == 2 and rank == len(words) - 1))}
                | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, each in enumerate(words)
        ]

    def stop(self) -> None:
        """End those that have not ended."""
        for rank in self.ranks:
            rank.kill()
            rank.wait()

    def ends(self) -> list[tuple[int, str]]:
        """Exit code and output of each rank."""
        outputs = [rank.communicate(timeout=300)[0] for rank in self.ranks]
        return [(rank.returncode, output) for rank, output in zip(self.ranks, outputs, strict=True)]


def words(**options: Any) -> tuple[str, ...]:
    listed = {name: value for name, value in options.items() if name != "file"}
    return (
        NAMES,
        *(word for name, value in listed.items() for word in (f"--{name.replace('_', '-')}", str(value))),
    )


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
