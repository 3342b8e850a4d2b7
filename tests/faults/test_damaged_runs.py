"""A damaged run is refused with a message, or works as if it were intact; a hostile one does no harm."""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import split

import pytest
import torch
from safetensors.torch import load_file

from damage import OUTSIDE, Home, copy_of, crafted, damage_at_random
from forks import Forks, Job, Outcome

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and the kinds of files that Unix has")
NAMES = "\n".join(
    first + second for first in ("an", "be", "cor", "dal") for second in ("na", "lo", "mi", "ra")
)
TRAIN = split("--device cpu --dropout 0.1 --batch 4 --steps 4 --eval-every 2 --log-every 1 --speedups none")
ITEMS = split("names.txt --model mlp --channels 8")
TEXT = split("names.txt --mode text --context 4 --model transformer --layers 1 --heads 1 --channels 8")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LARGEST_MIB, LARGEST_CPU_S = 1024, 10


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as started:
        yield started


@pytest.fixture(scope="module")
def material(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Intact runs: `items` and `text`, each with a twin of the same sizes and another seed."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "names.txt").write_text(NAMES * 3)
    for name, words in (("items", ITEMS), ("text", TEXT)):
        for run, seed in ((name, "1"), (f"{name}-twin", "2")):
            trained = forks.run(Job((("train", *words, *TRAIN, "--seed", seed, "--out", run),), str(folder)))
            assert trained.codes == (0,), trained.text
    return folder


Damage = Callable[[Home], object]


class Trial:
    """Damages copies of a run and looks at what commands make of them."""

    def __init__(self, forks: Forks, material: Path, kind: str, folder: Path) -> None:
        self.forks, self.material, self.kind, self.folder = forks, material, kind, folder
        home = copy_of(material / kind, material / f"{kind}-twin", folder / "intact")
        self.intact = self.run(home)
        assert self.intact.codes == (0,) * 4, self.intact.text
        self.weights = load_file(home.run / "last.safetensors")
        shutil.rmtree(home.folder)
        twin = copy_of(material / f"{kind}-twin", material / kind, folder / "twin")
        # What has all of its parts from the twin is the twin.
        self.right = [
            {text, other} for text, other in zip(self.intact.texts, self.run(twin).texts, strict=True)
        ]
        self.weights_of_the_twin = load_file(twin.run / "last.safetensors")
        shutil.rmtree(twin.folder)

    def run(self, home: Home) -> Outcome:
        """What is done to a run: everything that reads it, then training that goes on with it."""
        length = () if self.kind == "items" else ("--length", "5")
        commands = (
            ("generate", "run", "--seed", "1", "--json", *length),
            ("score", "run", "anna") if self.kind == "items" else ("explain", "--run", "run"),
            ("train", "--resume", "run", "--steps", "6"),
            ("library", "run"),
        )
        return self.forks.run(Job(commands, str(home.folder)))

    def check(self, name: str, damage: Damage, *, must_be_right: bool) -> None:
        """Damage a copy, and look at what became of it and of what lies around it."""
        home = copy_of(self.material / self.kind, self.material / f"{self.kind}-twin", self.folder / "copy")
        told = damage(home)
        outcome = self.run(home)
        case = f"{name} ({told}): {replace(outcome, text=outcome.text[-700:], texts=())}"
        assert outcome.signal == 0, case
        assert len(outcome.codes) == 4, case
        assert set(outcome.codes) <= {0, 1, 2}, case
        assert outcome.text.count("wanted: ") >= sum(code != 0 for code in outcome.codes), case
        assert "Traceback" not in outcome.text, case
        assert not CONTROL.search(outcome.text), case
        assert outcome.peak_mib < LARGEST_MIB, case
        assert outcome.cpu_s < LARGEST_CPU_S, case
        assert home.outside.read_text() == OUTSIDE, case
        assert sorted(path.name for path in home.folder.iterdir()) == ["outside.txt", "run"], case
        if must_be_right:
            self.require_right(home, outcome, case)
        shutil.rmtree(home.folder)

    def require_right(self, home: Home, outcome: Outcome, case: str) -> None:
        """What was not refused is what an intact run gives."""
        went_on = outcome.codes[2] == 0
        for command in (0, 1, 3) if went_on else (0, 1):
            if outcome.codes[command] == 0:
                assert outcome.texts[command] in self.right[command], case
        if went_on:
            weights = load_file(home.run / "last.safetensors")
            assert any(
                weights.keys() == right.keys() and all(torch.equal(weights[key], right[key]) for key in right)
                for right in (self.weights, self.weights_of_the_twin)
            ), case


@pytest.fixture(scope="module", params=["items", "text"])
def trial(
    forks: Forks, material: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Trial:
    return Trial(forks, material, request.param, tmp_path_factory.mktemp("copies"))


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


def at_random(seeds: range) -> Iterator[tuple[str, Damage]]:
    for seed in seeds:
        yield f"seed {seed}", partial(damage_at_random, seed=seed)


def test_damaged_runs(trial: Trial) -> None:
    assert check_all(trial, at_random(range(12)), must_be_right=True) == 12


@pytest.mark.faults
def test_five_thousand_damaged_runs(trial: Trial) -> None:
    assert check_all(trial, at_random(range(1000, 6000)), must_be_right=True) == 5000


def test_crafted_runs(trial: Trial) -> None:
    every = list(crafted(trial.material / trial.kind))
    assert check_all(trial, every[::120], must_be_right=False) > 5


@pytest.mark.faults
def test_every_crafted_run(trial: Trial) -> None:
    every = crafted(trial.material / trial.kind)
    assert check_all(trial, every, must_be_right=False) > 300
