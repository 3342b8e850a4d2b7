"""The ablation: which variants, in which order, right before fast, when one pays, and what Ctrl-C leaves."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmore.benchmark.ablation import bench as ablation_module
from flashmore.benchmark.ablation.bench import SpeedupVariant, ablate, added, break_even, without
from flashmore.benchmark.ablation.loader import LoadedDataset
from flashmore.benchmark.plots import ablation_plot
from flashmore.benchmark.report.pages import html_page, markdown, report_on
from flashmore.benchmark.variant import INTERRUPTED, Timing
from flashmore.config import TrainConfig
from flashmore.data.batches import encode_items
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import ConfigError
from flashmore.measuring.result import read_record, write_record
from flashmore.measuring.statistics import Ratio, Spread
from flashmore.speedups import ALGORITHM, CATALOGUE, EXACT, NUMERICS
from flashmore.training.dataset import Batch, Form, ItemDataset
from flashmore.training.trainer import Trainer

NAMES = tuple(map("".join, product("bdmnrst", "aeio", ("n", "ra", "la", "m", "lo"))))
QUICK = ("resident", "fused-adamw", "trim", "pack", "muon")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return TrainConfig(
        file=path,
        device="cpu",
        n_layer=1,
        n_embd=16,
        n_head=2,
        batch_size=8,
        speedups=QUICK,
        warmup_steps=2,
        max_steps=100,
    )


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_module, "BLOCK_SECONDS", 1e-3)
    monkeypatch.setattr(ablation_module, "TRIAL_BLOCKS", 2)  # too few to drop a speed-up


def ablated(config: TrainConfig, **options: Any) -> dict[str, Any]:
    return ablate(config, timing=Timing(2), **options)


@pytest.fixture(scope="module")
def record(config: TrainConfig) -> dict[str, Any]:
    """Of all of `QUICK`, and of all without each."""
    patch = pytest.MonkeyPatch()
    patch.setattr(ablation_module, "BLOCK_SECONDS", 1e-3)
    patch.setattr(ablation_module, "TRIAL_BLOCKS", 2)
    try:
        return ablate(config, leave_one_out=True, timing=Timing(2))
    finally:
        patch.undo()


# Which variants.


def test_variants_stand_in_the_catalogues_order_and_pack_takes_trims_place(config: TrainConfig) -> None:
    found = ablated(replace(config, speedups=tuple(reversed(QUICK))))
    assert [variant["name"] for variant in found["variants"]] == ["none", *QUICK]
    assert [tuple(variant["speedups"]) for variant in found["variants"]] == [
        (),
        ("resident",),
        ("resident", "fused-adamw"),
        ("resident", "fused-adamw", "trim"),
        ("resident", "fused-adamw", "pack"),
        ("resident", "fused-adamw", "pack", "muon"),
    ]
    assert "pack replaces trim" in found["notes"]
    assert found["complete"]


def test_each_is_left_out_alone_of_all_together(record: dict[str, Any]) -> None:
    full = record["variants"][-1]["speedups"]
    assert [variant["name"] for variant in record["left_out_alone"]] == [f"without {name}" for name in full]
    for name, variant in zip(full, record["left_out_alone"], strict=True):
        assert set(variant["speedups"]) == set(full) - {name}
        assert variant["ratio_before"] is not None
        assert variant["ratio_before"]["of"] == record["variants"][-1]["name"]
        assert variant["break_even_steps"] is None


def test_without_a_speedup_its_parts_go_too() -> None:
    names = ("resident", "compile", "max-autotune", "bf16")
    assert without("compile", names) == ("resident", "bf16")
    assert without("max-autotune", names) == ("resident", "compile", "bf16")


def test_a_group_leaves_out_what_cannot_work_with_its_reason() -> None:
    names, left_out = added(("all",), lambda name: "no reason" if name == "pack" else None)
    assert names == tuple(name for name in CATALOGUE if name not in ("pack", "kv-cache"))
    assert {one["name"]: one["why"] for one in left_out}["pack"] == "no reason"
    exact, _ = added(("exact",), lambda _: None)
    assert all(CATALOGUE[name].exactness == EXACT for name in exact)


@pytest.mark.parametrize("asked", [("pack",), ("kv-cache",), ("turbo",), ("none",)], ids=str)
def test_what_cannot_be_added_is_an_error_by_name(asked: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=asked[0]):
        added(asked, lambda _: "it does not work here")


def test_what_would_take_too_long_is_left_out_and_said(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation_module, "COMPILING", 1e6)
    chosen = replace(config, speedups=("resident", "compile", "max-autotune", "muon"))
    monkeypatch.setattr(ablation_module, "why_not", lambda *_: None)
    found = ablated(chosen, seconds=60)
    assert [variant["name"] for variant in found["variants"]] == ["none", "resident", "muon"]
    reasons = {one["name"]: one["why"] for one in found["left_out"]}
    assert "--seconds" in reasons["compile"]
    assert reasons["max-autotune"] == "it is part of compile"


def test_the_plain_loop_has_the_same_batches() -> None:
    """`resident` is measured against a DataLoader that gives the same rows."""
    items = ("abc", "b", "cabca", "ac", "bbb", "a", "cc")
    vocabulary = Vocabulary.from_items(items)
    resident = ItemDataset(encode_items(items, vocabulary, 7, "cpu"), batch_size=3, seed=5)
    loaded = LoadedDataset(resident)
    forms: tuple[Form, ...] = ("padded", "trimmed", "packed")
    parts = ((0, 1), (1, 3), (2, 3))  # the whole batch, and slices of it
    for step, form, part in product(range(5), forms, parts):  # beyond an epoch
        expected, found = resident.batch(step, form, part), loaded.batch(step, form, part)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.targets, expected.targets)
        assert found.characters == expected.characters
        assert (found.segments is None) == (expected.segments is None) == (form != "packed")


# Right before fast.


def test_exact_variants_use_a_part_of_their_budget_and_others_tell_their_loss(record: dict[str, Any]) -> None:
    for variant in record["variants"]:
        assert variant["ok"], variant["why_not"]
        if variant["name"] == "muon":
            assert variant["budget_used"] is None
            assert variant["loss_difference"] is not None
            assert variant["loss_difference"] != 0
        else:
            assert variant["budget_used"] is not None
            assert 0 <= variant["budget_used"] <= 1
            assert variant["loss_difference"] is None


def test_a_variant_that_is_not_the_plain_loop_has_no_number_and_is_not_kept(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packing that loses the last item of each batch: faster, and wrong."""
    right = Trainer.batches

    def wrong(self: Trainer, step: int) -> list[Batch]:
        (batch,) = right(self, step)
        if self.form == "packed":
            targets = batch.targets.clone()
            targets[-2:] = -1
            return [replace(batch, targets=targets)]
        return [batch]

    monkeypatch.setattr(Trainer, "batches", wrong)
    found = {variant["name"]: variant for variant in ablated(config)["variants"]}
    assert found["pack"]["why_not"] is not None
    assert "differ from the plain loop's" in found["pack"]["why_not"]
    assert found["pack"]["step_ms"] is None
    assert not found["pack"]["samples_ms"]
    assert found["muon"]["speedups"] == ["resident", "fused-adamw", "trim", "muon"]
    assert found["muon"]["ok"]


