"""The gain: functions that change their code, steps of a script, and what the numbers come to."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flashmore.benchmark.gain.measure import Gain, gain_of
from flashmore.benchmark.gain.variants import Optimizers, StepTimer, Variant
from flashmore.upgrade.trace.versions import NotSwapped, Versions

OLD = """\
import math


class A:
    def f(self, x):
        return math.floor(x)

    def g(self):
        def inner():
            return "old"
        return inner()


def outer(y):
    def closed():
        return y
    return closed


@staticmethod
def same():
    return 1
"""
NEW = (
    OLD.replace("import math\n", "import math\nimport colorsys\n")
    .replace("return math.floor(x)", "\n        return colorsys.rgb_to_yiq(x, x, x)[0]")
    .replace('"old"', '"new"')
)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "swapped.py").write_text(OLD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("swapped")
    del sys.modules["swapped"]


def path_of(module: ModuleType) -> str:
    assert module.__file__ is not None
    return str(Path(module.__file__).resolve())


def test_live_objects_run_either_version(module: ModuleType) -> None:
    live = module.A()
    bound = live.f
    versions = Versions({path_of(module): NEW})
    for _ in range(2):
        versions.after()
        assert (bound(1.5), live.g()) == (1.5, "new")
        versions.before()
        assert (bound(1.5), live.g()) == (1, "old")


def test_only_functions_that_differ_are_touched(module: ModuleType) -> None:
    versions = Versions({path_of(module): NEW})
    assert {function.__qualname__ for function, _, _ in versions.codes} == {"A.f", "A.g"}


def test_a_file_that_nobody_imported_cannot_be_swapped(tmp_path: Path) -> None:
    (tmp_path / "never.py").write_text(OLD, encoding="utf-8")
    with pytest.raises(NotSwapped, match="imported"):
        Versions({str(tmp_path / "never.py"): NEW})


def test_a_script_runs_old_new_new_old(module: ModuleType) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    said = []
    with StepTimer([Variant("new step", {path_of(module): NEW})]) as timer:
        for _ in range(13):
            said.append(module.A().g())
            weight.grad = torch.ones(1)
            optimizer.step()
    # The step before the first end of a step is not timed; from then on the order is fixed.
    assert said[1:] == ["old", "new", "new", "old"] * 3
    assert [len(blocks) for blocks in timer.samples_ms(2).values()] == [4, 4]
    assert timer.steps == 13


def result(before: float, after: float, count: int = 20) -> dict[str, Any]:
    samples = {
        "old": [[before + 0.001 * n] for n in range(count)],
        "new": [[after] for _ in range(count)],
    }
    kernel = {"name": "math", "how": "", "against": {"flash": ["dropout"], "cudnn": ["no CPU kernel"]}}
    return {
        "samples_ms": {f"{word} {what}": samples[word] for what in ("step", "lines 0") for word in samples},
        "peak_bytes": {"old lines 0": 2**21, "new lines 0": 2**20},
        "sites": [{"code": "FM001", "calls": 2, "kernel": kernel}],
        "device": "cpu",
        "environment": {},
        "others": None,
        "threads": 1,
        "whole": "a step",
        "problem": None,
    }


@pytest.mark.parametrize(("after", "verdict"), [(1.0, "faster"), (4.0, "slower"), (2.01, "no difference")])
def test_the_verdict_follows_from_the_interval(after: float, verdict: str) -> None:
    gain = gain_of(result(2.0, after), 1)
    assert gain.step is not None
    assert gain.step.ratio.verdict == verdict
    assert gain.sites[0].slower is (verdict == "slower")
    assert f": {verdict})" in gain.lines()[0]


def test_a_place_tells_memory_kernel_and_why_no_faster_one() -> None:
    (site,) = gain_of(result(2.0, 1.0), 1).sites
    lines = "\n".join(site.lines())
    assert "2 calls a step" in lines
    assert "peak 2.0 MiB -> 1.0 MiB" in lines
    assert "kernel that runs now: math" in lines
    assert "not flash: dropout" in lines
    assert "cudnn" not in lines


def test_noise_is_warned_of_and_an_undecided_ratio_says_how_many_more_blocks() -> None:
    noisy = result(2.0, 2.0)
    noisy["samples_ms"]["new step"] = [[1.0], [4.0]] * 10
    first, *lines = gain_of(noisy, 1).lines()
    assert re.search(r": inconclusive, about [\d,]+ more blocks would decide\)$", first)
    assert any(line.startswith("warning: noisy machine: neighbouring blocks of new step") for line in lines)
    assert not any("warning" in line for line in gain_of(result(2.0, 1.0), 1).lines())


def test_advice_names_only_options_of_this_command() -> None:
    loaded = result(2.0, 1.0, count=9) | {"others": 1e3}
    advice = {one["code"]: one["advice"] for one in gain_of(loaded, 1).warnings}
    assert set(advice) == {"too few samples", "other load"}
    assert not re.search(r"--(?!seconds)|blocks", " ".join(advice.values()))


def test_medians_that_contradict_the_ratio_are_explained() -> None:
    """A machine slows down: most samples of one version were taken before that, most of the other after."""
    slowing = result(2.0, 2.0)
    slowing["samples_ms"] |= {
        "old step": [[1.1] * 9] * 10 + [[5.5]] * 11,
        "new step": [[1.0]] * 10 + [[5.0] * 9] * 11,
    }
    line = gain_of(slowing, 1).lines()[0]
    assert ": faster); the medians disagree, since the machine's speed changed" in line


def test_too_few_steps_give_no_number() -> None:
    gain = gain_of(result(2.0, 1.0, count=5), 1)
    assert gain.step is None
    assert "too few steps" in str(gain.problem)
    assert not gain.sites[0].slower


def test_what_went_wrong_is_told_instead_of_numbers() -> None:
    gain: Gain = gain_of({"problem": "no optimizer"}, 2)
    assert gain.lines() == ["not measured: no optimizer"]
    assert len(gain.sites) == 2


def test_optimizers_made_at_one_place_switch_to_fused_and_back() -> None:
    parameters = [torch.nn.Parameter(torch.ones(5)) for _ in range(3)]

    def made() -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(parameters[:1]), torch.optim.Adam(parameters[1:2])]

    first = made.__code__.co_firstlineno
    with Optimizers([(str(Path(__file__).resolve()), first, first + 1)]) as optimizers:
        a, b = made()
        c = torch.optim.AdamW(parameters[2:])
    torch.optim.AdamW(parameters)  # outside
    assert optimizers.found == [a, b]
    for fused in (True, False, True):
        optimizers.fuse(fused)
        assert [each.param_groups[0]["fused"] for each in (a, b, c)] == [fused or None] * 2 + [None]
        for each in parameters:
            each.grad = torch.arange(5.0)
        for optimizer in (a, b, c):
            optimizer.step()
    assert torch.allclose(parameters[0], parameters[2], rtol=1e-6)
    assert (parameters[0] < 1).any()


def test_rules_are_told_alone_the_best_one_first() -> None:
    two = result(2.0, 1.0)
    two["samples_ms"] |= {
        "new step, FM001 alone": [[1.9]] * 20,
        "new step, FM002 alone": [[1.2]] * 20,
    }
    all_rules, first, second, *_ = gain_of(two, 1).lines()
    assert all_rules.startswith("a step, all rules: ")
    assert first.startswith("  FM002 manual-gelu alone: ")
    assert second.startswith("  FM001 manual-attention alone: ")


def test_a_version_without_functions_only_fuses(module: ModuleType) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    here = str(Path(__file__).resolve())
    variants = [Variant("new step", {path_of(module): NEW}, True), Variant("new step, FM003 alone", {}, True)]
    said = []
    with StepTimer(variants, [(here, 1, 10_000)]) as timer:
        optimizer = torch.optim.AdamW([weight])
        for _ in range(13):
            said.append((module.A().g(), optimizer.param_groups[0]["fused"]))
            weight.grad = torch.ones(1)
            optimizer.step()
    old, new, fused = ("old", None), ("new", True), ("old", True)
    assert said[1:] == [old, new, fused, fused, new, old] * 2
    assert list(timer.samples_ms(0)) == ["old step", "new step", "new step, FM003 alone"]
