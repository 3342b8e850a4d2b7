"""Training keeps its promises on real data: losses, resuming, checkpoints, results."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashmore.errors import Interrupted, RecipeError, RunError, TrainingFailed
from flashmore.runs import Run
from flashmore.training.loop import Silent, resume, train
from flashmore.training.recipe import Recipe, recipe_for
from flashmore.training.session import Session

SMALL = replace(
    recipe_for(), channels=16, heads=2, layers=2, steps=12, eval_every=4, log_every=1, batch=8, device="cpu"
)


class PressCtrlC(Silent):
    """Sends this process the signal of Ctrl-C once a step is done."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return Run.open(run).load_checkpoint(name).weights  # type: ignore[arg-type]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("model", ["bigram", "mlp", "bow", "rnn", "gru", "lstm", "wavenet", "transformer"])
def test_every_model_learns(model: str, tmp_path: Path) -> None:
    recipe = replace(recipe_for(model), steps=60, eval_every=60, log_every=1, warmup=5)  # type: ignore[arg-type]
    result = train(recipe, tmp_path / "run")
    first = Run.open(tmp_path / "run").read_metrics()[0]["loss"]
    assert result.test_loss is not None
    assert result.test_loss < first - 0.3
    assert result.model == model


@pytest.mark.parametrize("stop_at", [1, 6, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    stop_at: int, dropout: float, tmp_path: Path
) -> None:
    recipe = replace(SMALL, dropout=dropout)
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted, match="--resume"):
        train(recipe, tmp_path / "cut", PressCtrlC(stop_at))
    torch.rand(7)  # what happens to the random numbers in between must not matter
    resumed = resume(tmp_path / "cut")

    for name in ("last", "best"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "cut", name))
    assert resumed.test_loss == whole.test_loss
    left, right = (
        [
            (line["step"], line["loss"], line.get("val_loss"))
            for line in Run.open(tmp_path / run).read_metrics()
        ]
        for run in ("whole", "cut")
    )
    assert left == right
    optimizers = [
        Run.open(tmp_path / run).load_checkpoint("last").optimizer["step"]["optimizers"][0]
        for run in ("whole", "cut")
    ]
    for index, state in optimizers[0]["state"].items():
        assert same(state, optimizers[1]["state"][index])


def test_a_killed_run_forgets_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "whole")
    command = [sys.executable, "-m", "flashmore.cli.main", "train", "--out", str(tmp_path / "cut")]
    options = {
        "channels": 16,
        "heads": 2,
        "layers": 2,
        "steps": 12,
        "eval-every": 4,
        "log-every": 1,
        "batch": 8,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    metrics = tmp_path / "cut" / "metrics.jsonl"
    with subprocess.Popen([*command, *words, "--device", "cpu"], stderr=subprocess.DEVNULL) as process:
        while not metrics.exists() or metrics.read_text().count("\n") < 7:
            assert process.poll() is None or metrics.exists()
            time.sleep(0.001)
        process.kill()
    with metrics.open("a") as file:
        file.write('{"step": 999, "lo')
    resume(tmp_path / "cut", steps=12)
    assert [line["step"] for line in Run.open(tmp_path / "cut").read_metrics()] == list(range(1, 13))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_steps_may_grow_and_never_shrink(tmp_path: Path) -> None:
    train(replace(SMALL, schedule="constant"), tmp_path / "whole")
    train(replace(SMALL, schedule="constant", steps=8), tmp_path / "short")
    with pytest.raises(RecipeError, match="8 steps are done"):
        resume(tmp_path / "short", steps=7)
    resume(tmp_path / "short", steps=12)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "short"))


def test_the_best_weights_are_those_with_the_lowest_validation_loss(tmp_path: Path) -> None:
    # Random letters can only be memorised: it soon overfits, so that the best is not the last.
    letters = random.Random(0)
    names = ["".join(letters.choices("abcdefgh", k=5)) for _ in range(60)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    recipe = replace(
        SMALL, file=tmp_path / "names.txt", lr=3e-2, schedule="constant", steps=120, eval_every=5
    )
    result = train(recipe, tmp_path / "run")
    lines = [line for line in Run.open(tmp_path / "run").read_metrics() if "val_loss" in line]
    best = min(lines, key=lambda line: line["val_loss"])
    assert Run.open(tmp_path / "run").load_checkpoint("best").state["step"] == best["step"] < 120
    assert result.val_loss == pytest.approx(best["val_loss"], rel=1e-6)


def test_the_backends_train_alike(tmp_path: Path) -> None:
    """Same seed, 200 steps: the loss curves of manual and flash agree to 1e-4 relative in float32."""
    curves = []
    for backend in ("manual", "flash"):
        recipe = Recipe(attention=backend, steps=200, eval_every=200, log_every=1, device="cpu")
        train(recipe, tmp_path / backend)
        curves.append([line["loss"] for line in Run.open(tmp_path / backend).read_metrics()])
    assert len(curves[0]) == 200
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0] != curves[1], "both ran the same kernel"


