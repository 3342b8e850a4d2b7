"""A damaged run is refused with a message, or works as if it were intact; a hostile one does no harm."""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from shlex import split

import pytest
import torch
from safetensors.torch import load_file

from damage import OUTSIDE, Home, copy_of, crafted, damage_at_random, newest, written
from jobs import Job, Jobs, Outcome

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and the kinds of files that Unix has")
NAMES = "\n".join(
    first + second for first in ("an", "be", "cor", "dal") for second in ("na", "lo", "mi", "ra")
)
TRAIN = split(
    "--device cpu --dropout 0.1 --batch-size 4 --max-steps 4 --eval-interval 2 --log-interval 1 "
    "--speedups none --lr-schedule constant"  # which does not depend on the step from which training goes on
)
ITEMS = split("names.txt --model mlp --n-embd 8")
LIST = split("names.bin --model mlp --n-embd 8 --split 60/20/20 --ngram-smoothing 0")
TEXT = split("names.txt --mode text --block-size 4 --model transformer --n-layer 1 --n-head 1 --n-embd 8")


@pytest.fixture(scope="module")
def material(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Intact runs: `items`, `list` (prepared), `text` and `half` (in float16), each with a twin of the same
    sizes and another seed."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "names.txt").write_text(NAMES * 3)
    assert jobs.run(Job((("prepare", "names.txt", "--out", "names.bin"),), str(folder))).codes == (0,)
    half = [*ITEMS, "--dtype", "float16"]
    for name, words in (("items", ITEMS), ("list", LIST), ("text", TEXT), ("half", half)):
        for run, seed in ((name, "1"), (f"{name}-twin", "2")):
            trained = jobs.run(Job((("train", *words, *TRAIN, "--seed", seed, "--out", run),), str(folder)))
            assert trained.codes == (0,), trained.text
    return folder


Damage = Callable[[Home], object]
TOLD = re.compile(r"is damaged \((step-|result\.json)")


class Trial:
    """Damages copies of a run and looks at what commands make of them."""

    def __init__(self, jobs: Jobs, material: Path, kind: str, folder: Path) -> None:
        self.jobs, self.material, self.kind, self.folder = jobs, material, kind, folder
        home = copy_of(material / kind, material / f"{kind}-twin", folder / "intact")
        self.intact = self.run(home)
        assert set(self.intact.codes) == {0}, self.intact.text
        self.weights = load_file(home.last)
        shutil.rmtree(home.folder)
        twin = copy_of(material / f"{kind}-twin", material / kind, folder / "twin")
        # What has all of its parts from the twin is the twin.
        self.right = [
            {text, other} for text, other in zip(self.intact.texts, self.run(twin).texts, strict=True)
        ]
        self.weights_of_the_twin = load_file(newest(twin.run))
        shutil.rmtree(twin.folder)

    def run(self, home: Home, name: str = "") -> Outcome:
        """What is done to a run: everything that reads it, then training that goes on with it."""
        generate = ["generate", "run", "--seed", "1", "--json"]
        compare = ["compare", "run", "--count", "2"]
        resume = ["train", "--resume", "run", "--max-steps", "6"]
        if name.startswith("requested: "):  # what the command that began a run compares itself with
            words = {"text": TEXT, "list": LIST}.get(self.kind, ITEMS)
            data = str(self.material / words[0])
            resume = ["train", data, *words[1:], *TRAIN, "--seed", "1", "--out", "run"]
        if self.kind == "text":
            commands = [[*generate, "--length", "5"], ["explain", "--run", "run"], resume]
        elif name.startswith("metrics, "):  # from which training may make a result
            commands = [generate, ["score", "run", "anna"], resume, compare]
        else:
            # Pictures take long, and show names and what is in the result.
            shown = ["--picture", "run/names.png"] if name.startswith("result[") else ["--json"]
            commands = [generate, ["score", "run", "anna"], [*compare, *shown], resume]
        commands.append(["library", "run"])
        return self.jobs.run(Job(tuple(map(tuple, commands)), str(home.folder)))

    def check(self, name: str, damage: Damage, *, must_be_right: bool) -> Outcome:
        """Damage a copy, and look at what became of it and of what lies around it."""
        home = copy_of(self.material / self.kind, self.material / f"{self.kind}-twin", self.folder / "copy")
        told = damage(home)
        around = sorted(home.folder.iterdir())
        outcome = self.run(home, name)
        case = f"{name} ({told})"
        outcome.require_harmless(len(self.intact.codes), case)
        assert home.outside.read_text() == OUTSIDE, case
        assert sorted(home.folder.iterdir()) == around, case
        if must_be_right:
            self.require_right(home, outcome, f"{case}: {outcome.text[-700:]}")
        shutil.rmtree(home.folder)
        return outcome

    def require_right(self, home: Home, outcome: Outcome, case: str) -> None:
        """What was not refused is what an intact run gives, or is said to be from the checkpoint before."""
        *readers, resumed, library = range(len(outcome.codes))
        went_on = outcome.codes[resumed] == 0
        for command in readers:
            if outcome.codes[command] == 0 and not TOLD.search(outcome.texts[command]):
                assert outcome.texts[command] in self.right[command], case
        if went_on and "best weights so far, which are lost" not in outcome.texts[resumed]:
            assert outcome.texts[library] in self.right[library], case
        if went_on:
            weights = load_file(home.last)
            assert any(
                weights.keys() == right.keys() and all(torch.equal(weights[key], right[key]) for key in right)
                for right in (self.weights, self.weights_of_the_twin)
            ), case


@pytest.fixture(scope="module", params=["items", "list", "text"])
def trial(
    jobs: Jobs, material: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Trial:
    return Trial(jobs, material, request.param, tmp_path_factory.mktemp("copies"))


def check_all(trial: Trial, damages: Iterable[tuple[str, Damage]], *, must_be_right: bool) -> int:
    """Try every damage; all that went wrong is told at the end."""
    wrong, count = [], 0
    for name, damage in damages:
        count += 1
        try:
            trial.check(name, damage, must_be_right=must_be_right)
        except AssertionError as error:
            wrong.append(str(error)[:2000])
            shutil.rmtree(trial.folder / "copy")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:20])
    return count


