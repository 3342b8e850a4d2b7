"""Whole steps under several backends: data, memory, the gate, the rounds, and what Ctrl-C leaves."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashmore.backends.contract import LOADED
from flashmore.backends.manual import manual
from flashmore.benchmark.step import bench as step_module
from flashmore.benchmark.step.bench import STEPS, Gate, affordable, bench_steps, most_gain
from flashmore.benchmark.step.task import Task, activation_bytes, attention_alone, task_at
from flashmore.benchmark.variant import INTERRUPTED, Timing
from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE
from flashmore.errors import ConfigError, DataError, UsageError
from flashmore.measuring.memory import peak_bytes
from flashmore.measuring.result import read_record, write_record
from flashmore.measuring.statistics import ratio
from flashmore.models.registry import parameters_of
from flashmore.training.corpus import read_corpus
from flashmore.training.resolve import TRAINED_BYTES, resolve_model
from flashmore.training.trainer import Trainer

CPU = torch.device("cpu")
NAMES = tuple(map("".join, product("bdmnrst", "aeio", ("n", "ra", "la", "m", "lo"))))
Attend = Callable[..., Tensor]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A small Transformer on names of 3 or 4 letters: T is 5."""
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    start = TrainConfig(preset="makemore")
    return replace(start, file=path, device="cpu", n_layer=2, n_embd=16, n_head=2, batch_size=8)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "BLOCK_SECONDS", 1e-3)


def compare(
    config: TrainConfig, *names: str, context: int | None = None, blocks: int = 2, **options: Any
) -> dict[str, Any]:
    contexts = () if context is None else (context,)
    shrink_batch = options.pop("shrink_batch", True)
    timing = Timing(blocks, **options)
    return bench_steps(config, names or None, contexts, shrink_batch=shrink_batch, timing=timing)


# Data.


def test_without_a_context_the_data_are_those_of_training(config: TrainConfig) -> None:
    task = task_at(config, None, shrink_batch=True)
    corpus = read_corpus(config)
    assert task.model_config == resolve_model(config, corpus)
    assert len(task.data.ids) == len(corpus.split.train)
    assert (task.data.targets == IGNORE).any()
    assert (task.config, task.notes) == (config, ())


