"""Every speed-up is what the catalogue says of it: exact ones train as the plain loop does."""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE
from flashmore.errors import Interrupted
from flashmore.models.transformer import Dropout
from flashmore.runs import Run
from flashmore.speedups import CATALOGUE, EXACT, NUMERICS, changed
from flashmore.training.compiled.flat import FlatStep
from flashmore.training.corpus import read_corpus
from flashmore.training.dataset import Batch
from flashmore.training.decide import why_not
from flashmore.training.fit import fit
from flashmore.training.loop import Observer, resume, train
from flashmore.training.resolve import resolve_model, resolve_speed
from flashmore.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NAMES = tuple(map("".join, product("bdmnrst", "aeio", ("n", "ra", "la", "mo", "lo", "nina", ""))))
STEPS = 10
SLOW = ("compile", "max-autotune")
"""What waits for the compiler."""
Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    config = TrainConfig(
        file=path, device="cpu", n_layer=1, n_embd=16, n_head=2, dropout=0.0, optimizer="adamw",
        batch_size=8, max_steps=STEPS, warmup_steps=2, learning_rate=6e-3, weight_decay=0.1,
    )  # fmt: skip
    return fit(config, read_corpus(config))[0]


@pytest.fixture(scope="module")
def make(config: TrainConfig) -> Make:
    """Build a trainer from names of speed-ups and changes of the config."""
    corpus = read_corpus(config)

    def build(*names: str, double: bool = False, **changes: Any) -> Trainer:
        asked = replace(changed(config, names), **changes)
        model_config = resolve_model(asked, corpus)
        data = corpus.datasets(asked, CPU).train
        was = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64 if double else torch.float32)
        try:
            return resolve_speed(asked, model_config, CPU, data).trainer(data)
        finally:
            torch.set_default_dtype(was)

    return build


def losses(trainer: Trainer, steps: int = STEPS) -> list[float]:
    return [trainer.train_step().item() for _ in range(steps)]


def with_needs(name: str) -> tuple[str, ...]:
    return (*CATALOGUE[name].needs, name)


def works_here(name: str, config: TrainConfig) -> bool:
    return why_not(name, config, resolve_model(config, read_corpus(config)), CPU) is None


def exact(*, slow: bool) -> list[str]:
    return [
        name
        for name, entry in CATALOGUE.items()
        if entry.exactness == EXACT and not entry.always and (name in SLOW) == slow
    ]


