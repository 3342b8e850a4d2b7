"""Training in several processes is the same run as in one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from flashmore import TrainConfig, resume, train
from flashmore.data.batches import IGNORE
from flashmore.errors import ConfigError
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.measuring.accuracy import judge_all
from flashmore.parallel import Ranks
from flashmore.runs import Run
from flashmore.training.corpus import read_corpus
from flashmore.training.dataset import Form
from flashmore.training.resolve import resolve_model
from flashmore.training.step import training_loss
from flashmore.training.trainer import Trainer
from forks import Forks
from rank_jobs import NAMES, SLICED, SMALL, in_ranks, job, same, tensors, words

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="starts and kills processes as Linux does")
CPU = torch.device("cpu")
LONG: dict[str, Any] = SMALL | {"max_steps": 100, "log_interval": 10, "eval_interval": 50}
TEXT: dict[str, Any] = {
    name: value for name, value in SMALL.items() if name not in ("ngram_smoothing", "optimizer")
} | {"mode": "text", "block_size": 12, "max_steps": 4}
GRADIENTS: dict[str, dict[str, Any]] = {
    "eager": {},
    "packed": {"speedups": ["pack", "fused-adamw"]},
    "smoothed": {"ngram_smoothing": 0.3},
    "accumulated": {"grad_accum": 4},
    "checkpointed": {"activation_checkpointing": True},
    "compiled and accumulated": {"model": "mlp", "speedups": ["compile"], "grad_accum": 2},
    "sharded": {"parallel": "fsdp"},
    "sharded and accumulated": {"parallel": "fsdp", "grad_accum": 2},
}
"""What computes gradients in several processes; packed and compiled steps are compared bit for bit."""


def losses(run: Path, *kinds: str) -> list[float]:
    """The losses of every logged step, and of the test part."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    found = [line[kind] for line in lines for kind in kinds or ("loss", "val_loss") if kind in line]
    return [*found, result["test_loss"]]


def once(factory: pytest.TempPathFactory, make: Callable[..., None], *needs: Any) -> Path:
    """A folder that `make` fills once, for all workers of pytest-xdist."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / make.__name__, base / f"{make.__name__}.done"
    with FileLock(base / f"{make.__name__}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder, *needs)
            done.touch()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, forks: Forks, alone: Path) -> Path:
    """Runs called KIND-RANKS of every kind of step, and one that was passed on from 1 to 4, 2 and 1.

    They are trained after those `alone`, whose compiled step is in the compiler's cache by then.
    """
    return once(tmp_path_factory, of_several_processes, forks)


def of_several_processes(folder: Path, forks: Forks) -> None:
    one = {name: SMALL | options | {"max_steps": 1} for name, options in GRADIENTS.items()}
    passed = folder / "passed"
    train(TrainConfig(**SLICED | {"max_steps": 5}), passed)
    in_ranks(
        forks,
        4,
        [
            job(folder, "long-4", **LONG),
            job(folder, "text-4", **TEXT),
            job(folder, "sliced-4", **SLICED),
            {"out": str(passed), "steps": 10, "changes": {}},
            job(folder, "modes", **SMALL | {"max_steps": 5}),
            {"out": str(folder / "sliced-4"), "count": 50},
        ],
        folder,
    )
    in_ranks(
        forks,
        2,
        [
            *(job(folder, f"{name}-2", **options) for name, options in one.items()),
            job(folder, "long-2", **LONG),
            job(folder, "sharded-long-2", **LONG | {"parallel": "fsdp"}),
            job(folder, "sliced-2", **SLICED),
            job(folder, "sliced and compiled-2", **SLICED | {"speedups": ["compile", "pack"]}),
            {"out": str(passed), "steps": 15, "changes": {}},
            {"out": str(folder / "modes"), "steps": 10, "changes": {"parallel": "fsdp"}},
            {"out": str(folder / "modes"), "steps": 15, "changes": {"parallel": "ddp"}},
            job(folder, "stopped", **one["eager"]) | {"stopped": 1},
            {"out": str(folder / "stopped"), "changes": {}},
        ],
        folder,
    )
    resume(passed, 20)
    resume(folder / "modes", 20, grad_accum=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in one process."""
    return once(tmp_path_factory, of_one_process)


