"""Ranks for tests, and the program of each: it does one job after the other, as a JSON file lists.

Each job has `out`, and either `config`, the options of a new run, or `changes`, those of a resumed one; or
`count`, for so many names of it, which rank 0 writes to its `names.json`; or `bench`, a benchmark's name, for
the record that rank 0 writes, or its error. If that is `wrong`, the ranks take the mean of their gradients
instead of the sum; `alike` is a file for whether the weights of each model were the same on all ranks. A new
run with `stopped` is stopped by a signal to that rank during the final evaluation.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from flashmore import TrainConfig, resume, train
from flashmore.benchmark.ablation import bench as ablation
from flashmore.benchmark.step import bench as step
from flashmore.benchmark.variant import Timing
from flashmore.errors import Interrupted, RankStopped, UsageError
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.measuring.result import write_record
from flashmore.parallel import Ranks, connected
from flashmore.runs import Run
from flashmore.training.dataset import Batch
from flashmore.training.step import EagerStep
from flashmore.training.trainer import Trainer
from forks import Forked, Forks

NAMES = str(Path(__file__).parent / "golden" / "names.txt")
SMALL: dict[str, Any] = {
    "file": NAMES, "n_layer": 1, "n_embd": 16, "n_head": 2, "init": "torch", "max_steps": 20,
    "eval_interval": 10, "log_interval": 1, "batch_size": 16, "learning_rate": 1e-3,
    "lr_schedule": "constant", "warmup_steps": 0, "weight_decay": 0.1, "dropout": 0.0, "ngram_smoothing": 0.0,
    "optimizer": "adamw", "patience": 0, "speedups": "none", "device": "cpu", "threads": 1,
    "attention": "flash",  # a measured choice may differ
}  # fmt: skip
SLICED: dict[str, Any] = SMALL | {"slices": 4, "dropout": 0.2}


def in_ranks(forks: Forks, ranks: int, jobs: list[dict[str, Any]], folder: Path) -> None:
    """Do one job after the other in so many processes; no warning may come up."""
    listed = folder / f"jobs-{time.monotonic_ns()}.json"
    listed.write_text(json.dumps(jobs))
    program = (__file__, str(listed))
    started = Started(forks, folder, *[program] * ranks, LOCAL_WORLD_SIZE=str(ranks))
    for code, output in started.ends():
        assert code == 0, output


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
    """The ranks of one command, each started by hand as torchrun starts them, but forked.

    torchrun adds reports of its own to what they print; and here each may have its own options. With two
    machines, the last rank seems to be on the second one.
    """

    def __init__(
        self, forks: Forks, folder: Path, *words: tuple[str, ...], machines: int = 1, **variables: str
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(words))}
        self.ranks: list[Forked] = []
        self.outputs: list[TextIO] = []
        for rank, each in enumerate(words):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            own["GROUP_RANK"] = str(int(machines == 2 and rank == len(words) - 1))
            ours, theirs = os.pipe()
            self.outputs.append(open(ours, encoding="utf-8"))  # noqa: PTH123, SIM115
            with Path(os.devnull).open() as nothing:
                streams = (nothing.fileno(), theirs, theirs)
                environment = os.environ | common | own | variables
                self.ranks.append(forks.start(each, environment, streams, folder, beside=True))
            os.close(theirs)

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a rank."""
        os.kill(self.ranks[rank].pid, number)

    def stop(self) -> None:
        """End those that have not ended."""
        for number, rank in enumerate(self.ranks):
            if not rank.ended(0):
                self.send(number, signal.SIGKILL)
                rank.wait()
            self.outputs[number].close()

    def ends(self) -> list[tuple[int, str]]:
        """Exit code and output of each rank."""
        outputs = [output.read() for output in self.outputs]
        codes = [rank.wait() for rank in self.ranks]
        self.stop()
        return [*zip(codes, outputs, strict=True)]


def words(**options: Any) -> tuple[str, ...]:
    listed = {name: value for name, value in options.items() if name != "file"}
    return (
        NAMES,
        *(word for name, value in listed.items() for word in (f"--{name.replace('_', '-')}", str(value))),
    )


BENCHES: dict[str, tuple[ModuleType, Callable[..., dict[str, Any]]]] = {
    "step": (step, step.bench_steps),
    "ablation": (ablation, ablation.ablate),
}
backward, made_trainer = EagerStep._backward, Trainer.__init__


def of_a_mean(step: EagerStep, batch: Batch) -> Tensor:
    step.ranks = replace(step.ranks, size=1)
    return backward(step, batch)


def recorded(self: Trainer, made: list[Trainer], *values: Any, **options: Any) -> None:
    """Make a trainer, and keep it if all ranks have one."""
    made_trainer(self, *values, **options)
    if self.ranks.size > 1:
        made.append(self)


def same_on_all(ranks: Ranks, trainer: Trainer) -> bool:
    total = sum(parameter.double().sum().item() for parameter in trainer.model.parameters())
    (most,), (least,) = ranks.largest(total), ranks.largest(-total)
    return most == -least


def measure(job: dict[str, Any]) -> None:
    module, bench = BENCHES[job["bench"]]
    made: list[Trainer] = []
    with (
        connected("cpu") as ranks,
        patch.object(module, "BLOCK_SECONDS", 1e-3),
        patch.object(Trainer, "__init__", partialmethod(recorded, made)),
        patch.object(EagerStep, "_backward", of_a_mean) if "wrong" in job else nullcontext(),
    ):
        try:
            timing = Timing(job["blocks"])
            record = bench(TrainConfig(**job["config"]), timing=timing, **job["options"])
        except UsageError as error:
            Path(job["out"]).write_text(str(error), encoding="utf-8")
            return
        except RankStopped:  # rank 0 has written it
            return
        alike = [same_on_all(ranks, trainer) for trainer in made] if "alike" in job else []
        if ranks.rank == 0:
            write_record(record, Path(job["out"]))
        if alike and ranks.rank == 0:
            Path(job["alike"]).write_text(json.dumps(alike), encoding="utf-8")


@contextmanager
def stopped(number: int) -> Iterator[None]:
    """A signal to a rank when it loads the best weights, by which every rank must stop."""

    def load(*values: Any) -> dict[str, Tensor]:
        if os.environ["RANK"] == str(number):
            os.kill(os.getpid(), signal.SIGTERM)
        return loaded(*values)

    loaded = Run.load_weights
    try:
        with patch.object(Run, "load_weights", load):
            yield
    except (Interrupted, RankStopped) as error:
        assert "by SIGTERM at step" in error.found  # noqa: PT017
    else:
        raise AssertionError("the signal had no effect")


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        if "count" in job:
            with connected("cpu") as ranks:
                made = generate(
                    Run.open(job["out"]), GenerateOptions(count=job["count"], seed=5), ranks=ranks
                )
            if ranks.rank == 0:
                Path(job["out"], "names.json").write_text(json.dumps(asdict(made)), encoding="utf-8")
        elif "bench" in job:
            measure(job)
        elif "config" in job:
            with stopped(job["stopped"]) if "stopped" in job else nullcontext():
                train(TrainConfig(**job["config"]), job["out"])
        else:
            resume(job["out"], job.get("steps"), **job["changes"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
