"""The measured choice: right before fast, remembered, and never lost to a damaged cache."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashmore.backends import choose as module
from flashmore.backends import contract
from flashmore.backends.choose import Candidate, Problem, choose, fastest
from flashmore.call import CallOptions
from flashmore.errors import BackendUnavailable
from flashmore.measuring.statistics import Spread
from forks import Forks


def problem(B: int, H: int, L: int, D: int, **options: Any) -> Problem:
    sizes = CallOptions(batch_size=B, n_head=H, length=L, head_dim=D, **options)
    return Problem(sizes, torch.device("cpu"))


PROBLEM = problem(2, 2, 16, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHMORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Pace:
    """A clock that each backend moves by its own times, in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.seconds: dict[str, Iterator[float]] = {}
        for number, name in enumerate(("manual", "sdpa", "math", "flash")):
            self.takes(name, 4e-4 - 1e-4 * number)
            monkeypatch.setitem(contract.LOADED, name, self.paced(name, contract.load_backend(name)))

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, *seconds: float) -> None:
        self.seconds[name] = cycle(seconds)

    def paced(self, name: str, compute: contract.Compute) -> contract.Compute:
        def slowed(*inputs: Tensor, **options: Any) -> Tensor:
            self.now += next(self.seconds[name])
            return compute(*inputs, **options)

        return slowed


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Makes `choose` measure by a `Pace`, by which flash is faster than all others."""
    made = Pace(monkeypatch)
    monkeypatch.setattr(module, "MOST_REPEATS", 2)  # more of a clock's own seconds say no more
    monkeypatch.setitem(globals(), "choose", partial(module.choose, clock=made))
    return made


@pytest.mark.parametrize("fastest_here", ["manual", "math", "flash"])
def test_the_fastest_of_the_right_ones_is_chosen(fastest_here: str, pace: Pace) -> None:
    pace.takes("flash", 5e-4)
    pace.takes(fastest_here, 1e-4)
    choice = choose("auto", PROBLEM)
    assert choice.backend == fastest_here
    times = {c.name: c.time_ms.median for c in choice.candidates if c.time_ms}
    assert times.keys() == {"manual", "sdpa", "math", "flash"}
    assert times[fastest_here] == pytest.approx(0.1)
    assert all(c.why_not for c in choice.candidates if not c.time_ms)
    assert [c.name for c in choice.candidates if c.time_ms and c.ratio is None] == ["sdpa"]


def test_what_the_interval_does_not_decide_is_the_safe_choice_and_not_remembered(
    pace: Pace, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By blocks of one call each: in half of the pairs flash is thrice as fast, in half as slow."""
    monkeypatch.setattr(module, "MOST_REPEATS", 1)
    for name in ("manual", "math"):
        pace.takes(name, 9e-4)
    pace.takes("sdpa", 3e-4)
    pace.takes("flash", 1e-4, 9e-4)
    choice = choose("auto", PROBLEM)
    assert choice.backend == "sdpa"
    assert "does not show whether flash is faster (not cached)" in choice.why
    assert not list(cache.glob("*.json"))
    assert choose("auto", PROBLEM).seconds > 0


def test_a_remembered_answer_makes_the_same_record() -> None:
    first, second = (choose("auto", PROBLEM).candidates for _ in range(2))
    without_samples = [asdict(replace(candidate, samples_ms=())) for candidate in first]
    assert json.dumps([asdict(candidate) for candidate in second]) == json.dumps(without_samples)


def test_within_3_percent_the_safe_choice_stays_and_is_remembered(pace: Pace) -> None:
    pace.takes("sdpa", 1.01e-4)
    assert choose("auto", PROBLEM).backend == "sdpa"
    assert choose("auto", PROBLEM).seconds == 0


def test_measured_again_the_previous_answer_is_the_safe_one(pace: Pace) -> None:
    assert choose("auto", PROBLEM).backend == "flash"
    pace.takes("sdpa", 0.99e-4)
    assert choose("auto", PROBLEM, fresh=True).backend == "flash"
    pace.takes("sdpa", 0.5e-4)
    assert choose("auto", PROBLEM, fresh=True).backend == "sdpa"