def test_bigram_reaches_the_closed_form(tmp_path: Path) -> None:
    """Counting gives the table with the lowest loss on what was counted; training must come within 0.002."""
    train(replace(recipe_for("bigram"), split="100/0/0"), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    pairs = Counter(pair for name in run.split.train for pair in zip("." + name, name + ".", strict=True))
    firsts = Counter(first for name in run.split.train for first in "." + name)
    total = sum(pairs.values())
    closed = -sum(count * math.log(count / firsts[first]) for (first, _), count in pairs.items()) / total

    table = weights(tmp_path / "run")
    logits = next(iter(table.values())).double()
    log_probs = logits.log_softmax(-1)
    ids = {character: id for id, character in enumerate((".", *run.vocabulary.characters))}
    trained = -sum(count * float(log_probs[ids[a], ids[b]]) for (a, b), count in pairs.items()) / total
    assert closed <= trained <= closed + 0.002


def test_makemores_split_reports_its_leak_and_keeps_the_last_weights(tmp_path: Path) -> None:
    names = [f"{first}{second}" for first in "abcdefghij" for second in "aeiou"] * 2
    (tmp_path / "names.txt").write_text("\n".join(names))
    result = train(replace(SMALL, file=tmp_path / "names.txt", split="makemore"), tmp_path / "run")
    assert result.leak_share is not None
    assert 0 < result.leak_share <= 1
    assert result.val_loss is None
    assert not Run.open(tmp_path / "run").has_checkpoint("best")
    assert {"leak_share", "test_loss_unleaked"} <= result.to_json().keys()


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    recipe = replace(SMALL, steps=400, lr=1e18, clip=0.0, warmup=0, schedule="constant")
    with pytest.raises(TrainingFailed, match="--lr"):
        train(recipe, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert all(math.isfinite(line["loss"]) for line in run.read_metrics())


def test_nothing_is_written_when_the_recipe_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="divide"):
        train(replace(SMALL, heads=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_never_overwritten(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="--resume"):
        train(SMALL, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_training_stays_near_float32(dtype: str, tmp_path: Path) -> None:
    losses = {
        name: train(replace(SMALL, steps=40, dtype=name), tmp_path / name).test_loss  # type: ignore[arg-type]
        for name in ("float32", dtype)
    }
    assert losses[dtype] == pytest.approx(losses["float32"], rel=0.02)


def test_tensorboard_events_stand_beside_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(SMALL, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    lines = {line["step"]: line["loss"] for line in Run.open(tmp_path / "run").read_metrics()}
    assert logged == pytest.approx(lines)


def test_the_result_stands_in_the_run(tmp_path: Path) -> None:
    result = train(SMALL, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()).items() >= result.to_json().items()


def test_the_session_settles_auto_before_training(tmp_path: Path) -> None:
    class Ask(Silent):
        def started(self, session: Session) -> None:
            assert session.choice is not None
            assert session.choice.backend == session.run.model.attention != "auto"
            assert session.choice.why

    assert train(SMALL, tmp_path / "run", Ask()).attention != "auto"


@pytest.mark.long
@pytest.mark.comparison
@pytest.mark.parametrize(("steps", "bound"), [(1000, 2.16), (3000, 2.08)])
def test_makemores_own_training_reaches_makemores_losses(
    steps: int, bound: float, comparison_data: Path, tmp_path: Path
) -> None:
    recipe = replace(
        recipe_for("transformer", "makemore"),
        file=comparison_data / "makemore-names.txt",
        split="makemore",
        steps=steps,
    )
    result = train(recipe, tmp_path / "run")
    assert result.test_loss is not None
    assert result.test_loss <= bound
    assert result.parameters == 204_544
    assert result.leak_share == pytest.approx(0.153)
