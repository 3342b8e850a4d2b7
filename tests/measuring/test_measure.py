"""Alternating blocks by a clock that only ticks when it is told to."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmore.measuring.measure import TICKS, Stopped, alternate, repeats_for


class FakeClock:
    """A clock that work moves forward; it tells whole multiples of its resolution.

    Args:
        resolution: seconds; 0 tells the exact time.
    """

    def __init__(self, resolution: float = 0.0) -> None:
        self.exact = 0.0
        self.resolution = resolution

    def __call__(self) -> float:
        if not self.resolution:
            return self.exact
        return math.floor(self.exact / self.resolution) * self.resolution

    def work(self, seconds: float, log: list[str] | None = None, name: str = "") -> Callable[[], None]:
        def run() -> None:
            self.exact += seconds
            if log is not None:
                log.append(name)

        return run


def test_variants_take_turns_and_every_second_round_goes_backwards() -> None:
    clock = FakeClock()
    log: list[str] = []
    variants = {name: clock.work(0.001, log, name) for name in "abc"}
    alternate(variants, blocks=3, repeats=2, warmup=1, clock=clock)
    assert "".join(log) == "abc" + "aabbcc" + "ccbbaa" + "aabbcc"


def test_samples_are_milliseconds_in_blocks_without_the_warmup() -> None:
    clock = FakeClock()
    variants = {"slow": clock.work(0.004), "fast": clock.work(0.001)}
    samples = alternate(variants, blocks=2, repeats={"slow": 1, "fast": 3}, warmup=5, clock=clock)
    assert samples == {
        "slow": [[pytest.approx(4.0)]] * 2,
        "fast": [[pytest.approx(1.0)] * 3] * 2,
    }


def test_a_machine_that_slows_down_steadily_hurts_all_alike() -> None:
    clock = FakeClock()

    def slower_and_slower() -> None:
        clock.exact += 0.001 * (1 + clock.exact)

    samples = alternate({"a": slower_and_slower, "b": slower_and_slower}, blocks=20, repeats=5, warmup=0,
                        clock=clock)  # fmt: skip
    mean = {name: sum(map(sum, blocks)) for name, blocks in samples.items()}
    assert mean["a"] == pytest.approx(mean["b"], rel=1e-3)
    assert samples["a"][-1][0] > 1.1 * samples["a"][0][0]


def test_a_block_that_lasts_too_long_ends_early_but_never_empty() -> None:
    clock = FakeClock()
    variants = {"slow": clock.work(0.3), "very slow": clock.work(5), "fast": clock.work(0.01)}
    samples = alternate(variants, blocks=2, repeats=4, warmup=0, most_seconds=0.5, clock=clock)
    assert {name: [len(block) for block in blocks] for name, blocks in samples.items()} == {
        "slow": [2, 2],
        "very slow": [1, 1],
        "fast": [4, 4],
    }


def test_no_round_begins_after_the_end_of_the_time() -> None:
    clock = FakeClock()
    for until, rounds in ((-1.0, 1), (2.5, 2), (100.0, 9)):
        clock.exact = 0.0
        samples = alternate(
            {"a": clock.work(1), "b": clock.work(1)}, blocks=9, repeats=1, warmup=0, until=until, clock=clock
        )
        assert [len(blocks) for blocks in samples.values()] == [rounds] * 2


def test_the_observer_hears_of_every_round() -> None:
    clock = FakeClock()
    heard: list[int] = []
    alternate({"a": clock.work(1)}, blocks=3, repeats=1, warmup=0, clock=clock, after_block=heard.append)
    assert heard == [1, 2, 3]


@pytest.mark.parametrize(("pressed_at", "rounds"), [(0, 0), (3, 0), (5, 0), (6, 1), (11, 2), (25, 5)])
def test_ctrl_c_keeps_whole_rounds_alone(pressed_at: int, rounds: int) -> None:
    clock, calls = FakeClock(), [0]

    def run() -> None:
        if calls[0] == pressed_at:
            raise KeyboardInterrupt
        calls[0] += 1
        clock.exact += 0.001

    # Two of warm-up, then four a round: two variants, two repetitions each.
    with pytest.raises(Stopped) as stopped:
        alternate({"a": run, "b": run}, blocks=30, repeats=2, warmup=1, clock=clock)
    assert {name: len(blocks) for name, blocks in stopped.value.samples_ms.items()} == {
        "a": rounds,
        "b": rounds,
    }
    assert all(len(block) == 2 for blocks in stopped.value.samples_ms.values() for block in blocks)


def test_ctrl_c_after_a_round_keeps_it() -> None:
    clock = FakeClock()

    def press(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Stopped) as stopped:
        alternate({"a": clock.work(1)}, blocks=9, repeats=1, warmup=0, clock=clock, after_block=press)
    assert len(stopped.value.samples_ms["a"]) == 2


@given(
    seconds=st.floats(1e-6, 5),
    block_seconds=st.floats(1e-3, 1),
    resolution=st.sampled_from((1e-9, 1e-7, 1e-6, 1e-4)),
)
def test_a_block_is_long_enough_and_not_much_longer(
    seconds: float, block_seconds: float, resolution: float
) -> None:
    clock = FakeClock(resolution)
    found = repeats_for(clock.work(seconds), block_seconds=block_seconds, resolution=resolution, clock=clock)
    wanted = max(block_seconds, TICKS * resolution)
    # A probe of at least ten ticks is known to one tick at either end.
    assert found * seconds >= 0.8 * wanted
    assert found == 1 or found * seconds <= 1.3 * wanted + seconds


def test_a_disturbed_probe_does_not_make_blocks_short() -> None:
    clock, durations = FakeClock(), iter([0.5, 0.01, 0.01])

    def run() -> None:
        clock.exact += next(durations)

    assert repeats_for(run, block_seconds=0.2, resolution=1e-9, clock=clock) == 20


def test_processes_that_measure_together_go_on_alike() -> None:
    """Two processes, of which one takes 0.1 s for what takes the other 0.3 s: both go by the longer time."""

    def measured(seconds: float) -> tuple[int, dict[str, list[list[float]]]]:
        clock = FakeClock()

        def agree(passed: float) -> float:
            return passed if passed < 0 else max(passed, 0.3)  # until the end, less than 0 is left

        run = clock.work(seconds)
        repeats = repeats_for(run, block_seconds=1.2, resolution=1e-9, clock=clock, agree=agree)
        samples = alternate(
            {"a": run}, blocks=3, repeats=9, warmup=0, most_seconds=1.0, clock=clock, agree=agree
        )
        return repeats, samples

    for seconds in (0.1, 0.3):
        repeats, samples = measured(seconds)
        assert repeats == 4
        assert samples == {"a": [pytest.approx([300.0] * 4)] * 3}


def test_processes_that_measure_together_end_alike() -> None:
    clock, asked = FakeClock(), []

    def agree(seconds: float) -> float:
        asked.append(seconds)
        return seconds if len(asked) < 4 else 0.5  # another process is beyond the time

    samples = alternate(
        {"a": clock.work(1)}, blocks=9, repeats=1, warmup=0, until=100.0, clock=clock, agree=agree
    )
    assert len(samples["a"]) == 2