@pytest.mark.parametrize("context", [1, 7, 64])
def test_a_stream_holds_every_name_once_and_no_padding(config: TrainConfig, context: int) -> None:
    task = task_at(config, context, shrink_batch=True)
    corpus = read_corpus(config)
    text = [number for name in corpus.split.train for number in (*corpus.vocabulary.encode(name), 0)]
    ids, targets = task.data.ids, task.data.targets
    assert ids.shape == targets.shape == (len(text) // context, context)
    assert targets.flatten().tolist() == text[: targets.numel()]
    assert ids.flatten().tolist() == [0, *text][: ids.numel()]
    assert task.data.lengths.tolist() == [context] * len(ids)
    assert task.model_config.block_size == context


@pytest.mark.parametrize(("context", "batch"), [(5, 8), (10, 4), (20, 2), (64, 1), (1, 40)])
def test_a_longer_context_takes_fewer_rows_and_says_so(config: TrainConfig, context: int, batch: int) -> None:
    task = task_at(config, context, shrink_batch=True)
    assert task.config.batch_size == batch
    assert bool(task.notes) == (batch != config.batch_size)
    kept = task_at(config, context, shrink_batch=False)
    assert (kept.config.batch_size, kept.notes) == (config.batch_size, ())


@pytest.mark.parametrize("context", [0, -1, 10**6])
def test_a_context_that_the_data_cannot_fill_is_refused(config: TrainConfig, context: int) -> None:
    with pytest.raises(ConfigError, match="--lengths"):
        task_at(config, context, shrink_batch=True)


def test_a_model_without_attention_or_without_data_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a model with attention"):
        compare(replace(config, model="mlp"))
    with pytest.raises(DataError):
        compare(replace(config, file=tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="--blocks"):
        compare(config, blocks=0)


# Memory.


@pytest.mark.parametrize(
    ("sizes", "context"),
    [
        ({"batch_size": 32, "n_embd": 64, "n_head": 4, "n_layer": 4}, 16),
        ({"batch_size": 2, "n_embd": 64, "n_head": 4, "n_layer": 2}, 256),
        ({"batch_size": 1, "n_embd": 32, "n_head": 4, "n_layer": 2, "attention_dropout": 0.1}, 400),
        ({"batch_size": 1, "n_embd": 64, "n_head": 4, "n_layer": 2, "dtype": "bfloat16"}, 512),
        ({"batch_size": 64, "n_embd": 96, "n_head": 2, "n_layer": 1, "dropout": 0.1}, 32),
    ],
    ids=["seed experiment", "T = 256", "dropout on the weights", "bfloat16", "wide"],
)
def test_the_estimate_is_above_the_measured_peak_and_below_three_times_it(
    sizes: dict[str, Any], context: int
) -> None:
    config = TrainConfig(device="cpu", **sizes)
    task = task_at(config, context, shrink_batch=False)
    backends = ("manual", "math", "sdpa") if config.attention_dropout else ("manual", "math", "sdpa", "flash")
    for backend in backends:
        peak, estimate = peak_and_estimate(backend, task)
        assert peak <= estimate <= 3 * peak, backend


def peak_and_estimate(backend: str, task: Task) -> tuple[int, int]:
    """Of one step, gradients included."""
    trainer = Trainer(task.config, replace(task.model_config, attention=backend), task.dataset(), CPU)
    trainer.train_step()
    trainer.model.zero_grad()
    peak = peak_bytes(trainer.train_step, CPU)
    assert peak
    weights = 4 * parameters_of(task.model_config)
    return peak, activation_bytes(backend, task.model_config, task.config, device="cpu") + weights


def test_what_would_not_fit_is_refused_by_name_and_the_rest_runs(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_at(config, 128, shrink_batch=False)
    by_hand, fused = (
        activation_bytes(name, task.model_config, task.config, device="cpu")
        + TRAINED_BYTES * parameters_of(task.model_config)
        for name in ("manual", "flash")
    )
    monkeypatch.setattr(step_module, "free_bytes", lambda _: by_hand + fused)
    monkeypatch.setattr(step_module, "SHARE_OF_FREE", 0.5)
    found = compare(config, "manual", "flash", context=128, shrink_batch=False)
    refused, runs = found["variants"]
    assert not refused["ok"]
    assert "MiB are available" in (refused["why_not"] or "")
    assert refused["peak_bytes"] is None
    assert runs["ok"]
    assert found["ratios"] == []
    assert found["attention_share"] is not None


# The gate.


def wrong_scale(q: Tensor, k: Tensor, v: Tensor, **call: Any) -> Tensor:
    return manual(q, k, v, **(call | {"scale": 2 / math.sqrt(q.size(-1))}))


def sees_the_future(q: Tensor, k: Tensor, v: Tensor, **call: Any) -> Tensor:
    mask = torch.ones(q.size(-2), q.size(-2), dtype=torch.bool).tril(1)
    return manual(q, k, v, **(call | {"causal": False, "mask": mask}))


def wrong_gradient(q: Tensor, k: Tensor, v: Tensor, **call: Any) -> Tensor:
    k = 1.3 * k - 0.3 * k.detach()  # the same numbers, but 1.3 times the gradient
    return manual(q, k, v, **call)


def gives_nan(q: Tensor, k: Tensor, v: Tensor, **call: Any) -> Tensor:
    return manual(q, k, v, **call) * math.nan


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [
        (wrong_scale, "float32"),
        (sees_the_future, "float32"),
        (wrong_gradient, "float32"),
        (gives_nan, "float32"),
        (wrong_scale, "bfloat16"),
        (wrong_gradient, "bfloat16"),
        (wrong_gradient, "float16"),
        pytest.param(sees_the_future, "bfloat16", marks=pytest.mark.long),
        pytest.param(gives_nan, "bfloat16", marks=pytest.mark.long),
        pytest.param(wrong_scale, "float16", marks=pytest.mark.long),
        pytest.param(sees_the_future, "float16", marks=pytest.mark.long),
        pytest.param(gives_nan, "float16", marks=pytest.mark.long),
    ],
)
def test_a_wrong_backend_gets_no_number(
    wrong: Attend, dtype: Any, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOADED, "flash", wrong)
    found = compare(replace(config, dtype=dtype), "manual", "flash", "math")
    right, refused, also_right = found["variants"]
    assert not refused["ok"]
    assert "budget" in (refused["why_not"] or "")
    assert (refused["step_ms"], refused["samples_ms"], refused["peak_bytes"]) == (None, [], None)
    assert right["ok"]
    assert also_right["ok"]
    assert [between["to"] for between in found["ratios"]] == ["math"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("context", [None, 33])
def test_every_backend_of_the_cpu_is_right(dtype: Any, context: int | None, config: TrainConfig) -> None:
    gate = Gate(task_at(replace(config, dtype=dtype), context, shrink_batch=True))
    parameters = dict(gate._trainer("manual").model.named_parameters())
    for backend in ("manual", "sdpa", "math", "flash"):
        judgements = gate.judgements(backend)
        assert all(judgement.good for judgement in judgements), (backend, judgements)
        assert [each.name for each in judgements] == ["out", "dq", "dk", "dv", *parameters, "losses"]


def test_the_reference_makes_the_steps_of_training_in_float64(config: TrainConfig) -> None:
    gate = Gate(task_at(config, None, shrink_batch=True))
    reference, plain = gate._reference, gate._plain
    assert reference.losses.dtype == torch.float64
    assert plain.losses.shape == reference.losses.shape == (STEPS,)
    assert reference.losses[-5:].mean() < reference.losses[:5].mean(), "it learns"
    assert 0 < (plain.losses - reference.losses).abs().max() < 1e-5
    task = task_at(config, None, shrink_batch=True)
    trainer = Trainer(config, replace(task.model_config, attention="manual"), task.dataset(), CPU)
    assert [trainer.train_step().item() for _ in range(STEPS)] == plain.losses.tolist()


def test_dropout_is_timed_and_not_judged(config: TrainConfig) -> None:
    dropped = replace(config, dropout=0.2, attention_dropout=0.2)
    found = compare(dropped, "manual", "flash", "math")
    assert [variant["ok"] for variant in found["variants"]] == [True, False, True]
    assert "dropout" in (found["variants"][1]["why_not"] or "")


def test_training_that_fails_even_in_float64_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="lower --learning-rate"):
        compare(replace(config, learning_rate=1e38))


@pytest.mark.parametrize(
    ("batch", "heads", "context", "rows", "length"),
    [(32, 4, 16, 32, 16), (1, 4, 1024, 1, 1024), (32, 4, 1024, 1, 1024), (4, 4, 2048, 1, 1024)],
)
def test_long_rows_are_checked_in_part(batch: int, heads: int, context: int, rows: int, length: int) -> None:
    config = TrainConfig(device="cpu", batch_size=batch, n_head=heads)
    task = task_at(config, context, shrink_batch=False)
    assert affordable(task) == (rows, length)
    gate = Gate(task)
    assert gate.task.data.ids.shape[1] == length
    assert bool(gate.note) == ((rows, length) != (batch, context))


# Rounds, ratios, shares.


def test_every_variant_has_its_blocks_and_is_compared_with_the_first(config: TrainConfig) -> None:
    heard: list[int] = []
    found = compare(config, "manual", "flash", "sdpa", blocks=3, after_block=heard.append)
    assert heard == [1, 2, 3]
    assert found["complete"]
    for variant in found["variants"]:
        assert variant["ok"]
        assert len(variant["samples_ms"]) == 3
        assert variant["step_ms"]
        assert variant["step_ms"]["low"] <= variant["step_ms"]["median"] <= variant["step_ms"]["high"]
        assert variant["peak_bytes"]
        assert variant["budget_used"] is not None
        assert 0 <= variant["budget_used"] <= 1
    assert [(between["of"], between["to"]) for between in found["ratios"]] == [
        ("manual", "flash"),
        ("manual", "sdpa"),
    ]
    assert len(found["attention_samples_ms"]) == 3
    share = ratio(found["attention_samples_ms"], found["variants"][0]["samples_ms"])
    told = [found[f"attention_share{end}"] for end in ("", "_low", "_high")]
    assert told == [share.value, share.low, share.high]
    assert [warning["code"] for warning in found["warnings"] if warning["code"] == "too few samples"]


def test_a_batch_may_be_computed_in_parts(config: TrainConfig) -> None:
    found = compare(replace(config, grad_accum=4), "manual", "flash")
    assert all(variant["ok"] for variant in found["variants"])


def test_a_name_may_come_twice(config: TrainConfig) -> None:
    found = compare(config, "flash", "flash")
    first, second = found["variants"]
    assert first["name"] == second["name"] == "flash"
    assert first["peak_bytes"] == second["peak_bytes"]
    assert first["samples_ms"] != second["samples_ms"]
    assert [(between["of"], between["to"]) for between in found["ratios"]] == [("flash", "flash")]


def test_by_hand_takes_more_memory_than_fused_and_the_more_the_longer(config: TrainConfig) -> None:
    peaks = {
        context: [variant["peak_bytes"] or 0 for variant in compare(config, context=context)["variants"]]
        for context in (16, 128)
    }
    assert all(by_hand > fused for by_hand, fused in peaks.values())
    assert peaks[128][0] / peaks[128][1] > peaks[16][0] / peaks[16][1]


@pytest.mark.parametrize("share", [0.2, 0.75])
def test_the_most_that_a_perfect_kernel_gains_follows_from_the_share(share: float) -> None:
    assert most_gain(share) == pytest.approx(1 / (1 - share))
    assert most_gain(1.2) is None


def test_attention_alone_runs_every_layer_forward_and_backward(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[Any, ...]] = []

    def counting(q: Tensor, k: Tensor, v: Tensor, **call: Any) -> Tensor:
        shapes.append((tuple(q.shape), q.stride(), q.dtype, call["causal"]))
        return manual(q, k, v, **call)

    monkeypatch.setitem(LOADED, "math", counting)
    task = task_at(replace(config, dtype="bfloat16"), None, shrink_batch=True)
    attention_alone("math", task)()
    alone = list(shapes)
    shapes.clear()
    Trainer(task.config, replace(task.model_config, attention="math"), task.dataset(), CPU).train_step()
    assert alone == shapes, "as the model calls it: sizes, strides, dtype, mask"
    assert len(alone) == task.model_config.n_layer


def test_the_batch_that_is_timed_is_the_one_of_the_context(config: TrainConfig) -> None:
    task = task_at(config, 20, shrink_batch=True)
    trainer = Trainer(task.config, replace(task.model_config, attention="flash"), task.dataset(), CPU)
    ids = trainer.batches(0)[0].ids
    assert ids.shape == (2, 20)


# Defaults and refusals.


def test_by_default_it_is_by_hand_against_flash(config: TrainConfig) -> None:
    found = compare(config)
    assert [variant["name"] for variant in found["variants"]] == ["manual", "flash"]
    assert found["notes"] == []


def test_where_flash_cannot_run_another_stands_in_and_it_is_said(config: TrainConfig) -> None:
    found = compare(replace(config, attention_dropout=0.1))
    assert [(variant["name"], variant["ok"]) for variant in found["variants"]] == [
        ("manual", True),
        ("sdpa", True),
    ]
    (note,) = found["notes"]
    assert note.startswith("sdpa in place of flash")
    assert "dropout" in note


def test_a_named_variant_that_cannot_run_is_reported_and_the_rest_runs(config: TrainConfig) -> None:
    found = compare(config, "cudnn", "efficient", "flash", "manual")
    assert [variant["ok"] for variant in found["variants"]] == [False, False, True, True]
    assert all("CPU" in (variant["why_not"] or "") for variant in found["variants"][:2])
    assert [(between["of"], between["to"]) for between in found["ratios"]] == [("flash", "manual")]


def test_if_nothing_can_run_it_is_an_error_with_every_reason(config: TrainConfig) -> None:
    with pytest.raises(UsageError) as refused:
        bench_steps(config, ("cudnn", "efficient"), (5, 10), timing=Timing(2))
    assert "cudnn: " in refused.value.found
    assert "efficient: " in refused.value.found


# Records.


def through_a_file(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    write_record(record, folder / "record.json")
    read = read_record(folder / "record.json")
    assert read == record, "plain JSON values"
    return read


def test_the_record_fits_the_schema_and_has_every_context(config: TrainConfig, tmp_path: Path) -> None:
    record = through_a_file(
        bench_steps(config, ("manual", "cudnn", "flash"), (5, 20), timing=Timing(2)), tmp_path
    )
    assert record["complete"]
    assert record["context"] == 5
    assert [found["context"] for found in record["further_contexts"]] == [20]
    for found in (record, *record["further_contexts"]):
        assert [variant["ok"] for variant in found["variants"]] == [True, False, True]
        (between,) = found["ratios"]
        assert set(between) == {"of", "to", "value", "low", "high", "verdict", "more_blocks", "equivalence"}
        assert between["low"] <= between["value"] <= between["high"]
    assert record["config"] == replace(config, dtype="float32").to_json(), "what ran"
    few = [warning for warning in record["warnings"] if warning["code"] == "too few samples"]
    assert [warning["message"].partition(":")[0] for warning in few] == ["context 5", "context 20"]


class Press:
    """Ctrl-C at the n-th time that something is heard."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, _: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("rounds", [1, 3])
def test_ctrl_c_keeps_the_rounds_that_were_finished(config: TrainConfig, rounds: int, tmp_path: Path) -> None:
    record = through_a_file(
        bench_steps(config, None, (5, 10), timing=Timing(9, after_block=Press(rounds))), tmp_path
    )
    assert not record["complete"]
    assert record["further_contexts"] == []
    assert [len(variant["samples_ms"]) for variant in record["variants"]] == [rounds, rounds]
    assert [between["verdict"] for between in record["ratios"]] == ["inconclusive"]


def test_ctrl_c_at_the_second_context_keeps_the_first_whole(config: TrainConfig, tmp_path: Path) -> None:
    record = through_a_file(
        bench_steps(config, None, (5, 10), timing=Timing(3, after_block=Press(5))), tmp_path
    )
    assert not record["complete"]
    assert [len(variant["samples_ms"]) for variant in record["variants"]] == [3, 3]
    (second,) = record["further_contexts"]
    assert [len(variant["samples_ms"]) for variant in second["variants"]] == [2, 2]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_ctrl_c_before_anything_was_timed_leaves_a_record_without_numbers(
    config: TrainConfig, at: int, tmp_path: Path
) -> None:
    record = through_a_file(bench_steps(config, None, (), timing=Timing(3, say=Press(at))), tmp_path)
    assert not record["complete"]
    assert record["ratios"] == []
    assert record["attention_share"] is None
    assert [variant["ok"] for variant in record["variants"]] == [False, False]
    assert {variant["why_not"] for variant in record["variants"]} == {INTERRUPTED}


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_every_variant_that_runs_is_right(config: TrainConfig, dtype: Any) -> None:
    on_gpu = replace(config, device="cuda", dtype=dtype, n_embd=32)
    found = compare(on_gpu)
    assert all(variant["ok"] for variant in found["variants"]), found["variants"]
    assert all(variant["peak_bytes"] for variant in found["variants"])
    assert bool(found["notes"]) == (dtype == "float32")
    every = compare(on_gpu, "manual", "sdpa", "math", "flash", "efficient", "cudnn")
    assert all(variant["ok"] or "budget" not in (variant["why_not"] or "") for variant in every["variants"])