def test_dropout_is_off_for_the_check_alone(config: TrainConfig) -> None:
    found = ablated(replace(config, dropout=0.3, speedups=("resident", "pack")))
    assert all(variant["ok"] for variant in found["variants"])
    assert "results were checked without dropout" in found["notes"]


def test_a_loop_that_diverges_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="lower --learning-rate"):
        ablated(replace(config, learning_rate=1e30, grad_clip=0.0, warmup_steps=0))


@pytest.mark.parametrize(
    ("names", "kind"),
    [((), EXACT), (("pack",), EXACT), (("pack", "bf16"), NUMERICS), (("bf16", "muon"), ALGORITHM)],
    ids=str,
)
def test_a_set_is_as_exact_as_its_least_exact_member(names: tuple[str, ...], kind: str) -> None:
    assert SpeedupVariant("x", speedups=names).exactness == kind


# When one pays.


def variant(step_ms: float, first: float, *, low: float = 1.5) -> SpeedupVariant:
    made = SpeedupVariant("x", first_step_seconds=first, step_ms=Spread(step_ms, step_ms, step_ms))
    made.ratio_before = Ratio(2.0, low, 3.0, 20).to_json("before", "x")
    return made


def test_a_longer_first_step_is_earned_back() -> None:
    assert break_even(variant(20, 1.0), variant(10, 31.0)) == 3000  # 30 s against 10 ms a step
    assert break_even(variant(20, 1.0), variant(10, 0.5)) == 0
    assert break_even(variant(20, 1.0), variant(20, 0.5)) is None
    assert break_even(variant(20, 1.0), variant(10, 31.0, low=1.0)) is None  # perhaps no difference at all


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 100), st.floats(0, 100))
def test_after_break_even_the_whole_run_is_no_longer(a: float, b: float, x: float, y: float) -> None:
    before, after = variant(a, x), variant(b, y)
    steps = break_even(before, after)
    if steps is None:
        assert b >= a
    else:
        assert 1000 * y + steps * b <= 1000 * x + steps * a + 1e-6 * (1 + steps * a)


