"""Training keeps its promises on real data: losses, resuming, checkpoints, results."""

import json
import math
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, Interrupted, RunError, TrainingFailed
from flashmore.runs import Run
from flashmore.specs import models
from flashmore.training.loop import Observer, resume, train
from flashmore.training.session import Session
from flashmore.training.trainer import Trainer
from forks import Forks

NAMES = Path(__file__).parents[1] / "golden" / "names.txt"
"""Every 20th of the built-in names, of which the soft targets alone take a second."""
SMALL = replace(
    TrainConfig(file=NAMES),
    n_embd=16,
    n_head=2,
    n_layer=2,
    max_steps=12,
    eval_interval=4,
    log_interval=1,
    batch_size=8,
    device="cpu",
)


class PressCtrlC(Observer):
    """Sends this process the signal of Ctrl-C once a step is done."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def weights(run: Path) -> dict[str, torch.Tensor]:
    opened = Run.open(run)
    return opened.load_weights(opened.steps[-1])


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights, optimizer and random numbers of the newest checkpoint."""
    return load_file(max(run.glob("step-*")))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainConfig], Run]:
    """The finished run of a config; leave it as it is."""

    @cache
    def trained(config: TrainConfig) -> Run:
        return Run.open(train(config, tmp_path_factory.mktemp("whole") / "run").run)

    return trained


@pytest.mark.parametrize("model", models())
def test_every_model_learns(model: str, tmp_path: Path) -> None:
    config = TrainConfig(
        file=NAMES, model=model, n_layer=2, n_embd=32, batch_size=32, max_steps=60, device="cpu"
    )
    config = replace(config, eval_interval=60, log_interval=1, warmup_steps=5)
    result = train(config, tmp_path / "run")
    first = Run.open(tmp_path / "run").read_metrics()[0]["loss"]
    assert result.test_loss is not None
    assert result.test_loss < first - 0.3
    assert result.model == model


@pytest.mark.parametrize("stop_at", [1, 6, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    stop_at: int, dropout: float, tmp_path: Path, uninterrupted: Callable[[TrainConfig], Run]
) -> None:
    config = replace(SMALL, dropout=dropout)
    whole = uninterrupted(config)
    with pytest.raises(Interrupted, match="--resume"):
        train(config, tmp_path / "cut", PressCtrlC(stop_at))
    torch.rand(7)  # what happens to the random numbers in between must not matter
    resumed = resume(tmp_path / "cut")

    cut, result = Run.open(tmp_path / "cut"), whole.read_result()
    assert same(tensors(whole.path), tensors(cut.path))
    assert same(whole.load_weights(), cut.load_weights())
    assert result is not None
    assert resumed.test_loss == result["test_loss"]
    left, right = (
        [(line["step"], line["loss"], line.get("val_loss")) for line in run.read_metrics()]
        for run in (whole, cut)
    )
    assert left == right


def test_a_killed_run_forgets_the_lines_after_its_checkpoint(
    tmp_path: Path, forks: Forks, uninterrupted: Callable[[TrainConfig], Run]
) -> None:
    command = ("-m", "flashmore", "train", NAMES, "--out", tmp_path / "cut", "--device", "cpu")
    options = {
        "n-embd": 16,
        "n-head": 2,
        "n-layer": 2,
        "max-steps": 12,
        "eval-interval": 4,
        "log-interval": 1,
        "batch-size": 8,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    metrics = tmp_path / "cut" / "metrics.jsonl"
    with Path(os.devnull).open("r+") as nothing:
        process = forks.start((*command, *words), os.environ, (nothing.fileno(),) * 3)
    while not metrics.exists() or metrics.read_text().count("\n") < 7:
        assert not process.ended(0.001) or metrics.exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with metrics.open("a") as file:
        file.write('{"step": 999, "lo')
    resume(tmp_path / "cut", steps=12)
    assert [line["step"] for line in Run.open(tmp_path / "cut").read_metrics()] == list(range(1, 13))
    assert same(weights(uninterrupted(SMALL).path), weights(tmp_path / "cut"))


def test_steps_may_grow_and_never_shrink(tmp_path: Path) -> None:
    train(replace(SMALL, lr_schedule="constant", warmup_steps=1), tmp_path / "whole")
    train(replace(SMALL, lr_schedule="constant", warmup_steps=1, max_steps=8), tmp_path / "short")
    with pytest.raises(ConfigError, match="8 steps are done"):
        resume(tmp_path / "short", steps=7)
    resume(tmp_path / "short", steps=12)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "short"))


