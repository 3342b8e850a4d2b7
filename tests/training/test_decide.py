"""Which speed-ups a run uses: groups and names, what is left out and said, what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.models.config import ModelConfig
from flashmore.speedups import CATALOGUE, EXACT, SWITCHES
from flashmore.training.decide import Quartiles, decide, why_not

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = ModelConfig("transformer", vocab_size=27, block_size=16)
Names = tuple[str, ...]
Decision = tuple[Names, tuple[str, ...]]


def never_timed(_: Names) -> Quartiles:
    raise AssertionError("a step was timed where nothing had to be weighed")


def decided(
    *names: str,
    step_ms: float | None = None,
    device: torch.device = CPU,
    cached: bool = False,
    **changes: object,
) -> Decision:
    config = TrainConfig(speedups=names, **{"max_steps": 1500, "batch_size": 128, **changes})  # type: ignore[arg-type]
    model_config = replace(SIZES, model=config.model, attention_dropout=config.attention_dropout)
    timed = never_timed if step_ms is None else lambda _: (step_ms,) * 3
    return decide(config, model_config, device, timed, lambda _: cached)[:2]


def never(_: Names) -> bool:
    return False


@pytest.fixture(autouse=True)
def a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has must not decide these tests."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def test_none_is_none() -> None:
    assert decided("none") == ((), ("speed-ups: none",))


def test_exact_is_everything_exact_that_works_here_and_says_what_is_left_out() -> None:
    speedups, notes = decided("exact")
    left_out = {"trim", "cuda-graph", "replay", "pad-vocab"}
    assert set(speedups) == {n for n in SWITCHES if CATALOGUE[n].exactness == EXACT} - left_out
    for name in left_out:
        assert any(note.startswith(f"{name} skipped: ") for note in notes)


def test_all_adds_what_changes_numerics() -> None:
    assert set(decided("all", device=CUDA)[0]) == {*decided("exact", device=CUDA)[0], "tf32"}


def test_names_are_those_and_no_others() -> None:
    assert decided("pack", "fused-adamw")[0] == ("fused-adamw", "pack")


def test_a_group_and_names_add_up() -> None:
    names = decided("exact", "tf32", device=CUDA)[0]
    assert set(names) == {*decided("exact", device=CUDA)[0], "tf32"}


def test_what_was_decided_decides_the_same_again() -> None:
    """A resumed run must be made as it was."""
    for group in ("none", "exact", "all"):
        first, _ = decided(group)
        assert decided(*(first or ("none",)))[0] == first


def test_compiling_pays_for_a_long_run_and_not_for_a_short_one() -> None:
    short, notes = decided("auto", max_steps=200)
    assert "compile" not in short
    assert "compile skipped: too few steps (200) to recoup its start-up time" in notes
    long, notes = decided("auto", max_steps=100_000, step_ms=10.0)
    assert "compile" in long
    assert "trim" not in long
    assert any(note.startswith("compile used: it pays off from about 6,000 steps") for note in notes)
    middle, notes = decided("auto", max_steps=5_000, step_ms=10.0)
    assert "compile" not in middle
    assert any("pays off from about 6,000 steps" in note for note in notes)


@pytest.mark.parametrize(("batch", "form"), [(32, "trim"), (63, "trim"), (64, "pack"), (512, "pack")])
def test_small_batches_are_trimmed_and_large_ones_packed_where_nothing_is_compiled(
    batch: int, form: str
) -> None:
    assert {"pack", "trim"} & set(decided("auto", max_steps=200, batch_size=batch)[0]) == {form}
    assert "pack" in decided("auto", max_steps=100_000, step_ms=10.0, batch_size=batch)[0]
    assert "pack" in decided("auto", "pack", max_steps=200, batch_size=batch)[0]


def test_auto_takes_nothing_that_costs_digits() -> None:
    speedups, _ = decided("auto", max_steps=200, batch_size=128)
    assert speedups == ("fused-adamw", "pack")
    assert "tf32" not in decided("auto", max_steps=200, device=CUDA)[0]


@pytest.mark.parametrize(
    ("names", "changes", "why"),
    [
        (("tf32",), {}, "uses cpu"),
        (("cuda-graph",), {}, "uses cpu"),
        (("pack",), {"model": "mlp"}, "this model is mlp"),
        (("compile",), {"model": "lstm"}, "recurrent kernel"),
        (("compile",), {"dtype": "float16"}, "float16"),
        (("compile",), {"attention_dropout": 0.1}, "does not support dropout"),
        (("pack", "trim"), {}, "cannot be combined with"),
        (("compile", "trim"), {}, "cannot be combined with"),
        (("pack",), {"mode": "text"}, "no padding"),
    ],
    ids=str,
)
def test_what_cannot_work_is_an_error_by_name_and_left_out_in_a_group(
    names: tuple[str, ...], changes: dict[str, object], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        decided(*names, **changes)  # type: ignore[arg-type]
    assert "--speedups auto, exact or all" in str(refused.value)
    speedups, notes = decided("all", **changes)  # type: ignore[arg-type]
    out = [name for name in names if name not in speedups]
    assert out
    assert all(any(note.startswith(f"{name} skipped: ") for note in notes) for name in out)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'turbo'") as refused:
        decided("turbo")
    assert all(name in str(refused.value) for name in SWITCHES)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("attention", "--attention auto"),
        ("bf16", "--dtype bfloat16"),
        ("schedule", "--lr-schedule cosine"),
        ("muon", "--optimizer muon"),
        ("resident", "always on"),
        ("kv-cache", "always on"),
    ],
)
def test_what_has_an_option_of_its_own_is_refused_with_that_option(name: str, how: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}', which is {how}"):
        decided(name)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    reason = why_not("compile", TrainConfig(preset="makemore"), SIZES, CPU)
    assert reason is not None
    assert "C++ compiler" in reason
    assert "compile" not in decided("auto", max_steps=100_000)[0]
    with pytest.raises(ConfigError, match="apt install"):
        decided("compile")


def test_max_autotune_alone_is_refused() -> None:
    for names in (("max-autotune",), ("auto", "max-autotune")):
        with pytest.raises(ConfigError, match="requires compile"):
            decided(*names, max_steps=200)
    assert "max-autotune" in decided("exact", "max-autotune")[0]


# CUDA graphs.


def timed(with_graph: float | Exception, without: float) -> Callable[[Names], Quartiles]:
    """Times of a step, by whether it is captured; the quartiles are 10 % apart from the median."""

    def step_ms(speedups: Names) -> Quartiles:
        if "cuda-graph" not in speedups:
            return 0.9 * without, without, 1.1 * without
        if isinstance(with_graph, Exception):
            raise with_graph
        return 0.9 * with_graph, with_graph, 1.1 * with_graph

    return step_ms


@pytest.mark.parametrize(
    ("with_graph", "steps", "on", "note"),
    [
        (0.5, 2_000, True, "cuda-graph used: 0.50 ms a step with it, 1.00 ms without"),
        (
            0.95,
            2_000,
            False,
            "cuda-graph skipped: 0.95 ms a step with it, 1.00 ms without, but the quartiles overlap",
        ),
        (2.0, 2_000, False, "cuda-graph skipped: 2.00 ms a step with it, 1.00 ms without"),
        (
            RuntimeError("not permitted\nwhen capturing"),
            2_000,
            False,
            "cuda-graph skipped: PyTorch: not permitted",
        ),
        (0.5, 200, False, "cuda-graph skipped: too few steps (200) to recoup its start-up time"),
    ],
    ids=("faster", "undecided", "slower", "fails", "short"),
)
def test_auto_takes_a_cuda_graph_where_it_measures_faster(
    with_graph: float | Exception, steps: int, on: bool, note: str
) -> None:
    config = replace(TrainConfig(batch_size=128), speedups=("auto",), max_steps=steps)
    found, notes, _ = decide(config, SIZES, CUDA, timed(with_graph, 1.0), never)
    assert ["cuda-graph" in found, "replay" in found, "pack" in found] == [on, on, not on]
    assert note in notes


@pytest.mark.parametrize("name", ["pack", "trim"])
def test_what_is_named_beside_auto_is_not_taken_away(name: str) -> None:
    config = replace(TrainConfig(batch_size=128), speedups=("auto", name), max_steps=100_000)
    on_cuda, *_ = decide(config, SIZES, CUDA, timed(0.5, 1.0), never)
    assert name in on_cuda
    assert "cuda-graph" not in on_cuda
    assert name in decide(config, SIZES, CPU, timed(0.5, 10.0), never)[0]


def test_exact_on_cuda_has_the_graph_in_place_of_packing() -> None:
    speedups, notes = decided("exact", device=CUDA)
    assert "cuda-graph" in speedups
    assert "replay" in speedups
    assert "pack" not in speedups
    assert any(note.startswith("pack skipped: it cannot be combined with") for note in notes)


@pytest.mark.parametrize(
    ("names", "changes", "why"),
    [
        (("cuda-graph", "pack"), {}, "cannot be combined with"),
        (("cuda-graph", "trim"), {}, "cannot be combined with"),
        (("replay",), {}, "requires cuda-graph"),
        (("cuda-graph",), {"model": "gru"}, "recurrent kernel"),
        (("cuda-graph",), {"dtype": "float16"}, "loss scaling"),
    ],
    ids=str,
)
def test_a_graph_of_changing_sizes_or_values_is_refused(
    names: tuple[str, ...], changes: dict[str, object], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        decided(*names, device=CUDA, **changes)  # type: ignore[arg-type]


def test_a_cached_step_is_used_in_short_runs_and_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    speedups, notes = decided("auto", cached=True, max_steps=30)
    assert "compile" in speedups
    assert notes[1:] == ("compile used: the compiled step is in the cache",)
    assert "compile" in decided("compile", cached=True)[0]
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        decided("compile")
    assert "compile" not in decided("auto", cached=True, attention_dropout=0.1)[0]
