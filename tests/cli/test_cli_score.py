"""`flashmore score`: how likely given names are."""

import itertools
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from flashmore.runs import Run

Call = Callable[..., CompletedProcess[str]]
Document = Callable[..., Any]


def test_json_is_an_array_with_the_documented_fields_in_the_order_given(
    trained: Path, document: Document
) -> None:
    given = ["mala", "dan", "ooo", "dan"]
    scored = document("score", trained, *given)
    assert [name["text"] for name in scored] == given
    for name in scored:
        types = {field: type(value) for field, value in name.items()}
        assert types == {"text": str, "novelty": str, "log_prob": float, "log_prob_per_char": float}
        assert name["log_prob_per_char"] == pytest.approx(name["log_prob"] / (len(name["text"]) + 1))
        assert name["log_prob"] < 0
        assert name["novelty"] == Run.open(trained).split.novelty(name["text"])
    assert scored[1] == scored[3]


def test_the_log_probability_is_that_of_every_character_and_stop(
    quick: tuple[object, ...], call: Call, document: Document, tmp_path: Path
) -> None:
    """The Bigram is a table of logits, so that a name can be looked up by hand."""
    assert call(*quick, "--learning-rate", 1, "--warmup-steps", 0, "--out", tmp_path / "run").returncode == 0
    run = Run.open(tmp_path / "run")
    (table,) = run.load_weights().values()
    rows = table.double().log_softmax(-1)
    ids = [0, *run.vocabulary.encode("sara"), 0]
    by_hand = [rows[a, b].item() for a, b in itertools.pairwise(ids)]
    assert max(by_hand) - min(by_hand) > 0.5, "hardly trained: every character is alike"
    (scored,) = document("score", run.path, "sara")
    assert scored["log_prob"] == pytest.approx(sum(by_hand), rel=1e-5)


def test_the_table_shows_every_name_with_both_figures(trained: Path, call: Call, document: Document) -> None:
    done = call("score", trained, "dan", "mimi")
    assert (done.returncode, done.stderr) == (0, "")
    for name in document("score", trained, "dan", "mimi"):
        (line,) = (line for line in done.stdout.splitlines() if f" {name['text']} " in line)
        assert f"{name['log_prob']:.2f}" in line
        assert f"{name['log_prob_per_char']:.3f}" in line
        assert name["novelty"] in line


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "names to score"),
        (["zoé"], "'z' (U+007A), 'é' (U+00E9)"),
        (["dan", "q", "[x]"], "'q': 'q' (U+0071); '[x]'"),
        ([""], "an empty name"),
        (["dan", "d an"], "' ' (U+0020)"),
        (["danielanna"], "of 10 characters"),
    ],
    ids=str,
)
def test_a_name_that_cannot_be_scored_is_refused_with_the_reason(
    names: list[str], told: str, trained: Path, call: Call, refusal: Callable[..., str]
) -> None:
    assert told in refusal(call("score", trained, *names), 2)


def test_the_names_of_a_table_are_scored_as_those_given(
    trained: Path, document: Document, tmp_path: Path
) -> None:
    (tmp_path / "names.csv").write_text("id,name\n1,mala\n2,dan\n")
    scored = document("score", trained, "--file", tmp_path / "names.csv", "--column", "name")
    assert scored == document("score", trained, "mala", "dan")