def test_the_best_weights_are_those_with_the_lowest_validation_loss(tmp_path: Path) -> None:
    # Random letters can only be memorised: it soon overfits, so that the best is not the last.
    letters = random.Random(0)
    names = ["".join(letters.choices("abcdefgh", k=5)) for _ in range(60)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    config = replace(
        SMALL,
        file=tmp_path / "names.txt",
        learning_rate=3e-2,
        lr_schedule="constant",
        max_steps=120,
        eval_interval=5,
    )
    result = train(config, tmp_path / "run")
    lines = [line for line in Run.open(tmp_path / "run").read_metrics() if "val_loss" in line]
    best = min(lines, key=lambda line: line["val_loss"])
    state = Run.open(tmp_path / "run").load_state()
    assert state.best_step == best["step"] < 120
    assert result.val_loss == pytest.approx(best["val_loss"], rel=1e-6)


def test_the_backends_train_alike(tmp_path: Path) -> None:
    """Same seed, 200 steps: the loss curves of manual and flash agree to 1e-4 relative in float32."""
    curves = []
    for backend in ("manual", "flash"):
        config = replace(SMALL, attention=backend, optimizer="adamw", max_steps=200, eval_interval=200)
        config = replace(config, learning_rate=1e-3, speedups=("none",))
        train(config, tmp_path / backend)
        curves.append([line["loss"] for line in Run.open(tmp_path / backend).read_metrics()])
    assert len(curves[0]) == 200
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0] != curves[1], "both ran the same kernel"


def test_bigram_reaches_the_closed_form(tmp_path: Path) -> None:
    """Counting gives the table with the lowest loss on what was counted; training must come within 0.002."""
    train(TrainConfig(model="bigram", split="100/0/0", device="cpu"), tmp_path / "run")
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
    assert Run.open(tmp_path / "run").load_state().best_step is None
    assert {"leak_share", "test_loss_unleaked"} <= result.to_json().keys()