def of_one_process(folder: Path) -> None:
    for name, options in {
        "long": LONG,
        "text": TEXT,
        "short": SMALL,
        "sliced": SLICED,
        "sliced and compiled": SLICED | {"speedups": ["compile", "pack"]},
    }.items():
        train(TrainConfig(**options), folder / name)


@pytest.mark.parametrize("kind", ["long-2", "long-4", "sharded-long-2"])
def test_losses_are_those_of_one_process(folder: Path, alone: Path, kind: str) -> None:
    assert losses(folder / kind) == pytest.approx(losses(alone / "long"), rel=1e-5)


def test_a_long_text_is_shared_as_well(folder: Path, alone: Path) -> None:
    assert losses(folder / "text-4") == pytest.approx(losses(alone / "text"), rel=1e-5)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_are_those_of_one_process_within_the_error_budget(folder: Path, kind: str) -> None:
    shared = {name: GRADIENTS[kind][name] for name in GRADIENTS[kind] if name in ("model", "ngram_smoothing")}
    config = TrainConfig(**SMALL | shared)
    found = {
        name.removeprefix("optimizer.exp_avg."): value / (1 - config.beta1)
        for name, value in tensors(folder / f"{kind}-2").items()
        if name.startswith("optimizer.exp_avg.")
    }
    plain, reference = (
        gradient_of(config, folder / f"{kind}-2", dtype) for dtype in (torch.float32, torch.float64)
    )
    clip = min(1.0, 1.0 / torch.cat([value.flatten() for value in reference.values()]).norm().item())
    plain, reference = ({name: clip * value for name, value in each.items()} for each in (plain, reference))
    assert [judged for judged in judge_all(found, plain, reference) if not judged.good] == []