def at_random(seeds: Iterable[int]) -> Iterator[tuple[str, Damage]]:
    for seed in seeds:
        yield f"seed {seed}", partial(damage_at_random, seed=seed)


def test_damaged_runs(trial: Trial) -> None:
    # Of 1204 and 1722, the newest checkpoint is deleted, and the result altered as well.
    seeds = [*range(12 if trial.kind == "items" else 4), 1204, 1722]
    assert check_all(trial, at_random(seeds), must_be_right=True) == len(seeds)


@pytest.mark.faults
def test_five_thousand_damaged_runs(trial: Trial) -> None:
    assert check_all(trial, at_random(range(1000, 6000)), must_be_right=True) == 5000


def of_the_twin(run: Path) -> Iterator[tuple[str, Damage]]:
    """One or two files of the twin as they are."""
    names = [path.name for path in sorted(run.iterdir()) if not path.name.startswith("events.")]
    for both in combinations_with_replacement(names, 2):
        yield f"{' and '.join(both)} of the twin", partial(take_from, names=both)


def take_from(home: Home, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.copy(home.twin / name, home.run / name)


def test_files_of_the_twin(trial: Trial) -> None:
    every = list(of_the_twin(trial.material / trial.kind))
    assert check_all(trial, every[:: 6 if trial.kind == "items" else 13], must_be_right=True) > 2


@pytest.mark.faults
def test_all_files_of_the_twin(trial: Trial) -> None:
    every = of_the_twin(trial.material / trial.kind)
    assert check_all(trial, every, must_be_right=True) > 30


def test_a_run_that_is_written_again_is_intact(trial: Trial) -> None:
    outcome = trial.check("nothing", written(lambda home, parts: None), must_be_right=True)
    assert outcome.codes == trial.intact.codes, outcome.text


def test_crafted_runs(trial: Trial) -> None:
    every = list(crafted(trial.material / trial.kind))
    assert check_all(trial, every[:: 350 if trial.kind == "items" else 500], must_be_right=False) > 1


@pytest.mark.faults
def test_every_crafted_run(trial: Trial) -> None:
    every = crafted(trial.material / trial.kind)
    assert check_all(trial, every, must_be_right=False) > 300


@pytest.fixture(scope="module")
def half(jobs: Jobs, material: Path, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial(jobs, material, "half", tmp_path_factory.mktemp("copies"))


def test_loss_scales_of_a_run_in_float16(half: Trial) -> None:
    outcome = half.check("nothing", written(lambda home, parts: None), must_be_right=True)
    assert outcome.codes == half.intact.codes, outcome.text
    every = [case for case in crafted(half.material / "half") if case[0].startswith("loss scale")]
    assert check_all(half, every, must_be_right=False) > 10