# The catalogue itself.


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_names_a_test_that_exists(name: str) -> None:
    file, _, test = CATALOGUE[name].test.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {test}\(", text, re.MULTILINE) if test else "def test_" in text


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_is_whole(name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.page.startswith("https://")
    assert set(entry.devices) <= {"cpu", "cuda", "mps"}
    assert all((entry.title, entry.why, entry.costs, entry.devices))
    assert {*entry.needs, *entry.excludes} <= set(CATALOGUE)
    assert not {*entry.needs} & {*entry.excludes}


def test_exclusion_goes_both_ways() -> None:
    pairs = {frozenset((name, other)) for name, entry in CATALOGUE.items() for other in entry.excludes}
    for one, other in pairs:
        assert other in CATALOGUE[one].excludes or one in CATALOGUE[other].excludes


# Batches.


def rows_of(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The real ids and targets of every item, in their order."""
    if batch.segments is None:
        return [
            (tuple(ids[real].tolist()), tuple(targets[real].tolist()))
            for ids, targets, real in zip(batch.ids, batch.targets, batch.targets != IGNORE, strict=True)
        ]
    lengths = batch.segments.real.view(batch.segments.rows, -1).sum(1).tolist()
    pieces = zip(torch.split(batch.ids, lengths), torch.split(batch.targets, lengths), strict=True)
    return [(tuple(ids.tolist()), tuple(targets.tolist())) for ids, targets in pieces]


@pytest.mark.parametrize("name", ["trim", "pack"])
def test_batches_are_the_same_in_every_form(name: str, make: Make) -> None:
    plain, other = make(), make(name)
    for step in (0, 1, 17, 50):  # beyond an epoch too
        assert rows_of(plain.batches(step)[0]) == rows_of(other.batches(step)[0])


def test_trimmed_rows_are_as_long_as_the_longest_and_packed_ones_have_no_padding(make: Make) -> None:
    for step in range(20):
        longest = max(len(ids) for ids, _ in rows_of(make().batches(step)[0]))
        assert make("trim").batches(step)[0].ids.size(1) == longest
        assert (make("pack").batches(step)[0].targets != IGNORE).all()


# Exactness.


def after_one_step(trainer: Trainer) -> dict[str, Tensor]:
    trainer.train_step()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def must_train_alike(make: Make, names: tuple[str, ...], **changes: Any) -> None:
    """In float64, where only a wrong formula shows: weights after one update, and losses over ten."""
    plain, other = make(double=True), make(*names, double=True, **changes)
    assert plain.model is not other.model
    first, second = after_one_step(plain), after_one_step(other)
    for name, weights in first.items():
        if name.endswith("c_attn.bias"):  # the keys' part has no gradient but rounding, and no effect
            continue
        assert torch.allclose(second[name], weights, rtol=1e-6, atol=1e-9), name
    assert losses(other) == pytest.approx(losses(plain), rel=1e-8)


@pytest.mark.parametrize("name", [*exact(slow=False), "all but compile"])
def test_gradients_are_those_of_the_plain_loop(name: str, make: Make, config: TrainConfig) -> None:
    together = tuple(n for n in exact(slow=False) if n != "trim" and works_here(n, config))
    if name != "all but compile" and not works_here(name, config):
        pytest.skip(f"{name} does not work here")
    must_train_alike(make, together if name == "all but compile" else with_needs(name))


@pytest.mark.parametrize(
    "name",
    [
        "all and compile",
        pytest.param("compile", marks=pytest.mark.long),
        pytest.param("max-autotune", marks=pytest.mark.long),
    ],
)
def test_compiled_gradients_are_those_of_the_plain_loop(name: str, make: Make, config: TrainConfig) -> None:
    if not works_here("compile", config):
        pytest.skip("no compiler here")
    together = tuple(n for n in exact(slow=False) if n != "trim" and works_here(n, config))
    # Compiled by torch 2.11, the CPU's flash kernel takes no float64.
    changes = {"attention": "math"} if torch.__version__.startswith("2.11") else {}
    must_train_alike(
        make, (*together, "compile") if name == "all and compile" else with_needs(name), **changes
    )


@pytest.mark.parametrize("name", [n for n, entry in CATALOGUE.items() if entry.exactness == NUMERICS])
def test_numerics_stay_close(name: str, make: Make, config: TrainConfig) -> None:
    if not works_here(name, config):
        pytest.skip(f"{name} does not work here")
    plain, other = make(max_steps=40), make(name, max_steps=40)
    expected, found = losses(plain, 40), losses(other, 40)
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected, "nothing was changed"


@pytest.mark.long
def test_math_in_16_bit_can_be_compiled(make: Make, config: TrainConfig) -> None:
    """`auto` may choose it there; under autocast each of its operations would have a precision of its own."""
    if not works_here("compile", config):
        pytest.skip("no compiler here")
    eager, compiled = (
        make(*names, attention="math", dtype="bfloat16") for names in ((), ("pack", "compile"))
    )
    assert losses(compiled, 3) == pytest.approx(losses(eager, 3), rel=0.01)


# Compiled steps of one process.


@pytest.mark.long
def test_every_compiled_step_has_its_own_graph(make: Make) -> None:
    """The second one must not run the first one's, which has other constants in it."""
    for changes in ({}, {"grad_clip": 0.05, "beta2": 0.8}, {"weight_decay": 0.5}):
        plain, compiled = make(**changes), make("compile", **changes)
        assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.long
def test_evaluating_in_the_middle_changes_nothing_and_sees_the_new_weights(make: Make) -> None:
    """A compiled step's weights lie in a buffer of its own; the model must show every update."""
    undisturbed, trainer, eager = (make(*names) for names in (COMPILED, COMPILED, ()))
    assert isinstance(trainer.step, FlatStep)
    expected = losses(undisturbed, 4)
    found: list[float] = []
    for _ in range(2):
        found += losses(trainer, 2)
        losses(eager, 2)
        assert trainer.evaluate(trainer.data) == pytest.approx(eager.evaluate(trainer.data), rel=1e-4)
    assert found == expected


COMPILED = ("pack", "compile")


# Resuming.


class Stop(Observer):
    """Ends the run after some steps, as Ctrl-C does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("names", [("pack",), pytest.param(COMPILED, marks=pytest.mark.long)])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_went_through(
    names: tuple[str, ...], config: TrainConfig, tmp_path: Path
) -> None:
    chosen = replace(config, speedups=names, dropout=0.1, log_interval=1, eval_interval=5, attention="flash")
    whole = train(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "cut", Stop(3))
    torch.rand(5)
    resumed = resume(tmp_path / "cut")
    assert resumed.test_loss == whole.test_loss
    first, second = (load_file(max((tmp_path / run).glob("step-*"))) for run in ("whole", "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Run.open(tmp_path / "cut").config["speedups"] == [*names]


# Dropout in a graph.


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_in_a_graph_keeps_the_mean_and_drops_its_share(p: float) -> None:
    torch.manual_seed(0)
    dropout = Dropout(p).train()
    x = torch.ones(400, 500)
    y = torch.compile(dropout, backend="eager", fullgraph=True)(x)
    zeros = (y == 0).float().mean().item()
    assert zeros == pytest.approx(p, abs=0.01)  # 200,000 draws: a deviation of about 0.001
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)])
    assert torch.equal(dropout.eval()(x), x)
