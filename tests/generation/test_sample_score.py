import itertools
import math
from collections.abc import Callable

import pytest

from flashmore.data.items import Split
from flashmore.errors import DataError
from flashmore.generation.load import load_model
from flashmore.generation.sample import log_probs, score
from flashmore.memory import largest_batch
from flashmore.runs import Run
from flashmore.specs import models

ROWS = [[0.125, 0.5, 0.375], [0.25, 0.25, 0.5], [0.5, 0.125, 0.375]]  # BOS, a, b: to EOS, a, b


def test_a_score_by_hand(make_bigram: Callable[..., Run]) -> None:
    split = Split(train=("ab",), validation=("b",), test=("b", "ba"), leak_share=0.0)
    run = make_bigram(ROWS, "ab", 6, split)
    expected = {
        "a": 0.5 * 0.25,
        "b": 0.375 * 0.5,
        "ab": 0.5 * 0.5 * 0.5,
        "ba": 0.375 * 0.125 * 0.25,
        "aabba": 0.5 * 0.25 * 0.5 * 0.375 * 0.125 * 0.25,
    }
    scored = score(run, list(expected))
    assert [item.text for item in scored] == list(expected)
    assert [item.novelty for item in scored] == ["new", "validation", "train", "test", "new"]
    for item in scored:
        assert item.log_prob == pytest.approx(math.log(expected[item.text]), abs=1e-6)
        assert item.log_prob_per_char == pytest.approx(item.log_prob / (len(item.text) + 1), abs=1e-12)


@pytest.mark.parametrize("model", tuple(models()))
def test_probabilities_of_all_strings_add_up_to_at_most_one(make_run: Callable[..., Run], model: str) -> None:
    context = 5
    run = make_run(model, "ab", context, dropout=0.5)
    texts = ["".join(letters) for n in range(context) for letters in itertools.product("ab", repeat=n)]
    values = log_probs(run, load_model(run, "cpu"), texts, "cpu")
    total = math.fsum(map(math.exp, values))
    assert 0.5 < total <= 1 + 1e-6


@pytest.mark.parametrize("model", tuple(models()))
def test_a_score_does_not_depend_on_its_neighbours(make_run: Callable[..., Run], model: str) -> None:
    run = make_run(model, "abc", 12)
    names = ["a", "abcabc", "cc", "bb", "cab", "b", "c" * 11, "aa", "ba"]
    together = [item.log_prob for item in score(run, names)]
    assert together == pytest.approx([score(run, [name])[0].log_prob for name in names], abs=1e-5)


def test_more_names_than_a_batch_holds_are_scored(make_run: Callable[..., Run]) -> None:
    run = make_run("wavenet", "abc", 1001, n_embd=1024, n_layer=1)
    assert largest_batch(run.model, run.model.block_size) == 4
    names = ["a", "abcabc", "cc", "bb", "cab", "b", "c" * 20, "aa", "ba"]
    together = [item.log_prob for item in score(run, names)]
    assert together == pytest.approx([score(run, [name])[0].log_prob for name in names], abs=1e-4)


def test_names_are_taken_in_the_form_of_the_data(make_bigram: Callable[..., Run]) -> None:
    split = Split(train=("\u00e9",), validation=(), test=(), leak_share=None)
    run = make_bigram([[0.5, 0.5], [0.5, 0.5]], "\u00e9", 4, split)
    (scored,) = score(run, ["e\u0301"])
    assert (scored.text, scored.novelty) == ("\u00e9", "train")


def test_every_name_that_cannot_be_scored_is_named(make_bigram: Callable[..., Run]) -> None:
    run = make_bigram(ROWS, "ab", 6)
    with pytest.raises(DataError) as caught:
        score(run, ["ab", "xay!", "bababa", "", "b\u00e9", "a" * 500])
    found = caught.value.found
    for part in (
        "'xay!'",
        "'x'",
        "'y'",
        "'!'",
        "'bababa' of 6 characters",
        "an empty name",
        "'\u00e9'",
        "of 500",
    ):
        assert part in found
    assert "'ab'" not in found
    assert len(found) < 400
    assert "1 to 5 characters" in caught.value.wanted
    assert caught.value.valid == "a b"


def test_no_names_give_no_scores(make_bigram: Callable[..., Run]) -> None:
    assert score(make_bigram(ROWS, "ab", 6), []) == []