def test_the_answer_is_remembered_for_this_problem_alone(cache: Path) -> None:
    first, second = choose("auto", PROBLEM), choose("auto", PROBLEM)
    assert (second.backend, second.seconds) == (first.backend, 0.0)
    assert choose("auto", PROBLEM, fresh=True).seconds > 0
    others = (
        problem(2, 2, 17, 8),
        problem(2, 2, 16, 8, dtype="bfloat16"),
        problem(2, 2, 16, 8, dropout=0.1),
    )
    assert all(choose("auto", other).seconds > 0 for other in others)
    assert len(list(cache.glob("*.json"))) == 1 + len(others)


@pytest.mark.parametrize(
    "damage", [b"", b'{"key": ', b"[1, 2]", b"\xff\xfe", b'{"key": "\xff"}', b'{"key": {}, "candidates": []}']
)
def test_a_damaged_cache_is_rebuilt(damage: bytes, cache: Path) -> None:
    choose("auto", PROBLEM)
    (file,) = cache.glob("*.json")
    file.write_bytes(damage)
    assert choose("auto", PROBLEM).seconds > 0
    assert choose("auto", PROBLEM).seconds == 0
    assert json.loads(file.read_text())["key"] == PROBLEM.key()


def test_a_cache_whose_backends_are_damaged_is_rebuilt(cache: Path) -> None:
    choose("auto", PROBLEM)
    (file,) = cache.glob("*.json")
    timed = json.loads(file.read_text())["candidates"]
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    for candidates in (
        [{"name": "flash"}],
        [{"name": "flash", "time_ms": None, "why_not": None}],
        {"a": 1},
        [candidate | {"ratio": {}} for candidate in timed],
        [candidate | {"ratio": None} for candidate in timed],
        [],
        deep,
        [candidate | {"name": "fast"} for candidate in timed],
        [candidate | {"time_ms": {"median": 1, "low": "no", "high": 2}} for candidate in timed],
        [candidate | {"why_not": 10**400} for candidate in timed],
    ):
        file.write_text(json.dumps({"key": PROBLEM.key(), "candidates": candidates}))
        assert choose("auto", PROBLEM).seconds > 0


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes and devices")
def test_what_could_be_read_without_end_is_no_answer(cache: Path) -> None:
    choose("auto", PROBLEM)
    (file,) = cache.glob("*.json")
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        file.unlink()
        make(file)
        assert choose("auto", PROBLEM).seconds > 0
    assert file.is_file()
    assert not file.is_symlink()


def test_a_process_killed_while_it_writes_leaves_no_damage(cache: Path, forks: Forks, tmp_path: Path) -> None:
    code = (
        "import os, pathlib, torch\n"
        "import flashmore.backends.choose as module\n"
        "from flashmore.backends.choose import Problem, choose\n"
        "from flashmore.call import CallOptions\n"
        "module.undecided = lambda _: ''\n"  # whatever the time
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "options = CallOptions(batch_size=2, n_head=2, head_dim=8)\n"
        "choose('auto', Problem(options, torch.device('cpu')))\n"
    )
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    assert forks.run((tmp_path / "program.py",), os.environ).returncode == -9
    assert not list(cache.glob("*.json"))
    assert choose("auto", PROBLEM).seconds > 0
    assert choose("auto", PROBLEM).seconds == 0