def test_a_speed_up_that_is_slower_is_dropped_before_the_next_one(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By recorded samples of the trials: 10 ms a step, and 20 with `trim`."""

    def recorded(steps: dict[str, Any], **_: Any) -> dict[str, list[list[float]]]:
        return {name: [[20.0 if name == "trim" else 10.0]] * 8 for name in steps}

    monkeypatch.setattr(ablation_module, "alternate", recorded)
    found = ablated(replace(config, speedups=("resident", "trim", "muon")), leave_one_out=True)
    trim, muon = (next(one for one in found["variants"] if one["name"] == name) for name in ("trim", "muon"))
    assert (trim["kept"], trim["speedups"]) == (False, ["resident", "trim"])
    assert (muon["kept"], muon["speedups"], muon["before"]) == (True, ["resident", "muon"], "resident")
    assert muon["ratio_before"]["of"] == "resident"
    assert [one["name"] for one in found["left_out_alone"]] == ["without resident", "without muon"]
    assert all(one["ratio_before"]["of"] == "muon" for one in found["left_out_alone"])
    assert any("trim is slower" in note for note in found["notes"])


def test_the_rounds_end_with_the_time_budget(config: TrainConfig) -> None:
    found = ablate(replace(config, speedups=("resident",)), seconds=1e-6, timing=Timing(1000))
    assert [len(one["samples_ms"]) for one in found["variants"] if one["ok"]] == [1]


# Numbers, records, interruption.


def test_every_variant_has_its_samples_ratio_and_memory(record: dict[str, Any]) -> None:
    for number, one in enumerate(record["variants"]):
        assert one["step_ms"] is not None
        assert len(one["samples_ms"]) == 2
        assert one["first_step_seconds"] is not None
        assert one["first_step_seconds"] > 0
        assert one["peak_bytes"] is not None
        assert (one["ratio"] is None) == (number == 0)
        if one["ratio"] is not None and one["ratio_before"] is not None:
            assert (one["ratio"]["of"], one["ratio"]["to"]) == ("none", one["name"])
            assert one["ratio_before"]["of"] == record["variants"][number - 1]["name"]


@pytest.mark.parametrize("when", ["preparing pack", "timing in alternating blocks"])
def test_ctrl_c_keeps_what_was_measured(config: TrainConfig, when: str, tmp_path: Path) -> None:
    def press(what: str) -> None:
        if what == when:
            raise KeyboardInterrupt

    record = ablate(config, timing=Timing(2, say=press))
    assert not record["complete"]
    assert all(one["why_not"] == INTERRUPTED for one in record["variants"])
    write_record(record, tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") == record


def test_ctrl_c_between_rounds_keeps_the_whole_ones(config: TrainConfig) -> None:
    def press(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    record = ablate(config, timing=Timing(9, after_block=press))
    assert not record["complete"]
    assert all(len(one["samples_ms"]) == 3 for one in record["variants"])


def test_the_record_fits_the_schema(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(record, path)
    assert read_record(path) == record
    for one in record["variants"]:
        median = one["step_ms"]["median"]
        assert one["characters_per_s"] == pytest.approx(1000 * record["characters_a_step"] / median)


def test_the_report_tells_every_variant_and_every_reason(record: dict[str, Any]) -> None:
    report = report_on([("ablation.json", record), ("again.json", record)])
    page, (text, _) = html_page(report), markdown(report, "report")
    for one in (*record["variants"], *record["left_out_alone"]):
        assert one["name"] in page
        assert one["name"] in text
    assert "pack replaces trim" in text
    assert "Ablation of speed-ups" in page
    assert "times as fast as the plain loop" in text
    assert page.count("<svg") == 2


def test_the_picture_has_a_bar_a_variant_and_says_why_one_is_missing(record: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(record))
    changed["variants"][3] |= {"ok": False, "why_not": "out of luck", "step_ms": None, "samples_ms": []}
    first, second = ablation_plot(changed).axes
    assert len(first.patches) == len(record["variants"]) - 1
    assert len(second.patches) == len(record["left_out_alone"])
    assert "out of luck" in [text.get_text() for text in first.texts]
