"""Which speed-ups a run uses: groups and names, what wins, what is left out and said, what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from flashmore.errors import RecipeError
from flashmore.models.config import ModelConfig
from flashmore.speedups import CATALOGUE, EXACT, Speedups
from flashmore.training import decide as decide_module
from flashmore.training.decide import Decision, decide, why_not
from flashmore.training.recipe import Recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = ModelConfig("transformer", vocab_size=27, block_size=16)
Given = Callable[..., Decision]


def never_timed(*_: object) -> float:
    raise AssertionError("a step was timed where nothing had to be weighed")


def decided(
    *names: str, step_ms: float | None = None, device: torch.device = CPU, **changes: object
) -> Decision:
    recipe = replace(Recipe(), speedups=names, **changes)  # type: ignore[arg-type]
    config = replace(CONFIG, model=recipe.model, attention_dropout=recipe.attention_dropout)
    return decide(recipe, config, device, never_timed if step_ms is None else lambda *_: step_ms)


@pytest.fixture(autouse=True)
def a_compiler_and_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has must not decide these tests."""
    monkeypatch.setattr(decide_module, "_has_bf16", lambda _: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def test_none_is_none() -> None:
    found = decided("none")
    assert found.speedups == Speedups()
    assert found.notes == ("speed-ups: none",)
    assert (found.recipe.attention, found.recipe.optimizer, found.recipe.lr_schedule, found.recipe.dtype) == (
        "manual", "adamw", "constant", "float32",
    )  # fmt: skip


def test_exact_is_everything_exact_that_works_here_and_says_what_is_left_out() -> None:
    found = decided("exact")
    names = set(found.speedups.names)
    left_out = {"trim", "cuda-graph", "replay", "pad-vocab"}
    assert names == {name for name, entry in CATALOGUE.items() if entry.exactness == EXACT} - left_out
    for name in left_out:
        assert any(note.startswith(f"left out {name}: ") for note in found.notes)


def test_all_adds_what_changes_numerics_and_algorithm() -> None:
    found = decided("all")
    assert set(decided("exact").speedups.names) | {"bf16", "schedule", "muon"} == set(found.speedups.names)
    assert (found.recipe.dtype, found.recipe.optimizer, found.recipe.lr_schedule) == (
        "bfloat16", "muon", "cosine",
    )  # fmt: skip


def test_names_are_those_and_no_others() -> None:
    found = decided("pack", "muon")
    assert set(found.speedups.names) == {"pack", "muon"}
    assert found.recipe.optimizer == "muon"
    assert found.recipe.attention == "manual"


def test_a_group_and_names_add_up() -> None:
    assert set(decided("exact", "bf16").speedups.names) == {*decided("exact").speedups.names, "bf16"}


@pytest.mark.parametrize(
    ("changes", "name", "on"),
    [
        ({"attention": "manual"}, "attention", False),
        ({"attention": "flash"}, "attention", True),
        ({"dtype": "float32"}, "bf16", False),
        ({"dtype": "bfloat16"}, "bf16", True),
        ({"optimizer": "adamw"}, "muon", False),
        ({"optimizer": "muon"}, "muon", True),
        ({"lr_schedule": "constant"}, "schedule", False),
        ({"lr_schedule": "cosine"}, "schedule", True),
    ],
    ids=str,
)
@pytest.mark.parametrize("group", ["none", "exact", "all"])
def test_an_option_of_its_own_always_wins(changes: dict[str, str], name: str, on: bool, group: str) -> None:
    found = decided(group, **changes)  # type: ignore[arg-type]
    assert found.speedups.has(name) is on
    for option, value in changes.items():
        assert getattr(found.recipe, option) == value


def test_a_settled_recipe_decides_the_same_again() -> None:
    """A resumed run must be made as it was."""
    for group in ("none", "exact", "all"):
        first = decided(group)
        again = decide(first.recipe, CONFIG, CPU, never_timed)
        assert again.speedups == first.speedups
        assert again.recipe == first.recipe


def test_compiling_pays_for_a_long_run_and_not_for_a_short_one() -> None:
    short = decided("auto", max_steps=200)
    assert not short.speedups.compile
    assert "left out compile: 200 steps are over before it has paid" in short.notes
    long = decided("auto", max_steps=100_000, step_ms=10.0)
    assert long.speedups.compile
    assert not long.speedups.trim
    assert any(note.startswith("compile pays, from about 7,500 steps on") for note in long.notes)
    middle = decided("auto", max_steps=5_000, step_ms=10.0)
    assert not middle.speedups.compile
    assert any("pays from about 7,500 steps on" in note for note in middle.notes)


@pytest.mark.parametrize(("batch", "form"), [(32, "trim"), (63, "trim"), (64, "pack"), (512, "pack")])
def test_small_batches_are_trimmed_and_large_ones_packed_where_nothing_is_compiled(
    batch: int, form: str
) -> None:
    found = decided("auto", max_steps=200, batch_size=batch)
    assert {"pack", "trim"} & set(found.speedups.names) == {form}
    assert decided("auto", max_steps=100_000, step_ms=10.0, batch_size=batch).speedups.pack
    assert decided("auto", "pack", max_steps=200, batch_size=batch).speedups.pack


def test_auto_takes_nothing_that_costs_digits() -> None:
    found = decided("auto", max_steps=200, batch_size=128)
    assert {"resident", "fused-adamw", "no-sync", "attention", "pack"} <= set(found.speedups.names)
    assert not found.speedups.bf16
    assert not found.speedups.tf32


@pytest.mark.parametrize(
    ("names", "changes", "why"),
    [
        (("tf32",), {}, "on cpu"),
        (("cuda-graph",), {}, "on cpu"),
        (("pack",), {"model": "mlp"}, "mlp reads rows"),
        (("muon",), {"model": "gru"}, "for the transformer"),
        (("compile",), {"model": "lstm"}, "recurrent kernel"),
        (("compile",), {"dtype": "float16"}, "float16"),
        (("compile",), {"attention_dropout": 0.1}, "not in the graph"),
        (("pack", "trim"), {}, "cannot be together with"),
        (("compile", "trim"), {}, "cannot be together with"),
        (("pack",), {"mode": "text"}, "no padding"),
    ],
    ids=str,
)
def test_what_cannot_work_is_an_error_by_name_and_left_out_in_a_group(
    names: tuple[str, ...], changes: dict[str, object], why: str
) -> None:
    with pytest.raises(RecipeError, match=why) as refused:
        decided(*names, **changes)  # type: ignore[arg-type]
    assert "--speedups auto, exact or all" in str(refused.value)
    found = decided("all", **changes)  # type: ignore[arg-type]
    out = [name for name in names if not found.speedups.has(name)]
    assert out
    assert all(any(note.startswith(f"left out {name}: ") for note in found.notes) for name in out)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="'turbo'") as refused:
        decided("turbo")
    assert all(name in str(refused.value) for name in CATALOGUE)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    reason = why_not("compile", Recipe(), CONFIG, CPU)
    assert reason is not None
    assert "C++ compiler" in reason
    assert not decided("auto", max_steps=100_000).speedups.compile
    with pytest.raises(RecipeError, match="apt install"):
        decided("compile")


