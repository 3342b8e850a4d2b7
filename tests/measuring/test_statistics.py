"""Ratios, their intervals and verdicts: their laws, and how often they are right where the truth is known."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmore.measuring.statistics import FEWEST_PAIRS, Ratio, ratio, spread

Floats = npt.NDArray[np.float64]

times = st.lists(st.floats(0.01, 100), min_size=1, max_size=4)
pairs_of_blocks = st.lists(st.tuples(times, times), min_size=1, max_size=12)

# The noise model of the simulation. One variant's block b in round r, sample s, takes
#     true time · exp(drift(t) + block noise + step noise)
# with step noise normal, 5 %; block noise normal, 3 %, anew for every block of every variant; and slow drift,
# the same for both: it rises by 10 % over the run, and a wave of 5 % comes half a time to twice.
STEP_NOISE = 0.05
BLOCK_NOISE = 0.03
DRIFT = 0.10
WAVE = 0.05
BLOCKS = 30
REPEATS = 10
RUNS = 2000


def simulate(rng: np.random.Generator, truth: float, blocks: int = BLOCKS) -> tuple[Floats, Floats]:
    """Blocks of two variants, the second `truth` times as fast as the first, in alternating order."""
    t = np.arange(2 * blocks) / (2 * blocks)
    log_ms = DRIFT * t + WAVE * np.sin(2 * np.pi * (rng.uniform(0.5, 2) * t + rng.uniform()))
    log_ms = log_ms + rng.normal(0, BLOCK_NOISE, 2 * blocks)
    samples = np.exp(log_ms[:, None] + rng.normal(0, STEP_NOISE, (2 * blocks, REPEATS)))
    first, second = samples[0::2], samples[1::2]
    backwards = np.arange(blocks)[:, None] % 2 == 1  # every second round the other way
    return np.where(backwards, second, first), np.where(backwards, first, second) / truth


def simulated_ratios(truth: float, runs: int = RUNS, blocks: int = BLOCKS) -> list[Ratio]:
    rng = np.random.default_rng(20261122)
    found = []
    for _ in range(runs):
        of, to = simulate(rng, truth, blocks)
        found.append(ratio(of.tolist(), to.tolist()))
    return found


def covered(found: list[Ratio], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def test_two_identical_variants_are_called_different_in_at_most_5_percent_of_2000_runs() -> None:
    found = simulated_ratios(1.0)
    different = np.mean([one.verdict in ("faster", "slower") for one in found])
    assert different <= 0.05
    assert covered(found, 1.0) >= 0.93


def test_a_true_difference_of_10_percent_is_found_in_at_least_90_percent_of_2000_runs() -> None:
    found = simulated_ratios(1.1)
    right = np.mean([one.verdict == "faster" for one in found])
    assert right >= 0.90
    assert covered(found, 1.1) >= 0.93


@pytest.mark.parametrize("truth", [1.0, 1.1])
def test_with_few_blocks_the_interval_is_wider_and_nearly_as_honest(truth: float) -> None:
    few = simulated_ratios(truth, runs=400, blocks=8)
    many = simulated_ratios(truth, runs=400)
    assert covered(few, truth) >= 0.90
    width = [np.median([one.high - one.low for one in found]) for found in (few, many)]
    assert width[0] > 1.5 * width[1]


def test_every_tenth_block_disturbed_leaves_the_ratio_where_it_is() -> None:
    rng = np.random.default_rng(7)
    of, to = simulate(rng, 1.1)
    calm = ratio(of.tolist(), to.tolist())
    of[::10] *= 3.0
    disturbed = ratio(of.tolist(), to.tolist())
    assert disturbed.verdict == calm.verdict == "faster"
    assert disturbed.value == pytest.approx(calm.value, rel=0.03)


@given(pairs_of_blocks, st.floats(0.001, 1000))
def test_the_unit_of_time_does_not_matter(pairs: list[tuple[list[float], list[float]]], unit: float) -> None:
    of, to = zip(*pairs, strict=True)
    plain = ratio(of, to)
    scaled = ratio([[unit * x for x in block] for block in of], [[unit * x for x in block] for block in to])
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((plain.value, plain.low, plain.high))


@given(pairs_of_blocks, st.floats(0.01, 100))
def test_making_one_side_faster_makes_the_ratio_larger_by_as_much(
    pairs: list[tuple[list[float], list[float]]], factor: float
) -> None:
    of, to = zip(*pairs, strict=True)
    plain, faster = ratio(of, to), ratio(of, [[x / factor for x in block] for block in to])
    assert (faster.value, faster.low, faster.high) == pytest.approx(
        (factor * plain.value, factor * plain.low, factor * plain.high)
    )


@given(pairs_of_blocks)
def test_the_other_way_round_it_is_the_inverse(pairs: list[tuple[list[float], list[float]]]) -> None:
    of, to = zip(*pairs, strict=True)
    there, back = ratio(of, to), ratio(to, of)
    assert (1 / back.value, 1 / back.high, 1 / back.low) == pytest.approx(
        (there.value, there.low, there.high)
    )


@given(pairs_of_blocks)
def test_against_itself_it_is_1_and_no_difference_with_enough_pairs(
    pairs: list[tuple[list[float], list[float]]],
) -> None:
    of, _ = zip(*pairs, strict=True)
    same = ratio(of, of)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    assert same.verdict == ("no difference" if len(pairs) >= FEWEST_PAIRS else "inconclusive")


@given(pairs_of_blocks)
def test_the_value_lies_among_the_pairs(pairs: list[tuple[list[float], list[float]]]) -> None:
    of, to = zip(*pairs, strict=True)
    found = ratio(of, to)
    singles = [float(np.median(a) / np.median(b)) for a, b in pairs]
    within = (1 - 1e-9, 1 + 1e-9)
    assert min(singles) * within[0] <= found.low <= found.high <= max(singles) * within[1]
    assert min(singles) * within[0] <= found.value <= max(singles) * within[1]
    assert found.pairs == len(pairs)


@pytest.mark.parametrize(
    ("low", "high", "pairs", "verdict"),
    [
        (1.02, 1.2, 30, "faster"),
        (0.8, 0.98, 30, "slower"),
        (1.001, 1.2, 30, "faster"),
        (1.0, 1.2, 30, "inconclusive"),
        (0.8, 1.0, 30, "inconclusive"),
        (0.9, 1.2, 30, "inconclusive"),
        (0.98, 1.02, 30, "no difference"),
        (1.01, 1.03, 30, "no difference"),
        (0.96, 1.02, 30, "inconclusive"),
        (1.02, 1.2, FEWEST_PAIRS, "faster"),
        (1.02, 1.2, FEWEST_PAIRS - 1, "inconclusive"),
        (0.99, 1.01, FEWEST_PAIRS - 1, "inconclusive"),
    ],
)
def test_a_verdict_needs_the_whole_interval_and_enough_pairs(
    low: float, high: float, pairs: int, verdict: str
) -> None:
    found = Ratio((low + high) / 2, low, high, pairs)
    assert found.verdict == verdict
    assert (found.more_blocks > 0) == (verdict == "inconclusive")


def test_the_width_of_no_difference_is_the_users() -> None:
    assert Ratio(1.0, 0.98, 1.02, 30, equivalence=1.0).verdict == "inconclusive"
    assert Ratio(1.06, 1.04, 1.08, 30, equivalence=10.0).verdict == "no difference"


@pytest.mark.parametrize(
    ("found", "more"),
    [
        (Ratio(1.0, 1 / 1.0609, 1.0609, 10), 30),  # twice as wide as 3 %: four times the blocks
        (Ratio(1.1, 1.1**-1, 1.1**3, 10), 30),  # twice as wide as what would exclude 1
        (Ratio(1.5, 1.4, 1.6, 2), FEWEST_PAIRS - 2),
    ],
)
def test_how_many_more_blocks_decide_follows_from_the_width(found: Ratio, more: int) -> None:
    assert found.more_blocks == pytest.approx(more, abs=1)


def test_medians_that_say_the_opposite_are_noticed() -> None:
    faster = Ratio(1.1, 1.05, 1.15, 30)
    assert faster.contradicts(1 / 1.2)
    assert not faster.contradicts(1.2)
    assert not Ratio(1.01, 0.97, 1.05, 30).contradicts(1 / 1.01)  # within the interval


def test_no_blocks_or_unequal_numbers_of_them_cannot_be_compared() -> None:
    for of, to in (([], []), ([[1.0]], [[1.0], [1.0]])):
        with pytest.raises(ValueError, match="blocks"):
            ratio(of, to)


def test_the_spread_is_over_all_samples_of_all_blocks() -> None:
    found = spread([[1.0, 2.0], [3.0, 4.0, 5.0]])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
