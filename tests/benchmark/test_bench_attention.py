"""The kernels' benchmark: its budgets, its gate, its rows, and what an interrupted one keeps."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashmore.backends.contract import LOADED, attention_accuracy, load_backend
from flashmore.benchmark.attention.bench import TimeBudget, bench_attention
from flashmore.benchmark.attention.passes import Inputs
from flashmore.benchmark.attention.plan import (
    AttentionPlan,
    check_bytes,
    inputs_bytes,
    peak_estimate,
)
from flashmore.benchmark.report.summaries import summarize
from flashmore.benchmark.report.values import PASSES
from flashmore.call import CallOptions
from flashmore.measuring.result import read_record, write_record
from flashmore.memory import cpu_quota, free_bytes, left_in_group

CPU = torch.device("cpu")
SMALL = AttentionPlan(
    length=(16, 32), batch_size=(2,), n_head=(2,), head_dim=(8,), device="cpu", seconds=60.0
)
UNHURRIED = replace(SMALL, seconds=1000.0)
"""For clocks that tick at every reading."""
Record = dict[str, Any]


class Ticking:
    """A clock of which every reading takes a hundredth of a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def fits_the_schema(record: Record, folder: Path) -> Record:
    write_record(record, folder / "record.json")
    return read_record(folder / "record.json")


def whole_rows(record: Record, backend: str) -> dict[int, Record]:
    return {row["T"]: row for row in record["rows"] if row["backend"] == backend and row["pass"] == "both"}


# Budgets.


@given(st.lists(st.integers(16, 4096), min_size=1, max_size=9), st.floats(1, 1000), st.floats(0, 1))
def test_shares_of_the_time_never_exceed_it_and_the_last_takes_what_is_left(
    lengths: list[int], seconds: float, used: float
) -> None:
    now = 0.0
    shapes = [CallOptions(batch_size=1, n_head=4, length=T, head_dim=16, dtype="float32") for T in lengths]
    budget = TimeBudget(seconds, shapes, lambda: now)
    for _ in lengths:
        left, share = budget.left(), budget.next_share()
        assert 0 < share <= left * (1 + 1e-9)
        now += used * share
    assert share == pytest.approx(left)


def test_free_memory_is_some_of_what_there_is() -> None:
    assert 0 < free_bytes(CPU) <= psutil.virtual_memory().total


def test_a_limit_of_the_control_group_counts(tmp_path: Path) -> None:
    assert left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert left_in_group(tmp_path) == 700


@pytest.mark.parametrize(
    ("limit", "cpus"), [("max 100000", None), ("50000 100000", 1), ("150000 100000", 2), ("400000 100000", 4)]
)
def test_a_container_s_cpu_quota_is_known(tmp_path: Path, limit: str, cpus: int | None) -> None:
    assert cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text(limit + "\n", encoding="utf-8")
    assert cpu_quota(tmp_path) == cpus


def test_what_exceeds_the_memory_is_left_out_by_name_and_the_rest_runs(tmp_path: Path) -> None:
    shape = CallOptions(batch_size=8, n_head=4, length=64, head_dim=4, dtype="float32")
    flash = peak_estimate("flash", shape, device="cpu", threads=torch.get_num_threads())
    enough = inputs_bytes(shape) + max(flash, check_bytes(shape, checked_pairs=4))
    assert enough < peak_estimate("manual", shape, device="cpu", threads=1)
    plan = AttentionPlan(
        length=(16, 64),
        batch_size=(8,),
        n_head=(4,),
        head_dim=(4,),
        device="cpu",
        seconds=60,
        memory=enough / 2**30,
    )
    record = fits_the_schema(bench_attention(plan), tmp_path)
    by_hand, flash_rows = whole_rows(record, "manual"), whole_rows(record, "flash")
    assert by_hand[16]["ok"]
    assert not by_hand[64]["ok"]
    assert "GiB, and the limit is" in by_hand[64]["why_not"]
    assert flash_rows[64]["ok"]
    # float64 takes room as well: not all of the 32 matrices were held against it, and the record says so.
    assert flash_rows[16]["checked_pairs"] == 32
    assert 1 <= flash_rows[64]["checked_pairs"] < 32


def test_what_would_take_too_long_is_left_out_by_name(tmp_path: Path) -> None:
    plan = AttentionPlan(
        length=(16, 4096), batch_size=(1,), n_head=(1,), head_dim=(8,), device="cpu", seconds=60
    )
    record = fits_the_schema(bench_attention(plan, clock=Ticking()), tmp_path)
    for backend in ("manual", "math", "flash"):
        rows = whole_rows(record, backend)
        assert rows[16]["ok"]
        assert "of 60 s are left" in rows[4096]["why_not"]