def test_a_cache_that_cannot_be_written_is_said_and_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLASHMORE_CACHE", str(tmp_path / "file"))
    assert "not cached" in choose("auto", PROBLEM).why


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("FLASHMORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert "no home folder" in choose("auto", PROBLEM).why


def test_a_backend_that_answers_wrongly_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = contract.load_backend("flash")

    def wrong(q: Tensor, k: Tensor, v: Tensor, **keywords: object) -> Tensor:
        return right(q, k, v, **{**keywords, "scale": 1.0})

    monkeypatch.setitem(contract.LOADED, "flash", wrong)
    choice = choose("auto", PROBLEM, fresh=True)
    flash = next(candidate for candidate in choice.candidates if candidate.name == "flash")
    assert flash.time_ms is None
    assert "exceeds the budget" in (flash.why_not or "")
    assert choice.backend != "flash"


def test_a_name_is_only_tried() -> None:
    assert choose("flash", PROBLEM).candidates == ()
    with pytest.raises(BackendUnavailable):
        choose("cudnn", PROBLEM)
    with pytest.raises(BackendUnavailable):
        choose("flash", problem(2, 2, 16, 8, dropout=0.5))


def test_ties_and_missing_times_do_not_confuse() -> None:
    spread = Spread(1.0, 0.9, 1.1)
    candidates = (
        Candidate("manual", spread, None),
        Candidate("math", None, "no"),
        Candidate("flash", spread, None, ratio={"verdict": "no difference"}),
    )
    assert fastest(candidates).name == "manual"


@pytest.mark.parametrize(
    ("shape", "measured"),
    [
        ((32, 4, 16, 16), (32, 4, 16, 16)),
        ((10**12, 4, 16, 16), (14901, 4, 16, 16)),
        ((1, 4, 4096, 16), (1, 4, 4096, 16)),
        ((64, 4, 10**6, 16), (1, 4, 3906, 16)),
        ((1, 4, 1, 10**9), (1, 4, 1, 10**9)),
    ],
    ids=str,
)
def test_what_is_too_large_to_be_measured_is_measured_smaller(
    shape: tuple[int, int, int, int], measured: tuple[int, int, int, int]
) -> None:
    assert problem(*shape).measurable == problem(*measured)


def test_a_choice_by_a_smaller_problem_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.backends.choose.BATCH_BYTES", 2**16)
    found = choose("auto", problem(64, 2, 8, 4))
    assert found.why.startswith("the fastest here at B, T = 32, 8, measured in ")
    again = choose("auto", problem(32, 2, 8, 4))
    assert again.why.startswith("the fastest here, measured earlier")


@pytest.mark.parametrize("passes", ["both", "forward", "backward"])
def test_grouped_heads_other_lengths_and_masks_are_measured(passes: Any) -> None:
    decode = problem(2, 4, 1, 8, source_length=12, n_kv_head=2, gqa=True, value_dim=6, passes=passes)
    masked = problem(2, 2, 6, 8, mask="bool", passes=passes)
    for one in (decode, masked):
        found = {one.name: one for one in module.measure_candidates(one)}
        assert found["manual"].time_ms is not None
        assert found["math"].time_ms is not None, found["math"].why_not
        assert found["flex"].time_ms is None


def test_what_is_huge_shrinks_to_what_can_be_measured() -> None:
    huge = problem(1, 4, 1, 16, source_length=10**9, n_kv_head=2, gqa=True).measurable.options
    assert huge.length == 1
    assert 16 * 4 * huge.keys <= module.MATRIX_BYTES


@pytest.mark.long
@pytest.mark.parametrize("passes", ["forward", "both"])
def test_compiled_attention_by_hand_is_held_against_the_one_that_wins_uncompiled(
    passes: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each must be right as it is compiled, and the answer is another one than that for single calls."""
    monkeypatch.undo()
    monkeypatch.setenv("FLASHMORE_CACHE", str(cache))
    monkeypatch.setattr(module, "undecided", lambda _: "")  # by the real clock, whatever it says
    alone = problem(4, 2, 8, 8, passes=passes)
    first = choose("auto", alone)
    found = choose("auto", replace(alone, compiled=True))
    assert {candidate.name for candidate in found.candidates} == {"manual", first.backend}
    assert all(candidate.time_ms is not None for candidate in found.candidates)
    assert found.why.startswith("the fastest here, compiled, measured in ")
    assert len(list(cache.glob("*.json"))) == 2
    assert choose("auto", alone).candidates == tuple(replace(c, samples_ms=()) for c in first.candidates)
