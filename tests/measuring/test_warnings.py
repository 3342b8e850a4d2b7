"""Every warning of the closed list comes when it should, and only then."""

from typing import get_args

import numpy as np
import pytest

from flashmore.measuring.warnings import ADVICE, Code, warnings_about


def blocks(
    count: int = 30, noise: float = 0.0, drift: float = 0.0, spikes: float = 0.0, seed: int = 0
) -> list[list[float]]:
    """Ten samples a block of 5 ms; noise between blocks, linear drift over the run, a share of spikes."""
    rng = np.random.default_rng(seed)
    level = 5 * np.exp(rng.normal(0, noise, count)) * np.linspace(1, 1 + drift, count)
    samples = level[:, None] * np.exp(rng.normal(0, 0.01, (count, 10)))
    samples[rng.random((count, 10)) < spikes] *= 4
    found: list[list[float]] = samples.tolist()
    return found


def codes(**samples: list[list[float]]) -> list[str]:
    return [warning["code"] for warning in warnings_about(samples)]


def test_a_quiet_machine_calls_for_none() -> None:
    assert codes(a=blocks(noise=0.01, seed=1), b=blocks(noise=0.01, seed=2)) == []


def test_fewer_than_20_blocks_are_too_few() -> None:
    assert codes(a=blocks(19), b=blocks(19)) == ["too few samples"]
    assert codes(a=blocks(20), b=blocks(20)) == []
    assert codes(a=[], b=[]) == ["too few samples"]
    assert codes(a=blocks(1), b=blocks(1)) == ["too few samples"]


def test_blocks_that_scatter_are_noise() -> None:
    (warning,) = warnings_about({"calm": blocks(seed=3), "wild": blocks(noise=0.12, seed=4)})
    assert warning["code"] == "noisy machine"
    assert "wild" in warning["message"]


def test_the_noise_that_the_statistics_are_made_for_is_no_reason_to_warn() -> None:
    warned = [bool(codes(a=blocks(noise=0.03, seed=2 * n), b=blocks(noise=0.03, seed=2 * n + 1)))
              for n in range(100)]  # fmt: skip
    assert sum(warned) <= 3


def test_everything_getting_slower_is_thermal_drift_and_no_noise() -> None:
    assert codes(a=blocks(drift=0.2, seed=5), b=blocks(drift=0.2, seed=6)) == ["thermal drift"]


@pytest.mark.parametrize("drifts", [(0.2, 0.0), (-0.2, -0.2)], ids=["one alone", "faster"])
def test_one_variant_alone_or_getting_faster_is_none(drifts: tuple[float, float]) -> None:
    assert codes(a=blocks(drift=drifts[0], seed=7), b=blocks(drift=drifts[1], seed=8)) == []


@pytest.mark.parametrize(
    ("others", "cpus", "threads", "warns"),
    [
        (0.5, 2, 2, True),
        (0.5, 2, 1, False),
        (1.5, 2, 1, True),
        (0.05, 2, 2, False),
        (3.0, 8, 4, False),
        (None, 2, 2, False),
    ],
)
def test_others_count_as_load_where_they_take_a_cpu_that_is_wanted(
    others: float | None, cpus: int, threads: int, warns: bool
) -> None:
    found = warnings_about({"a": blocks(seed=9)}, others=others, cpus=cpus, threads=threads)
    assert [warning["code"] for warning in found] == ["other load"] * warns


def test_where_nothing_tells_of_others_interrupted_samples_do() -> None:
    assert codes(a=blocks(spikes=0.1, seed=10), b=blocks(seed=11)) == ["other load"]
    assert codes(a=blocks(spikes=0.003, seed=12), b=blocks(seed=13)) == []


def test_battery_power_is_a_warning() -> None:
    found = warnings_about({"a": blocks(seed=14)}, battery=True)
    assert [warning["code"] for warning in found] == ["battery"]


def test_every_warning_has_advice_and_the_schema_knows_no_other() -> None:
    assert set(get_args(Code)) == set(ADVICE)
    assert all(ADVICE.values())
