"""Steps that are recorded as a CUDA graph train as the plain loop does, whatever one replay holds."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from flashmore.config import TrainConfig
from flashmore.runs import Run
from flashmore.training.compiled.cuda_graph import CudaGraphStep
from flashmore.training.compiled.flat import FlatStep
from flashmore.training.corpus import read_corpus
from flashmore.training.loop import resume, train
from flashmore.training.resolve import resolve, resolve_device
from flashmore.training.trainer import REPLAYED, Trainer

NAMES = tuple(map("".join, product("bdmnrst", "aeio", ("n", "ra", "la", "mo", "lo", "nina", ""))))
GRAPHS = (("cuda-graph",), ("cuda-graph", "replay"), ("cuda-graph", "replay", "compile"))
Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Build a trainer on a device from names of speed-ups and changes of the config."""
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")

    def build(device: Literal["cpu", "cuda"], *names: str, **changes: Any) -> Trainer:
        config = TrainConfig(
            file=path,
            device="cpu",
            n_layer=1,
            n_embd=16,
            n_head=2,
            batch_size=8,
            max_steps=100,
            warmup_steps=2,
            dropout=0.0,
            optimizer="adamw",
        )
        config = replace(config, device=device, speedups=names or ("none",), attention="manual", **changes)
        corpus = read_corpus(config)
        resolved = resolve(config, corpus, resolve_device(device))
        return resolved.trainer(corpus.datasets(resolved.config, resolved.device).train)

    return build


def losses(trainer: Trainer, steps: int, most: int = 1) -> list[float]:
    """The loss that each call of `train_step` gives."""
    found = []
    while trainer.done < steps:
        found.append(trainer.train_step(min(most, steps - trainer.done)).item())
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_function_that_is_recorded_trains_as_the_plain_loop(
    optimizer: str, clip: float, make: Make
) -> None:
    """On the CPU too: one flat buffer, a gradient by torch.func, one kernel for AdamW."""
    plain, flat = (make("cpu", optimizer=optimizer, grad_clip=clip) for _ in range(2))
    flat.step = FlatStep(flat.model, flat.config, flat.device, mode=None)
    tolerance = 1e-4 if optimizer == "adamw" else 5e-3  # PyTorch's own Muon multiplies in bfloat16
    assert losses(flat, 20) == pytest.approx(losses(plain, 20), rel=tolerance)


@pytest.mark.parametrize("most", [1, 7, 30])
def test_without_a_graph_every_call_is_one_update(most: int, make: Make) -> None:
    one, many = make("cpu"), make("cpu")
    assert losses(many, 12, most) == losses(one, 12)


@pytest.mark.cuda
@pytest.mark.parametrize("names", GRAPHS, ids="+".join)
def test_a_captured_step_trains_as_the_plain_loop(names: tuple[str, ...], make: Make) -> None:
    plain = losses(make("cuda"), 3 * REPLAYED + 5)
    captured = make("cuda", *names)
    assert losses(captured, 3 * REPLAYED + 5) == pytest.approx(plain, rel=1e-4)


@pytest.mark.cuda
def test_a_replay_of_several_steps_is_those_steps_and_never_more_than_asked(make: Make) -> None:
    plain = losses(make("cuda"), 2 * REPLAYED + 3)
    replayed = make("cuda", "cuda-graph", "replay")
    found = losses(replayed, 2 * REPLAYED + 3, most=REPLAYED + 2)
    ends = [REPLAYED, 2 * REPLAYED, *range(2 * REPLAYED + 1, 2 * REPLAYED + 4)]
    assert found == pytest.approx([plain[end - 1] for end in ends], rel=1e-4)


@pytest.mark.cuda
def test_recording_changes_neither_weights_nor_random_numbers(make: Make) -> None:
    trainer = make("cuda", "cuda-graph", dropout=0.2)
    weights = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    random = torch.cuda.get_rng_state()
    assert isinstance(trainer.step, CudaGraphStep)
    trainer.step._record([trainer.batches(0)[0]])
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert all(torch.equal(p, was) for p, was in zip(trainer.model.parameters(), weights, strict=True))


@pytest.mark.cuda
def test_dropout_differs_from_replay_to_replay(make: Make) -> None:
    trainer = make("cuda", "cuda-graph", dropout=0.5, learning_rate=0.0, lr_schedule="constant")
    batches = [replace(trainer.batches(0)[0], dropout_seed=seed) for seed in range(8)]
    assert len({trainer.step([[batch]], [(0.0, 0.0)]).item() for batch in batches}) > 1


@pytest.mark.cuda
def test_a_run_ends_at_its_last_step_and_can_be_resumed(make: Make, tmp_path: Path) -> None:
    config = make("cuda").config
    config = replace(
        config, speedups=("cuda-graph", "replay"), max_steps=27, log_interval=10, eval_interval=25
    )
    whole = train(config, tmp_path / "whole")
    assert [line["step"] for line in Run.open(tmp_path / "whole").read_metrics()] == [10, 20, 25, 27]
    train(replace(config, max_steps=11), tmp_path / "cut")
    resumed = resume(tmp_path / "cut", steps=27)
    assert resumed.steps == 27
    assert resumed.test_loss == pytest.approx(whole.test_loss, rel=1e-3)