def test_max_autotune_alone_is_refused() -> None:
    for names in (("max-autotune",), ("auto", "max-autotune")):
        with pytest.raises(RecipeError, match="part of compile"):
            decided(*names, max_steps=200)
    assert decided("exact", "max-autotune").speedups.max_autotune


# CUDA graphs.


def timed(with_graph: float | Exception, without: float) -> Callable[..., float]:
    """Times of a step, by whether it is captured."""

    def step_ms(_: Recipe, speedups: Speedups) -> float:
        if speedups.cuda_graph and isinstance(with_graph, Exception):
            raise with_graph
        return with_graph if speedups.cuda_graph else without  # type: ignore[return-value]

    return step_ms


@pytest.mark.parametrize(
    ("with_graph", "steps", "on", "note"),
    [
        (0.5, 2_000, True, "cuda-graph pays: 0.50 ms a step against 1.00 without"),
        (2.0, 2_000, False, "left out cuda-graph: 2.00 ms a step against 1.00 without"),
        (
            RuntimeError("not permitted\nwhen capturing"),
            2_000,
            False,
            "left out cuda-graph: torch says: not permitted",
        ),
        (0.5, 200, False, "left out cuda-graph: 200 steps are over before it has paid"),
    ],
    ids=("faster", "slower", "fails", "short"),
)
def test_auto_takes_a_cuda_graph_where_it_measures_faster(
    with_graph: float | Exception, steps: int, on: bool, note: str
) -> None:
    recipe = replace(Recipe(), speedups=("auto",), max_steps=steps)
    found = decide(recipe, CONFIG, CUDA, timed(with_graph, 1.0))
    assert (found.speedups.cuda_graph, found.speedups.replay, found.speedups.pack) == (on, on, not on)
    assert note in found.notes


@pytest.mark.parametrize("name", ["pack", "trim"])
def test_what_is_named_beside_auto_is_not_taken_away(name: str) -> None:
    recipe = replace(Recipe(), speedups=("auto", name), max_steps=100_000)
    on_cuda = decide(recipe, CONFIG, CUDA, timed(0.5, 1.0)).speedups
    assert on_cuda.has(name)
    assert not on_cuda.cuda_graph
    assert decide(recipe, CONFIG, CPU, timed(0.5, 10.0)).speedups.has(name)


def test_exact_on_cuda_has_the_graph_in_place_of_packing() -> None:
    found = decided("exact", device=CUDA)
    assert found.speedups.cuda_graph
    assert found.speedups.replay
    assert not found.speedups.pack
    assert any(note.startswith("left out pack: it cannot be together with") for note in found.notes)


@pytest.mark.parametrize(
    ("names", "changes", "why"),
    [
        (("cuda-graph", "pack"), {}, "cannot be together with"),
        (("cuda-graph", "trim"), {}, "cannot be together with"),
        (("replay",), {}, "part of cuda-graph"),
        (("cuda-graph",), {"model": "gru"}, "recurrent kernel"),
        (("cuda-graph",), {"dtype": "float16"}, "loss scaled"),
    ],
    ids=str,
)
def test_a_graph_of_changing_sizes_or_values_is_refused(
    names: tuple[str, ...], changes: dict[str, object], why: str
) -> None:
    with pytest.raises(RecipeError, match=why):
        decided(*names, device=CUDA, **changes)  # type: ignore[arg-type]