def gradient_of(config: TrainConfig, path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The gradient of the first batch, by one backward pass."""
    run = Run.open(path)
    data = read_corpus(config).datasets(config, CPU).train
    trainer = Trainer(config, run.model, data, CPU)
    model, batch = trainer.model.to(dtype), trainer.batches(0)[0]
    if batch.soft_targets is not None:
        batch = replace(batch, soft_targets=batch.soft_targets.to(dtype))
    training_loss(model(batch.ids), batch, config.ngram_smoothing)[0].backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("kind", ["sliced-2", "sliced-4", "sliced and compiled-2"])
def test_slices_in_a_fixed_order_are_the_same_run_bit_for_bit(folder: Path, alone: Path, kind: str) -> None:
    assert same(folder / kind, alone / kind[:-2])
    assert losses(folder / kind) == losses(alone / kind[:-2])


def test_a_run_goes_on_on_another_number_of_processes_bit_for_bit(folder: Path, alone: Path) -> None:
    assert same(folder / "passed", alone / "sliced")


def test_a_run_goes_on_sharded_and_whole_again(folder: Path, alone: Path) -> None:
    # Each part ended with an evaluation of its own.
    assert losses(folder / "modes", "loss") == pytest.approx(losses(alone / "short", "loss"), rel=1e-5)


def test_a_run_stopped_in_its_final_evaluation_goes_on(folder: Path) -> None:
    assert losses(folder / "stopped") == losses(folder / "eager-2")


def test_names_are_those_that_one_process_draws(folder: Path) -> None:
    found = json.loads((folder / "sliced-4" / "names.json").read_text())
    made = asdict(generate(Run.open(folder / "sliced-4"), GenerateOptions(count=50, seed=5)))
    log_probs = [[name.pop("log_prob") for name in each["names"]] for each in (found, made)]
    assert found == made
    assert log_probs[0] == pytest.approx(log_probs[1], rel=1e-5)


def test_the_other_ranks_write_nothing(folder: Path, alone: Path) -> None:
    assert {path.name for path in (folder / "long-4").iterdir()} == {
        path.name for path in (alone / "long").iterdir()
    }


@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("form", ["padded", "trimmed", "packed"])
def test_the_slices_of_all_ranks_are_the_batch(size: int, form: Form) -> None:
    config = TrainConfig(**SMALL | {"batch_size": 192})
    data = read_corpus(config).datasets(config, CPU).train
    whole = data.batch(3, form)
    parts = [data.batch(3, form, part) for rank in range(size) for part in Ranks(rank, size).slices(config)]
    real = [batch.targets[batch.targets != IGNORE] for batch in (whole, *parts)]
    assert torch.equal(torch.cat(real[1:]), real[0])
    if size > 1:
        assert {int(part.characters) for part in parts if part.characters is not None} == {len(real[0])}


def test_dropout_is_seeded_by_the_step_and_the_slice() -> None:
    config = TrainConfig(**SLICED)
    corpus = read_corpus(config)
    model = replace(resolve_model(config, corpus), attention="manual")
    data = corpus.datasets(config, CPU).train

    def seeds(ranks: Ranks) -> list[int | None]:
        trainer = Trainer(config, model, data, CPU, ranks=ranks)
        return [batch.dropout_seed for step in range(3) for batch in trainer.batches(step)]

    alone, halves = seeds(Ranks()), [seeds(Ranks(rank, 2)) for rank in range(2)]
    assert len(set(alone)) == 12
    assert [halves[0][:2], halves[1][:2]] == [alone[:2], alone[2:4]]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"batch_size": 33}, "32 or 36"),
        ({"slices": 6}, "a multiple of 4, or no --slices"),
        ({"grad_accum": 3}, "12 or 24"),
    ],
)
def test_what_cannot_be_shared_equally_is_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Ranks(0, 4).slices(TrainConfig(**SMALL | options))


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces that reach each other as 10.213.0.1 and 10.213.0.2."""
    names = ("flashmore-1", "flashmore-2")
    ends = ("fm-1", "fm-2")
    lines = [f"netns add {name}" for name in names]
    lines.append(f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}")
    for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
        lines += [f"-n {name} addr add 10.213.0.{number}/24 dev {end}"]
        lines += [f"-n {name} link set {device} up" for device in (end, "lo")]
    try:
        for line in lines:
            done = subprocess.run(["ip", *line.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield names
    except FileNotFoundError:
        pytest.skip("no network namespaces here: ip is missing")
    finally:
        for name in names:
            with suppress(FileNotFoundError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_machines_train_the_run_of_one(hosts: tuple[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--master-addr", "10.213.0.1", "--master-port", "29517", "--node-rank"]
    arguments = ["-m", "flashmore", "train", *words(**SLICED | {"max_steps": 4}), "--out", "run"]
    machines = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *command, str(number), *arguments],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"fm-{number + 1}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, name in enumerate(hosts)
    ]
    for machine in machines:
        _, errors = machine.communicate(timeout=300)
        assert machine.returncode == 0, errors
    train(TrainConfig(**SLICED | {"max_steps": 4}), tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")


def test_a_step_of_64_ranks_is_set_up_and_made(forks: Forks, tmp_path: Path) -> None:
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    done = forks.run((program,), os.environ | {"NAMES": NAMES})
    assert done.stdout.split() == ["sliced", "sharded"], done.stderr


FAKE = """
import os
from dataclasses import replace
from torch import device, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from flashmore import TrainConfig
from flashmore.parallel import Ranks
from flashmore.training.corpus import read_corpus
from flashmore.training.resolve import resolve_model
from flashmore.training.trainer import Trainer
from flashmore.training.verify import verify

distributed.init_process_group("fake", rank=63, world_size=64, store=FakeStore())
config = TrainConfig(
    file=os.environ["NAMES"], n_layer=1, n_embd=16, n_head=2, batch_size=128, max_steps=9, optimizer="adamw",
    dropout=0.0, init="torch", ngram_smoothing=0.0, learning_rate=1e-3, warmup_steps=0, weight_decay=0.1,
    eval_interval=9,
)
corpus = read_corpus(config)
model = replace(resolve_model(config, corpus), attention="sdpa")
data = corpus.datasets(config, device("cpu")).train
for slices, parallel in ((64, "ddp"), (0, "fsdp")):  # the fake group does not support DistributedDataParallel
    changed = replace(config, slices=slices, parallel=parallel)
    trainer = Trainer(changed, model, data, device("cpu"), (), Ranks(63, 64, True))
    assert trainer.slices == ((63, 64),) and trainer.train_step().shape == ()
    print("sharded" if trainer.sharded else "sliced")
"""