def test_math_is_the_first_that_is_left_out_for_time() -> None:
    clock = Ticking()

    def hurry(said: str) -> None:
        if said.startswith("T 32"):
            clock.now = 60 - 3.0  # forward and backward take 0.02 s at T = 16: each needs at least 1.1 s

    plan = AttentionPlan(
        length=(16, 32), batch_size=(1,), n_head=(1,), head_dim=(8,), device="cpu", seconds=60
    )
    record = bench_attention(plan, clock=clock, say=hurry)
    ran = {name: whole_rows(record, name)[32]["ok"] for name in ("manual", "math", "flash")}
    assert ran == {"manual": True, "math": False, "flash": True}


# A whole, tiny benchmark.


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return fits_the_schema(bench_attention(SMALL), tmp_path_factory.mktemp("small"))


def test_every_backend_shape_and_pass_has_one_row(record: Record) -> None:
    found = [(row["backend"], row["T"], row["pass"]) for row in record["rows"]]
    assert len(found) == len(set(found)) == 7 * 2 * 3
    assert record["complete"]


def test_what_runs_has_numbers_and_what_cannot_has_its_reasons(record: Record) -> None:
    for row in record["rows"]:
        runs = row["backend"] in ("manual", "math", "flash")
        assert row["ok"] == runs, row
        if runs:
            assert row["error"] <= row["error_budget"]
            assert row["peak_bytes"] > 0
            assert row["cold_ms"] > 0
            assert row["checked_pairs"] == 4
            flops = 4 * 2 * 2 * row["T"] ** 2 * 8 / 2
            flops *= {"forward": 1, "backward": 2.5, "both": 3.5}[row["pass"]]
            assert row["tflop_per_s"] == pytest.approx(flops / row["time_ms"]["median"] / 1e9)
        else:
            why = {"flex": "no backward pass on cpu", "varlen": "a CUDA kernel"}
            assert why.get(row["backend"], "no CPU kernel of this name") in row["why_not"]


def test_both_is_the_sum_of_forward_and_backward_sample_by_sample(record: Record) -> None:
    samples = {(row["backend"], row["T"], row["pass"]): row["samples_ms"] for row in record["rows"]}
    for backend, T in (("manual", 16), ("flash", 32)):
        passes = (samples[backend, T, which] for which in ("forward", "backward", "both"))
        for blocks in zip(*passes, strict=True):
            for forward, backward, both in zip(*blocks, strict=True):
                assert both == pytest.approx(forward + backward, abs=2e-6)


def test_fused_is_compared_with_by_hand_at_every_length(record: Record) -> None:
    assert [(ratio["of"], ratio["to"], ratio["T"]) for ratio in record["ratios"]] == [
        ("manual", "flash", 16),
        ("manual", "flash", 32),
    ]
    assert record["crossovers"] == [
        {
            "B": 2,
            "H": 2,
            "D": 8,
            "dtype": "float32",
            "causal": True,
            "L": None,
            "H_kv": 2,
            "D_v": 8,
            "mask": "none",
            "dropout_p": 0.0,
            "passes": "both",
            "T": record["crossover_T"],
        }
    ]


def test_equal_times_have_no_crossover() -> None:
    record = bench_attention(UNHURRIED, clock=Ticking())
    assert [ratio["verdict"] for ratio in record["ratios"]] == ["no difference"] * 2
    assert record["crossover_T"] is None


