"""`flashmore generate`: names, where they stand in the data, and how likely they are."""

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import Any

import pytest
import torch.nn.functional as F

from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE, encode_items
from flashmore.models.ngram import NgramModel, best_ngram
from flashmore.runs import Run
from flashmore.training.loop import train
from forks import Forks

Call = Callable[..., CompletedProcess[str]]
Document = Callable[..., Any]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data holds every name that its characters can make."""
    folder = tmp_path_factory.mktemp("full")
    items = ("".join(pair) for pair in itertools.product("ab", repeat=2))
    (folder / "items.txt").write_text("\n".join(("a", "b", *items)))
    train(TrainConfig(file=folder / "items.txt", model="bigram", max_steps=4, device="cpu"), folder / "run")
    return folder / "run"


def texts(names: list[dict[str, Any]]) -> list[str]:
    return [name["text"] for name in names]


def test_json_is_an_object_with_the_documented_fields(trained: Path, document: Document) -> None:
    made = document("generate", trained, "--count", 30)
    assert made.keys() == {"names", "tally", "draws", "complete", "seed"}
    assert made["tally"].keys() == {"drawn", "new", "copies", "copies_up_to_case", "held_out"}
    names = made["names"]
    assert len(names) == 30
    for name in names:
        types = {field: type(value) for field, value in name.items()}
        assert types == {"text": str, "novelty": str, "log_prob": float}
    assert len(set(texts(names))) == 30


def test_a_name_is_labelled_with_the_first_part_that_holds_it(trained: Path, document: Document) -> None:
    split = Run.open(trained).split
    names = document("generate", trained, "--count", 200, "--seed", 1)["names"]
    for name in names:
        parts = {"train": split.train, "validation": split.validation, "test": split.test}
        held = [part for part, items in parts.items() if name["text"] in items]
        assert name["novelty"] == (held or ["new"])[0]
    assert {name["novelty"] for name in names} == {"train", "validation", "test", "new"}, "of 200 names"


def test_its_log_probabilities_are_those_of_score(trained: Path, document: Document) -> None:
    options = ("--temperature", 0.5, "--top-k", 5, "--seed", 1, "--count", 10)
    names = document("generate", trained, *options)["names"]
    scored = document("score", trained, *texts(names))
    for name, same in zip(names, scored, strict=True):
        assert name["log_prob"] == pytest.approx(same["log_prob"], rel=1e-6)


def test_names_of_a_file_that_cannot_be_scored_are_left_out_and_said(
    trained: Path, call: Call, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("anna\nbr\u00f8d\nbob\n", encoding="utf-8")
    scored = call("score", trained, "--file", names, "--json")
    assert [name["text"] for name in json.loads(scored.stdout)] == ["anna", "bob"]
    assert "left out: 'br\u00f8d': '\u00f8' (U+00F8)" in scored.stderr
    names.write_text("br\u00f8d\n", encoding="utf-8")
    none = call("score", trained, "--file", names)
    assert none.returncode == 2
    assert "names of 1 to" in none.stderr


def test_the_same_seed_gives_the_same_names_and_none_gives_others(
    trained: Path, call: Call, document: Document
) -> None:
    first, second = (call("generate", trained, "--json") for _ in range(2))
    assert first.stdout != second.stdout
    told = re.search(r"^to generate the same names again: --seed (\d+)\n", first.stderr, re.MULTILINE)
    assert told
    assert document("generate", trained, "--seed", told[1]) == json.loads(first.stdout)
    assert call("generate", trained, "--seed", told[1]).stderr == first.stderr.replace(told[0], "")


def test_the_origin_of_the_names_and_the_accepted_share_are_told(
    trained: Path, call: Call, document: Document
) -> None:
    given = ("generate", trained, "--seed", 1, "--count", 10, "--suffix", "ra", "--nearest")
    made, done = document(*given), call(*given)
    tally, draws = made["tally"], made["draws"]
    assert all(name["text"].endswith("ra") for name in made["names"])
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{tally['drawn']} drawn: {tally['new']} new, {tally['copies']} copies")
    assert second == f"10 of {draws} draws accepted ({10 / draws:.2%})"
    for name in made["names"]:
        assert re.search(rf" {name['text']} .* {name['nearest']} .* {name['distance']} ", done.stdout)


@pytest.mark.parametrize(
    ("words", "holds"),
    {
        "--prefix ma": lambda name: name["text"].startswith("ma"),
        "--new-only": lambda name: name["novelty"] == "new",
        "--new-only --prefix t --temperature 1.5": lambda name: (
            name["novelty"] == "new" and name["text"][0] == "t"
        ),
    }.items(),
)
def test_options_narrow_what_is_drawn(
    words: str, holds: Callable[[dict[str, Any]], bool], trained: Path, document: Document
) -> None:
    def shares(*options: str) -> list[bool]:
        return [holds(name) for name in document("generate", trained, "--seed", 1, *options)["names"]]

    assert all(shares(*words.split()))
    assert not all(shares("--count", "100"))


@pytest.mark.parametrize("words", ["--top-k 2", "--top-p 0.5", "--temperature 0.5"])
def test_options_keep_to_what_is_likely(words: str, trained: Path, document: Document) -> None:
    def mean_log_prob(*options: str) -> float:
        given = ("--repeats", "--count", 100, "--seed", 1)
        return fmean(name["log_prob"] for name in document("generate", trained, *given, *options)["names"])

    assert mean_log_prob(*words.split()) > mean_log_prob() + 0.2


def test_top_k_1_always_takes_the_likeliest(trained: Path, document: Document) -> None:
    given = ("generate", trained, "--top-k", 1)
    drawn = [document(*given, "--count", 1, "--seed", seed)["names"] for seed in range(3)]
    assert drawn[0] == drawn[1] == drawn[2]
    repeated = document(*given, "--count", 4, "--repeats")["names"]
    assert repeated == drawn[0] * 4


@pytest.mark.parametrize(
    "words",
    [
        "--new-only",
        "--new-only --prefix a",
        "--count 9 --seed 3 --prefix ab",
        "--pattern [^a]a --contains ab",
    ],
)
def test_what_cannot_be_had_is_said_with_what_there_is(
    words: str, full: Path, call: Call, refusal: Callable[..., str]
) -> None:
    given = ("generate", full, "--seed", 1, "--count", 7, *words.split())
    count = 9 if "--count" in words else 7
    table, as_json = call(*given), call(*given, "--json")
    names = json.loads(as_json.stdout)["names"]
    assert texts(names) == (["ab"] if "--count" in words else [])
    for done in (table, as_json):
        message = refusal(done, 1, after_progress=True)
        assert f"wanted: {count} names" in message
        assert f"found: {len(names)} after 20,000 draws" in message
    assert all(name in table.stdout for name in texts(names))
    assert bool(table.stdout) == bool(names)


def test_ngrams_of_the_training_items_generate_names(
    trained: Path, call: Call, document: Document, refusal: Callable[..., str], tmp_path: Path
) -> None:
    run = Run.open(trained)
    made = document("generate", trained, "--ngram", "--seed", 1, "--count", 5, "--prefix", "a")
    ngrams, best = best_ngram(run.split.train, run.split.validation, run.vocabulary, run.model)
    model = NgramModel(ngrams, best.order)
    for name in made["names"]:
        assert name["text"].startswith("a")
        own = encode_items([name["text"]], run.vocabulary, run.model.block_size, "cpu")
        targets = own.targets[own.targets != IGNORE].long()
        log_probs = model(own.ids.long())[0, : len(targets)]
        assert name["log_prob"] == pytest.approx(
            -F.nll_loss(log_probs, targets, reduction="sum").item(), rel=1e-4
        )
    (tmp_path / "items.txt").write_text("anna\nbert\ncarla")
    config = TrainConfig(
        file=tmp_path / "items.txt", split="100/0/0", model="bigram", max_steps=1, device="cpu"
    )
    train(config, tmp_path / "run")
    message = refusal(call("generate", tmp_path / "run", "--ngram"), 2)
    assert "a run with no validation part" in message


def test_the_best_weights_are_used_and_the_last_where_there_are_none(
    unfinished: Path, call: Call, document: Document
) -> None:
    assert Run.open(unfinished).load_state().best_step is None
    assert len(document("generate", unfinished, "--count", 5)["names"]) == 5


def test_long_names_are_shown_whole(call: Call, document: Document, tmp_path: Path) -> None:
    items = ["ab" * 90, "ba" * 85, "abba" * 40]
    (tmp_path / "long.txt").write_text("\n".join(items))
    config = TrainConfig(
        file=tmp_path / "long.txt", split="100/0/0", model="bigram", max_steps=4, device="cpu"
    )
    train(config, tmp_path / "run")
    given = ("generate", tmp_path / "run", "--count", 5, "--seed", 1, "--prefix", "ab" * 60)
    names = texts(document(*given)["names"])
    assert min(map(len, names)) >= 120
    table = call(*given).stdout
    assert all(f" {name} " in table for name in names)
    assert f" {items[0]} " in call("score", tmp_path / "run", items[0]).stdout


def test_a_process_prints_a_plain_table_and_its_remark_apart(
    trained: Path, process: Call, plain: Callable[[str], bool]
) -> None:
    """In an encoding without lines and accents too."""
    done = process("generate", trained, "--count", 3, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert re.fullmatch(
        r"\d+ drawn: .*\n3 of .*\nto generate the same names again: --seed \d+\n", done.stderr
    )
    assert plain(done.stdout)
    assert done.stdout.isascii()
    assert "log-probability" in done.stdout


def test_characters_that_stdout_lacks_neither_fail_nor_break_json(process: Call, tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text("さ\nら\nさら\n", encoding="utf-8")
    train(
        TrainConfig(file=tmp_path / "items.txt", model="bigram", max_steps=4, device="cpu"), tmp_path / "run"
    )
    words = ("score", tmp_path / "run", "さら")
    table, as_json = (process(*words, *more, PYTHONIOENCODING="ascii:strict") for more in ((), ("--json",)))
    assert table.returncode == as_json.returncode == 0, table.stderr + as_json.stderr
    assert " ?? " in table.stdout
    assert texts(json.loads(as_json.stdout)) == ["さら"]


def test_a_reader_that_left_gets_no_traceback(full: Path, environment: dict[str, str], forks: Forks) -> None:
    """As in `flashmore generate RUN … | head -1`, with far more output than a pipe holds."""
    words = ("-m", "flashmore", "generate", full, "--count", 3000, "--repeats", "--seed", 1, "--json")
    ours, theirs = os.pipe()
    with TemporaryFile() as err:
        with os.fdopen(ours, encoding="utf-8") as reader:
            running = forks.start(words, environment, (None, theirs, err.fileno()))
            os.close(theirs)
            assert reader.readline() == "{\n"
        assert running.wait() == 1
        err.seek(0)
        assert err.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_takes_nothing_is_told(
    trained: Path, environment: dict[str, str], refusal: Callable[..., str], forks: Forks
) -> None:
    words = ("-m", "flashmore", "generate", trained, "--seed", 1, "--json")
    with Path("/dev/full").open("w") as stdout:
        done = forks.run(words, environment, stdout=stdout.fileno())
    assert "No space left" in refusal(done, 1, after_progress=True)
