"""Options that were left open follow from the data; those that were given stay."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from flashmore.config import OPEN, TrainConfig
from flashmore.runs import Run
from flashmore.training.corpus import read_corpus
from flashmore.training.distillation import teacher_config
from flashmore.training.fit import NGRAM_ITEMS, SMOOTHING, SMOOTHING_OF_FEW, fit
from flashmore.training.loop import Observer, resume, train
from flashmore.training.session import Session


def names(folder: Path, count: int) -> Path:
    """Pronounceable items without a pattern to learn beyond their letters."""
    draw = random.Random(5)
    items: set[str] = set()
    while len(items) < count:
        items.add("".join(draw.choice("bdklmnrst") + draw.choice("aeiou") for _ in range(draw.randint(2, 5))))
    path = folder / f"{count}.txt"
    path.write_text("\n".join(sorted(items)), encoding="utf-8")
    return path


def fitted(config: TrainConfig) -> TrainConfig:
    return fit(config, read_corpus(config))[0]


def test_nothing_stays_open_and_more_items_mean_more_steps_and_less_dropout(tmp_path: Path) -> None:
    few, some, many = (fitted(TrainConfig(file=names(tmp_path, n))) for n in (30, 500, 5000))
    for config in (few, some, many):
        assert all(getattr(config, name) is not None for name in OPEN)
    assert few.max_steps < some.max_steps < many.max_steps
    assert few.dropout >= some.dropout >= many.dropout
    assert few.n_layer * few.n_embd <= many.n_layer * many.n_embd
    assert few.init == many.init == "previous_token"
    assert fitted(TrainConfig(file=names(tmp_path, 30), model="gru")).init == "torch"


@pytest.mark.parametrize("name", OPEN)
def test_what_is_given_stays(tmp_path: Path, name: str) -> None:
    file = names(tmp_path, 40)
    given = {
        "dropout": 0.05,
        "learning_rate": 0.5,
        "ngram_smoothing": 0.25,
        "ngram_items": 0.25,
        "weight_decay": 0.25,
        "optimizer": "adamw",
        "init": "gpt2",
    }.get(name, 8)
    config = TrainConfig(file=file, **{name: given})  # type: ignore[arg-type]
    assert getattr(config, name) == given
    assert getattr(fitted(config), name) == given


def test_adamw_gets_more_steps_than_muon(tmp_path: Path) -> None:
    file = names(tmp_path, 40)
    adamw, muon = (fitted(TrainConfig(file=file, optimizer=name)) for name in ("adamw", "muon"))
    assert adamw.max_steps > muon.max_steps


def test_the_preset_makemore_leaves_nothing_open(tmp_path: Path) -> None:
    config = TrainConfig(file=names(tmp_path, 30), preset="makemore")
    assert fit(config, read_corpus(config)) == (config, ())


def test_names_long_has_soft_targets_wherever_n_grams_can_give_them(tmp_path: Path) -> None:
    config = TrainConfig(file=names(tmp_path, 800), preset="names-long", teachers=0)
    corpus = read_corpus(config)
    chosen, told = fit(config, corpus)
    assert chosen == replace(config, dropout=0.1, ngram_smoothing=SMOOTHING, ngram_items=0.0)
    shown = f"dropout 0.1, ngram-smoothing {SMOOTHING:g}, ngram-items 0"
    assert told == (f"for {corpus.items} items: {shown}",)
    table = tmp_path / "weighted.csv"
    lines = ["name,count", *(f"{item},{len(item)}" for item in corpus.split.train)]
    table.write_text("\n".join(lines), encoding="utf-8")
    weighted = TrainConfig(file=table, column="name", weight="count", preset="names-long")
    assert fit(weighted, read_corpus(weighted))[0] == replace(
        weighted, dropout=0.1, ngram_smoothing=0.0, ngram_items=0.0, teachers=0
    )


@pytest.mark.parametrize("model", ["bigram", "mlp", "gru", "wavenet"])
def test_every_model_trains_with_what_is_fitted(tmp_path: Path, model: str) -> None:
    config = TrainConfig(file=names(tmp_path, 30), model=model, device="cpu")
    assert train(config, tmp_path / "run").test_loss


SHORT = TrainConfig(
    n_layer=1, n_embd=32, dropout=0.0, learning_rate=2e-2, lr_schedule="constant", batch_size=16,
    max_steps=300, warmup_steps=0, eval_interval=5, device="cpu", attention="manual", speedups=("none",),
)  # fmt: skip


def test_training_stops_when_the_validation_loss_no_longer_improves(tmp_path: Path) -> None:
    class Losses(Observer):
        def started(self, session: Session) -> None:
            self.steps: list[int] = []
            self.losses: list[float] = []

        def evaluated(self, step: int, val_loss: float | None, is_best: bool) -> None:
            assert val_loss is not None
            self.steps.append(step)
            self.losses.append(val_loss)

    config = replace(SHORT, file=names(tmp_path, 40), patience=3)
    seen = Losses()
    result = train(config, tmp_path / "run", seen)
    assert result.steps < 300
    best = min(range(len(seen.losses)), key=seen.losses.__getitem__)
    assert best == len(seen.losses) - 4
    assert result.val_loss == pytest.approx(seen.losses[best])
    assert Run.open(tmp_path / "run").load_state().best_step == seen.steps[best]
    again = resume(tmp_path / "run")
    assert again == result
    whole = train(replace(config, patience=0), tmp_path / "whole")
    assert whole.steps == 300
    assert whole.test_loss == pytest.approx(result.test_loss, abs=0.2)


def parts(folder: Path) -> Path:
    """Items that share long parts."""
    words = (
        "north",
        "south",
        "western",
        "eastern",
        "upper",
        "lower",
        "island",
        "province",
        "district",
        "region",
    )
    path = folder / "parts.txt"
    path.write_text("\n".join(f"{a} {b}" for a in words for b in words if a != b), encoding="utf-8")
    return path


def test_items_that_share_parts_are_sampled_too_unless_an_option_says_otherwise(tmp_path: Path) -> None:
    file = parts(tmp_path)
    shared = fitted(TrainConfig(file=file))
    assert (shared.ngram_items, shared.ngram_smoothing) == (NGRAM_ITEMS, SMOOTHING)
    off = fitted(TrainConfig(file=file, ngram_items=0.0))
    assert (off.ngram_smoothing, off.dropout) == (SMOOTHING_OF_FEW, 0.2)
    assert off.max_steps * 2 == pytest.approx(shared.max_steps, abs=1)
    for others in ({"ngram_smoothing": 0.0}, {"batch_size": 1}, {"teachers": 1}, {"preset": "names-long"}):
        assert not fitted(TrainConfig(file=file, **others)).ngram_items
    assert not fitted(teacher_config(TrainConfig(file=file), 1, 100)).ngram_items
    assert not fitted(TrainConfig(file=names(tmp_path, 100))).ngram_items
    assert not fitted(TrainConfig(file=file, model="bigram")).ngram_items
