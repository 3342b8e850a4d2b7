"""Training on one long text: it learns, resumes bit for bit, and keeps its parts apart."""

import os
import random
import signal
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, DataError, Interrupted
from flashmore.generation.draw import next_probabilities
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.generation.text import continue_text
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build, count_parameters
from flashmore.runs import Run, Settings
from flashmore.specs import Model, models
from flashmore.training.corpus import read_corpus
from flashmore.training.loop import Observer, resume, train
from flashmore.training.resolve import resolve_model
from flashmore.training.starting import begun

PATTERN = "abcdefgh"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of which every next character is certain after one."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(PATTERN * 300, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(file: Path) -> TrainConfig:
    return TrainConfig(
        file=file, mode="text", block_size=12, n_layer=1, n_head=2, n_embd=16, batch_size=8, max_steps=60,
        learning_rate=2e-2,
        warmup_steps=5, eval_interval=20, device="cpu", attention="sdpa", activation="gelu_tanh",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "trained"
    train(config, path)
    return path


class PressCtrlC(Observer):
    """Stops a run at its first line of the log from a step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        if step >= self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("model", tuple(models()))
def test_every_model_learns_what_is_certain(config: TrainConfig, tmp_path: Path, model: Model) -> None:
    result = train(
        replace(config, model=model, n_layer=3, max_steps=200, learning_rate=3e-2), tmp_path / "run"
    )
    assert result.val_loss is not None
    assert result.val_loss < 0.2 < np.log(len(PATTERN))
    assert result.test_loss == pytest.approx(result.val_loss, abs=0.05)


def test_training_and_resuming_end_bit_for_bit_alike(
    config: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    dropping = replace(config, dropout=0.1)
    train(dropping, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(dropping, tmp_path / "halves", PressCtrlC(30))
    resume(tmp_path / "halves")
    whole, halves = (load_file(max((tmp_path / name).glob("step-*"))) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    states = [Run.open(tmp_path / name).load_state() for name in ("whole", "halves")]
    assert states[0].best_loss == states[1].best_loss


def test_a_run_resumes_after_its_store_was_damaged(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", PressCtrlC(20))
    (tmp_path / "run" / "tokens.bin").write_bytes(b"other ids")
    resume(tmp_path / "run")
    train(config, tmp_path / "whole")
    ended, whole = (load_file(max((tmp_path / name).glob("step-*"))) for name in ("run", "whole"))
    assert all(torch.equal(whole[name], ended[name]) for name in whole)


def test_the_loss_of_a_part_is_that_of_every_id_in_it(trained: Path) -> None:
    run = Run.open(trained)
    result = run.read_result()
    assert run.text is not None
    assert result is not None
    model = build(run.model, 0).eval()
    run.restore(model, run.load_weights())
    for part, said in (("validation", result["val_loss"]), ("test", result["test_loss"])):
        begin, stop = getattr(run.text.parts, part)
        ids = torch.from_numpy(run.text.ids(trained, run.vocabulary)[begin:stop].astype(np.int64))
        total = 0.0
        for at in range(0, len(ids) - 1, 12):
            window, targets = ids[at : at + 12], ids[at + 1 : at + 13]
            with torch.no_grad():
                log_probs = model(window[None]).log_softmax(-1)[0, : len(targets)]
            total -= log_probs.gather(1, targets[:, None]).sum().item()
        assert said == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_nothing_is_written_for_a_text_that_cannot_be_learned(config: TrainConfig, tmp_path: Path) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"text\n\x00")
    cases = [
        (replace(config, block_size=1000), DataError, "each part"),
        (replace(config, file=binary), DataError, "line 2"),
        (replace(config, file=tmp_path / "absent"), DataError, "No such file"),
        (replace(config, file=None), ConfigError, "no FILE"),
        (replace(config, split="makemore"), ConfigError, "percentages"),
        (replace(config, n_head=3), ConfigError, "heads"),
        (replace(config, model="mlp", block_size=200, n_embd=512), ConfigError, "mlp"),
    ]
    for wrong, error, found in cases:
        with pytest.raises(error, match=found):
            train(wrong, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_text_that_changes_under_the_first_pass_leaves_no_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(PATTERN * 300, encoding="utf-8")
    create = Run.create

    def create_late(folder: Path, made_from: Settings) -> AbstractContextManager[Run]:
        path.write_text(PATTERN[::-1] * 300, encoding="utf-8")
        return create(folder, made_from)

    monkeypatch.setattr(Run, "create", create_late)
    with pytest.raises(DataError, match="a different text"):
        train(replace(config, file=path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_context_of_4096_trains(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(PATTERN * 6000, encoding="utf-8")
    long = TrainConfig(
        file=path, mode="text", block_size=4096, n_layer=1, n_head=1, n_embd=8, batch_size=1, max_steps=2,
        device="cpu",
        attention="sdpa",
    )  # fmt: skip
    result = train(long, tmp_path / "run")
    assert result.val_loss is not None
    assert result.val_loss < 4


# Generation.


def test_text_goes_on_past_the_context_and_repeats_with_its_seed(trained: Path) -> None:
    run = Run.open(trained)
    options = GenerateOptions(prefix="cd", seed=1, top_k=1)
    made = continue_text(run, options, 40)
    assert made.prefix + made.texts[0] == "cd" + (PATTERN * 7)[4:44]
    drawn = GenerateOptions(seed=7, temperature=2.0)
    first, again = (continue_text(run, drawn, 50) for _ in range(2))
    assert first == again
    assert first.texts != continue_text(run, replace(drawn, seed=8), 50).texts


def test_only_the_last_window_of_a_prefix_counts(trained: Path) -> None:
    run = Run.open(trained)
    options = GenerateOptions(seed=3, temperature=3.0)
    short = continue_text(run, replace(options, prefix=PATTERN + "abcd"), 20)
    long = continue_text(run, replace(options, prefix="hhh" + PATTERN + "abcd"), 20)
    assert short.texts == long.texts


def text_by_whole_windows(run: Run, prefix: str, options: GenerateOptions, length: int) -> str:
    """The same text without anything kept: the whole window for every character."""
    characters = run.vocabulary.characters
    ids = [characters.index(letter) for letter in prefix]
    begun, model = len(ids), load_model(run, "cpu")
    numbers = random.Random(options.seed)
    with torch.inference_mode():
        for _ in range(length):
            logits = model(torch.tensor([ids[-run.model.block_size :]]))[:, -1]
            sums = next_probabilities(logits.double(), options)[0].cumsum(0)
            ids.append(int((sums <= numbers.random() * sums[-1]).sum()))
    return "".join(characters[number] for number in ids[begun:])


@pytest.mark.parametrize("model", ["transformer", "gru"])
@pytest.mark.parametrize("prefix", ["c", PATTERN[:5], PATTERN + "abcd", PATTERN * 3])
def test_text_is_that_of_whole_windows_before_and_after_they_slide(
    config: TrainConfig, tmp_path: Path, model: Model, prefix: str
) -> None:
    train(replace(config, model=model, max_steps=5), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    options = GenerateOptions(prefix=prefix, seed=11, temperature=1.5)
    assert continue_text(run, options, 60, stride=1).texts == [
        text_by_whole_windows(run, prefix, options, 60)
    ]


def test_within_the_context_a_character_costs_one_position(trained: Path) -> None:
    run = Run.open(trained)
    length, costs = run.model.block_size, []
    for draw in (continue_text, lambda *given: text_by_whole_windows(run, "a", *given[1:])):
        with FlopCounterMode(display=False) as counter:
            draw(run, GenerateOptions(prefix="a", seed=1), length)
        costs.append(counter.get_total_flops())
    assert 0 < 4 * costs[0] < costs[1]


# Presets.


def test_the_shakespeare_preset_has_nanogpts_size() -> None:
    preset = TrainConfig(preset="shakespeare")
    model_config = ModelConfig(
        model="transformer", vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128,
        bias=preset.bias, tie_weights=preset.tie_weights, activation=preset.activation,
    )  # fmt: skip
    layer = 128 * 384 + 128 * 128 + 2 * 128 * 512 + 2 * 128  # attention, feed-forward, two normalisations
    assert count_parameters(build(model_config, 0)) == 65 * 128 + 64 * 128 + 4 * layer + 128


def test_gpt2_124m_has_its_name_in_parameters() -> None:
    preset = TrainConfig(preset="gpt2-124m")
    model_config = resolve_model(preset, read_corpus(preset))
    with torch.device("meta"):
        from flashmore.models.transformer import Transformer

        parameters = count_parameters(Transformer(model_config))
    assert (model_config.vocab_size, model_config.block_size) == (50_304, 1024)
    layer = 768 * (3 * 768 + 768 + 2 * 4 * 768) + 2 * 768
    assert parameters == 50_304 * 768 + 1024 * 768 + 12 * layer + 768 == 124_373_760


def test_the_code_path_of_gpt2_124m_runs_small(tmp_path: Path) -> None:
    preset = TrainConfig(preset="gpt2-124m")
    small = replace(
        preset, vocab_size=257, n_layer=1, n_head=1, n_embd=8, block_size=32, batch_size=2, max_steps=2,
        split="98/2/0",
        device="cpu", attention="manual",
    )  # fmt: skip
    with begun(small, tmp_path / "run") as session:
        assert session.trainer.train_step().dtype == torch.float32
        assert session.run.text is not None
        assert session.run.text.kind == "random"


def test_tied_weights_are_one_matrix_before_and_after_a_checkpoint(
    config: TrainConfig, tmp_path: Path
) -> None:
    train(
        replace(config, tie_weights=True, bias=False, activation="relu_squared", max_steps=5),
        tmp_path / "run",
    )
    run = Run.open(tmp_path / "run")
    model = build(run.model, 1)
    run.restore(model, run.load_weights(5))
    weights = dict(model.named_parameters(remove_duplicate=False))
    assert weights["wte.weight"] is weights["lm_head.weight"]
    assert not any(name.endswith("bias") for name in weights)
    assert torch.equal(run.load_weights(5)["lm_head.weight"], weights["wte.weight"])


def test_other_models_have_no_choice_of_bias_or_activation() -> None:
    assert TrainConfig(model="gru", preset="shakespeare").block_size == 64
    for refused in (
        partial(TrainConfig, model="gru", tie_weights=True),
        partial(TrainConfig, model="gru", bias=False),
        partial(TrainConfig, model="gru", activation="gelu"),
    ):
        with pytest.raises(ConfigError, match="transformer"):
            refused()
    for refused in (partial(TrainConfig, block_size=16), partial(TrainConfig, vocab_size=100)):
        with pytest.raises(ConfigError, match="--mode text"):
            refused()