def test_a_backend_that_is_wrong_has_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = load_backend("flash")

    def wrong(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        return right(q, k, v, **how) + 1e-3 * v  # the output and dv are off, dq and dk are not

    monkeypatch.setitem(LOADED, "flash", wrong)
    record = fits_the_schema(bench_attention(SMALL), tmp_path)
    row = whole_rows(record, "flash")[32]
    assert not row["ok"]
    assert row["samples_ms"] == []
    assert row["why_not"].endswith("out, dv")
    assert row["error"] > row["error_budget"]
    assert whole_rows(record, "manual")[32]["ok"]
    assert record["ratios"] == []


@given(B=st.integers(1, 3), H=st.integers(1, 3), where=st.tuples(st.integers(0, 2), st.integers(0, 2)))
@settings(max_examples=20)
def test_a_part_of_the_matrices_is_the_last_part(B: int, H: int, where: tuple[int, int]) -> None:
    """A backend that is wrong for one head is caught when that head is among those that are checked."""
    right = load_backend("flash")

    def wrong(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        off = torch.zeros(3, 3, 1, 1)
        off[where] = 1e-2
        return right(q, k, v, **how) + off

    shape = CallOptions(batch_size=3, n_head=3, length=8, head_dim=4, dtype="float32")
    inputs = Inputs.random(shape, CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOADED, "flash", wrong)
        judged = attention_accuracy("flash", inputs.q, inputs.k, inputs.v, causal=True, part=(B, H))
    checked = where[0] >= 3 - B and where[1] >= 3 - H
    assert judged[0].good != checked
    assert all(judgement.good for judgement in judged[1:])


@pytest.mark.parametrize(
    ("options", "settings", "ran"),
    [
        ({"length": (1,), "source_length": (16, 32), "n_kv_head": 1, "gqa": True, "passes": "forward"},
         {"L": 1, "H_kv": 1, "causal": False, "passes": "forward"}, ("forward",)),
        ({"mask": "padding"}, {"mask": "padding", "causal": False}, ("forward", "backward", "both")),
        ({"mask": "float", "mask_dims": 4, "passes": "backward"},
         {"mask": "float 4-D", "passes": "backward"}, ("backward",)),
    ],
    ids=str,
)  # fmt: skip
def test_other_calls_are_checked_timed_and_named(
    options: dict[str, Any], settings: Record, ran: tuple[str, ...], tmp_path: Path
) -> None:
    plan = replace(SMALL, seconds=10, backends=("manual", "math", "flash"), **options)
    record = fits_the_schema(bench_attention(plan), tmp_path)
    assert [row["pass"] for row in record["rows"] if (row["backend"], row["T"]) == ("flash", 32)] == [*ran]
    assert {row["T"] for row in record["rows"]} == {16, 32}
    for row in (*record["rows"], *record["ratios"], *record["crossovers"]):
        assert settings.items() <= row.items()
    for row in record["rows"]:
        assert row["ok"], row["why_not"]
        assert 0 < row["error"] <= row["error_budget"]
        assert row["peak_bytes"] > 0
    assert [(ratio["to"], ratio["T"]) for ratio in record["ratios"]] == [("flash", 16), ("flash", 32)]
    assert PASSES[settings.get("passes", "both")].split()[0] in summarize(record).plots[0].title


def test_what_a_backend_cannot_do_is_left_out_with_its_reason() -> None:
    rows = bench_attention(replace(SMALL, seconds=10, value_dim=4))["rows"]
    (why,) = {row["why_not"] for row in rows if row["backend"] == "flash"}
    assert why.startswith("v has 4 channels a head, q has 8")
    assert all(row["ok"] for row in rows if row["backend"] == "manual")


def test_a_backend_that_ignores_the_mask_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    right = load_backend("flash")

    def wrong(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        return right(q, k, v, **how | {"mask": None})

    monkeypatch.setitem(LOADED, "flash", wrong)
    plan = replace(SMALL, seconds=10, mask="padding", passes="forward", backends=("manual", "flash"))
    record = bench_attention(plan)
    rows = [row for row in record["rows"] if row["backend"] == "flash"]
    assert [row["why_not"] for row in rows] == ["its error is too large for its precision: out"] * 2


# Interrupted.


class Interrupting(Ticking):
    """A clock at whose n-th reading something happens: mostly, Ctrl-C is pressed."""

    def __init__(self, n: int, what: BaseException | None = None) -> None:
        super().__init__()
        self.what = what or KeyboardInterrupt()
        self.readings = count(1)
        self.n = n

    def __call__(self) -> float:
        if next(self.readings) == self.n:
            raise self.what
        return super().__call__()


@pytest.mark.parametrize("n", [3, 10, 40, 100, 1000, 3000])
def test_ctrl_c_at_any_moment_keeps_whole_rounds(n: int, tmp_path: Path) -> None:
    record = fits_the_schema(bench_attention(UNHURRIED, clock=Interrupting(n)), tmp_path)
    assert not record["complete"]
    blocks: dict[int, set[int]] = {}
    for row in record["rows"]:
        if row["ok"]:
            blocks.setdefault(row["T"], set()).add(len(row["samples_ms"]))
            assert len({len(block) for block in row["samples_ms"]}) == 1
    assert all(len(counts) == 1 for counts in blocks.values()), blocks


def test_ctrl_c_between_two_shapes_keeps_the_first() -> None:
    def press(said: str) -> None:
        if said.startswith("T 32"):
            raise KeyboardInterrupt

    record = bench_attention(SMALL, say=press)
    assert not record["complete"]
    assert {row["T"] for row in record["rows"]} == {16}
    assert json.dumps(record, allow_nan=False)


def test_memory_that_runs_out_while_timing_is_a_reason_and_not_the_end(tmp_path: Path) -> None:
    clock = Interrupting(1000, MemoryError("no memory left"))
    record = fits_the_schema(bench_attention(UNHURRIED, clock=clock), tmp_path)
    assert record["complete"]
    assert whole_rows(record, "flash")[16]["why_not"] == "torch says: no memory left"
    assert whole_rows(record, "flash")[32]["ok"]
    assert [ratio["T"] for ratio in record["ratios"]] == [32]


@pytest.mark.cuda
def test_on_cuda_events_time_what_runs_there(tmp_path: Path) -> None:
    plan = AttentionPlan(
        length=(64, 256), batch_size=(2,), n_head=(4,), head_dim=(64,), device="cuda", seconds=20
    )
    record = fits_the_schema(bench_attention(plan), tmp_path)
    for backend in ("manual", "math", "flash", "efficient"):
        row = whole_rows(record, backend)[256]
        assert row["ok"], row["why_not"]
        # The first call plans and loads: it takes longer than any later one.
        assert row["cold_ms"] > row["time_ms"]["median"]