def test_weights_that_diverge_stop_the_run_and_leave_the_last_good_checkpoint(tmp_path: Path) -> None:
    # The learning rate grows with every step of the warm-up, so that the first steps still save checkpoints.
    config = replace(
        SMALL,
        max_steps=400,
        eval_interval=1,
        learning_rate=1e9,
        grad_clip=0.0,
        warmup_steps=399,
        split="100/0/0",
        speedups=("none",),
    )
    with pytest.raises(TrainingFailed, match="--learning-rate") as caught:
        train(config, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert all(math.isfinite(line["loss"]) for line in run.read_metrics())
    step = run.load_state().step
    assert f"the last checkpoint is from step {step}" in caught.value.found
    assert step > 0
    assert all(value.isfinite().all() for value in tensors(tmp_path / "run").values())


def test_an_error_of_memory_without_a_message_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(TrainingFailed, match="found: MemoryError"):
        train(replace(SMALL, speedups=("none",)), tmp_path / "run")


def test_nothing_is_written_when_the_config_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="divisible"):
        train(replace(SMALL, n_head=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_never_overwritten(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != "run.lock"}
    with pytest.raises(RunError, match="--resume") as caught:
        train(replace(SMALL, learning_rate=1.0, batch_size=4), tmp_path / "run")
    assert "batch_size 8 instead of 4" in caught.value.found
    assert "learning_rate (default) instead of 1.0" in caught.value.found
    after = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != "run.lock"}
    assert before == after


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_new_run_is_never_made_through_a_link_that_it_was_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("elsewhere").mkdir()
    Path("runs/bigram").symlink_to("nowhere")
    Path("runs/bigram-2").symlink_to(tmp_path / "elsewhere")
    config = replace(SMALL, model="bigram", activation="gelu_tanh", max_steps=2)
    assert train(config).run == str(Path("runs/bigram-3"))
    assert list(Path("elsewhere").iterdir()) == []
    with pytest.raises(RunError, match="a broken link"):
        train(config, Path("runs/bigram"))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["bigram", "bigram-2", "bigram-3"]
    assert train(config, Path("runs/bigram-2")).run == str(Path("runs/bigram-2"))  # the user's own link


def test_a_run_takes_no_more_threads_than_the_machine_has(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        # Steps too small to be divided among the threads, which wait for each other on a busy machine.
        train(
            replace(SMALL, model="bigram", activation="gelu_tanh", threads=4096, max_steps=2),
            tmp_path / "run",
        )
        assert torch.get_num_threads() == os.cpu_count()
        assert Run.open(tmp_path / "run").config["threads"] == 4096
        torch.set_num_threads(before)
        resume(tmp_path / "run", 3)
        assert torch.get_num_threads() == os.cpu_count()
    finally:
        torch.set_num_threads(before)


def test_the_same_command_on_other_data_is_refused(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("anna\nben\ncleo\ndora\n")
    config = replace(SMALL, file=names, max_steps=2)
    train(config, tmp_path / "run")
    names.write_text("anna\nben\ncleo\nemma\n")
    with pytest.raises(RunError, match="different data"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("stop_at", [1, 6, 12])
def test_the_same_call_goes_on_with_its_own_run(
    tmp_path: Path, stop_at: int, uninterrupted: Callable[[TrainConfig], Run]
) -> None:
    whole = uninterrupted(SMALL)
    with pytest.raises(Interrupted):  # at 12, in the last evaluation
        train(SMALL, tmp_path / "cut", PressCtrlC(stop_at))
    again, result = train(SMALL, tmp_path / "cut"), whole.read_result()
    assert same(tensors(whole.path), tensors(tmp_path / "cut"))
    assert result is not None
    assert (again.steps, again.test_loss) == (result["steps"], result["test_loss"])


@pytest.mark.parametrize(
    ("optimizer", "dtype"), [("adamw", "float32"), ("muon", "bfloat16"), ("adamw", "float16")]
)
def test_every_optimizer_goes_on_bit_for_bit(tmp_path: Path, optimizer: str, dtype: str) -> None:
    config = replace(SMALL, n_layer=1, optimizer=optimizer, dtype=dtype, dropout=0.1)  # type: ignore[arg-type]
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "cut", PressCtrlC(5))
    train(config, tmp_path / "cut")
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))
    states = [Run.open(tmp_path / name).load_state() for name in ("whole", "cut")]
    assert states[0].loss_scale == states[1].loss_scale


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    class TrainTwice(Observer):
        def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
            with pytest.raises(RunError, match="it is being written by process"):
                resume(tmp_path / "run")
            with pytest.raises(RunError, match="it is being written by process"):
                train(SMALL, tmp_path / "run")

    result = train(SMALL, tmp_path / "run", TrainTwice())
    assert result.steps == 12
    assert [line["step"] for line in Run.open(tmp_path / "run").read_metrics()] == list(range(1, 13))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_scheduler_that_ends_a_run_has_it_saved(tmp_path: Path, name: str) -> None:
    class Send(Observer):
        def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
            if step == 5:
                os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Interrupted, match=f"by {name} at step 5"):
        train(SMALL, tmp_path / "run", Send())
    assert Run.open(tmp_path / "run").load_state().step == 5
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_signal_in_the_final_evaluation_stops_it_and_the_run_goes_on(
    tmp_path: Path, uninterrupted: Callable[[TrainConfig], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_weights = Run.load_weights

    def load(run: Run, step: int | None = None) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return load_weights(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "load_weights", load)
        with pytest.raises(Interrupted, match="by SIGTERM at step 12 of 12; saved"):
            train(SMALL, tmp_path / "run")
    assert not Run.open(tmp_path / "run").has_result
    expected = uninterrupted(SMALL).read_result()
    assert expected is not None
    assert resume(tmp_path / "run").test_loss == expected["test_loss"]


@pytest.mark.parametrize("log_interval", [1, 5, 12])
def test_work_is_saved_by_time_as_well(log_interval: int, tmp_path: Path) -> None:
    config = replace(SMALL, eval_interval=12, log_interval=log_interval, keep=100)
    train(replace(config, save_seconds=1e-9), tmp_path / "run")  # less than any step takes
    assert Run.open(tmp_path / "run").steps == [*range(13)]
    train(config, tmp_path / "whole")
    assert Run.open(tmp_path / "whole").steps == [0, 12]
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "run"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_training_stays_near_float32(dtype: str, tmp_path: Path) -> None:
    losses = {
        name: train(replace(SMALL, n_layer=1, max_steps=20, dtype=name), tmp_path / name).test_loss  # type: ignore[arg-type]
        for name in ("float32", dtype)
    }
    assert losses[dtype] == pytest.approx(losses["float32"], rel=0.02)


def test_tensorboard_events_stand_beside_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(replace(SMALL, log_to=("tensorboard",)), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    lines = {line["step"]: line["loss"] for line in Run.open(tmp_path / "run").read_metrics()}
    assert logged == pytest.approx(lines)


def test_the_result_stands_in_the_run(tmp_path: Path) -> None:
    result = train(SMALL, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()).items() >= result.to_json().items()


def test_the_session_settles_auto_before_training(tmp_path: Path) -> None:
    class Ask(Observer):
        def started(self, session: Session) -> None:
            assert session.resolved.choice is not None
            assert session.resolved.choice.backend == session.run.model.attention != "auto"
            self.why = session.resolved.choice.why

    ask = Ask()
    assert train(SMALL, tmp_path / "run", ask).attention != "auto"
    assert ask.why not in ("", "that of the run")
    resume(tmp_path / "run", observer=ask)
    assert ask.why == "that of the run"


@pytest.mark.long
@pytest.mark.comparison
@pytest.mark.parametrize(("steps", "bound"), [(1000, 2.16), (3000, 2.08)])
def test_makemores_own_training_reaches_makemores_losses(
    steps: int, bound: float, comparison_data: Path, tmp_path: Path
) -> None:
    config = replace(
        TrainConfig(preset="makemore"),
        file=comparison_data / "makemore-names.txt",
        split="makemore",
        max_steps=steps,
    )
    result = train(config, tmp_path / "run")
    assert result.test_loss is not None
    assert result.test_loss <= bound
    assert result.parameters == 204_544
    assert result.leak_share == pytest.approx(0.153)
