"""What attention costs by arithmetic, from where fused attention wins, and which shapes a plan comes to."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from flashmore.backends.manual import manual
from flashmore.benchmark.attention.bench import crossover
from flashmore.benchmark.attention.passes import Inputs, Passes, Stopwatch
from flashmore.benchmark.attention.plan import (
    AttentionPlan,
    attention_flops,
    described,
    peak_estimate,
    setting_of,
)
from flashmore.call import CallOptions
from flashmore.errors import ConfigError
from flashmore.measuring.statistics import Ratio

CPU = torch.device("cpu")

# Arithmetic.


@pytest.mark.parametrize(
    ("sizes", "causal", "which", "flops"),
    [
        ((1, 1, 2, 3, 5), False, "forward", 120),  # 2 products of 2·3·5 multiplications and additions
        ((4, 16, 1024, 1024, 64), False, "forward", 17_179_869_184),
        ((4, 16, 1024, 1024, 64), True, "forward", 8_589_934_592),
        ((4, 16, 1024, 1024, 64), True, "backward", 21_474_836_480),
        ((4, 16, 1024, 1024, 64), True, "both", 30_064_771_072),
    ],
)
def test_flops_are_those_of_published_benchmarks(sizes: Any, causal: bool, which: Any, flops: float) -> None:
    assert attention_flops(*sizes, causal=causal, which=which) == flops


@given(
    B=st.integers(1, 3), H=st.integers(1, 3), L=st.integers(1, 9), S=st.integers(1, 9), D=st.integers(1, 9)
)
def test_forward_flops_are_what_torch_counts_in_attention_by_hand(
    B: int, H: int, L: int, S: int, D: int
) -> None:
    q, k, v = torch.zeros(B, H, L, D), torch.zeros(B, H, S, D), torch.zeros(B, H, S, D)
    with FlopCounterMode(display=False) as counted:
        manual(q, k, v, mask=None, causal=False, scale=None, dropout_p=0.0)
    assert counted.get_total_flops() == attention_flops(B, H, L, S, D, causal=False, which="forward")


SHAPES = (
    CallOptions(batch_size=1, n_head=4, length=16, head_dim=16, dtype="float32"),
    CallOptions(batch_size=8, n_head=4, length=64, head_dim=16, dtype="float32"),
    CallOptions(batch_size=2, n_head=2, length=256, head_dim=64, dtype="float32", full=True),
    CallOptions(batch_size=1, n_head=2, length=1024, head_dim=32, dtype="float32"),
    CallOptions(batch_size=1, n_head=4, length=512, head_dim=64, dtype="bfloat16"),
    CallOptions(batch_size=4, n_head=4, length=128, head_dim=8, dtype="float16", full=True),
)

DECODE = CallOptions(
    batch_size=2, n_head=8, n_kv_head=2, gqa=True, length=1, source_length=4096, head_dim=64, passes="forward"
)
OTHER_SHAPES = (
    DECODE,
    CallOptions(batch_size=2, n_head=8, n_kv_head=2, gqa=True, length=256, head_dim=32),
    CallOptions(batch_size=2, n_head=4, length=128, source_length=512, head_dim=64, mask="bool"),
    CallOptions(batch_size=2, n_head=4, length=256, head_dim=64, mask="padding", passes="forward"),
    CallOptions(batch_size=2, n_head=4, length=256, head_dim=64, mask="float", mask_dims=4),
)


@pytest.mark.parametrize("shape", SHAPES + OTHER_SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["manual", "math", "flash"])
def test_estimated_memory_is_within_a_factor_of_two_of_the_measured_peak(
    backend: str, shape: CallOptions
) -> None:
    passes = Passes(backend, shape, Inputs.random(shape, CPU), Stopwatch(CPU))
    passes()
    peak = passes.peak_bytes()[shape.passes]
    assert peak is not None
    estimate = peak_estimate(backend, shape, device="cpu", threads=torch.get_num_threads())
    assert peak / 2 < estimate < peak * 2


@pytest.mark.parametrize("backend", ["manual", "math"])
def test_estimated_memory_is_near_where_it_matters(backend: str) -> None:
    shape = CallOptions(batch_size=1, n_head=1, length=2048, head_dim=16, dtype="float32")
    passes = Passes(backend, shape, Inputs.random(shape, CPU), Stopwatch(CPU))
    peak = passes.peak_bytes()["both"]
    assert peak is not None
    assert 0.95 < peak_estimate(backend, shape, device="cpu", threads=1) / peak < 1.1


# Where fused attention begins to win.

FASTER, SAME, SLOWER = Ratio(2.0, 1.5, 2.5, 30), Ratio(1.0, 0.9, 1.1, 30), Ratio(0.5, 0.4, 0.6, 30)
RATIOS = st.dictionaries(st.integers(1, 10_000), st.sampled_from((FASTER, SAME, SLOWER)))


@given(RATIOS)
def test_fused_attention_wins_from_the_crossover_on_and_not_just_before_it(ratios: dict[int, Ratio]) -> None:
    found = crossover(ratios)
    assert found is None or found in ratios
    assert all(ratio is FASTER for T, ratio in ratios.items() if found is not None and found <= T)
    below = [T for T in ratios if found is None or found > T]
    assert not below or ratios[max(below)] is not FASTER


@given(RATIOS, st.sampled_from((SAME, SLOWER)))
def test_there_is_no_crossover_where_the_longest_does_not_win(ratios: dict[int, Ratio], last: Ratio) -> None:
    assert crossover(ratios | {20_000: last}) is None


@pytest.mark.parametrize(("low", "found"), [(1.001, 64), (1.0, None), (0.99, None)])
def test_a_win_needs_its_whole_interval_above_one(low: float, found: int | None) -> None:
    assert crossover({64: Ratio(1.2, low, 1.3, 30)}) == found


# The plan.


def test_lists_are_combined_and_the_shortest_come_first() -> None:
    plan = AttentionPlan(length=(64, 16, 64), batch_size=(1, 2), head_dim=(8,), causal=True, full=True)
    shapes = plan.calls("cpu")
    assert [shape.length for shape in shapes] == [16] * 4 + [64] * 4
    assert [(shape.batch_size, shape.is_causal) for shape in shapes[:4]] == [
        (1, True),
        (1, False),
        (2, True),
        (2, False),
    ]
    assert len({setting_of(shape) for shape in shapes}) == 4


@pytest.mark.parametrize(
    ("device", "longest", "dtype"), [("cpu", 4096, "float32"), ("cuda", 16_384, "bfloat16")]
)
def test_defaults_go_up_in_powers_of_two(device: str, longest: int, dtype: str) -> None:
    shapes = AttentionPlan().calls(device)
    assert shapes[0].length == 16
    assert longest == shapes[-1].length
    assert all(b.length == 2 * a.length for a, b in pairwise(shapes))
    assert {(shape.dtype, shape.is_causal) for shape in shapes} == {(dtype, True)}


def test_decoding_is_a_curve_against_the_keys() -> None:
    plan = AttentionPlan(length=(1, 2), source_length=(64, 16), n_head=(4,), n_kv_head=2, gqa=True)
    found = plan.calls("cpu")
    assert [(one.length, one.keys) for one in found] == [(1, 16), (2, 16), (1, 64), (2, 64)]
    assert len({setting_of(one) for one in found}) == 2
    assert not any(one.is_causal for one in found)
    told = described(found[2])
    assert (told["T"], told["L"], told["H"], told["H_kv"], told["mask"]) == (64, 1, 4, 2, "none")


def test_flops_count_the_channels_of_values() -> None:
    found = attention_flops(1, 1, 2, 3, 5, causal=False, which="forward", D_v=7)
    assert found == 2 * 2 * 3 * (5 + 7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": (0,)},
        {"source_length": (0,)},
        {"batch_size": (2, -1)},
        {"n_head": (2**40,)},
        {"head_dim": (0,)},
        {"dtype": ("int8",)},
        {"backends": ()},
        {"backends": ("sdpa",)},
        {"threads": -1},
        {"seconds": 0.0},
        {"seconds": float("nan")},
        {"memory": -1.0},
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused_by_their_option(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        AttentionPlan(**wrong)
    assert "--" + next(iter(wrong)).replace("_", "-") in refused.value.wanted
