import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from flashmore.data.items import Split
from flashmore.errors import ConfigError, DataError
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate, score
from flashmore.memory import largest_batch
from flashmore.runs import Run
from flashmore.specs import models

ROWS = [[0.1, 0.6, 0.3], [0.3, 0.2, 0.5], [0.5, 0.35, 0.15]]  # BOS, a, b: to EOS, a, b


def filtered(row: list[float], options: GenerateOptions) -> list[float]:
    """Temperature, top-k and top-p of a row without equals, in plain Python."""
    powers = [p ** (1 / options.temperature) for p in row]
    shares = {number: power / sum(powers) for number, power in enumerate(powers)}
    ranked = sorted(shares, key=lambda number: -shares[number])[: options.top_k]
    total = sum(shares[number] for number in ranked)
    kept: list[int] = []
    for number in ranked:
        if options.top_p is None or sum(shares[k] for k in kept) / total < options.top_p:
            kept.append(number)
    total = sum(shares[number] for number in kept)
    return [shares[number] / total if number in kept else 0.0 for number in range(len(row))]


def probabilities(rows: list[list[float]], context: int, prefix: str = "") -> dict[str, float]:
    """The probability of each name over a and b within the context, given that it begins with a prefix."""
    result = {}
    for length in range(context):
        for letters in itertools.product("ab", repeat=length):
            text = "".join(letters)
            ids = [0, *("ab".index(letter) + 1 for letter in text), 0]
            steps = list(itertools.pairwise(ids))[len(prefix) :]
            if text.startswith(prefix):
                result[text] = math.prod(rows[now][then] for now, then in steps)
    return result


@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(),
        GenerateOptions(temperature=0.5),
        GenerateOptions(temperature=2.0),
        GenerateOptions(top_k=2),
        GenerateOptions(top_p=0.7),
        GenerateOptions(temperature=1.5, top_k=2, top_p=0.65),
        GenerateOptions(prefix="ab"),
    ],
)
def test_names_come_as_often_as_their_probability_says(
    make_bigram: Callable[..., Run], options: GenerateOptions
) -> None:
    context, count = 5, 4000
    run = make_bigram(ROWS, "ab", context)
    generated = generate(run, replace(options, count=count, seed=1, repeats=True))
    expected = probabilities([filtered(row, options) for row in ROWS], context, options.prefix)
    expected.pop("", None)
    accepted = sum(expected.values())
    counts = Counter(name.text for name in generated.names)
    assert generated.complete
    assert sum(counts.values()) == count
    assert all(expected[text] > 0 for text in counts)
    likely = {text: count * p / accepted for text, p in expected.items() if count * p / accepted >= 5}
    statistic = sum((counts[text] - mean) ** 2 / mean for text, mean in likely.items())
    degrees = len(likely)
    assert statistic < degrees + 4 * math.sqrt(2 * degrees) + 8  # beyond the 1 − 10⁻⁴ quantile of χ²
    # Draws without EOS, or that gave the empty name, count too.
    assert generated.draws == pytest.approx(
        count / accepted, abs=5 * math.sqrt(count * (1 - accepted)) / accepted + 1
    )


@pytest.mark.parametrize("model", tuple(models()))
def test_log_probs_are_those_of_score(make_run: Callable[..., Run], model: str) -> None:
    run = make_run(model, "abcd", 9, dropout=0.5)
    options = GenerateOptions(count=30, seed=2, temperature=1.3, top_k=4, top_p=0.9, prefix="ab")
    names = generate(run, options).names
    assert len(names) == 30
    scored = score(run, [name.text for name in names])
    assert [name.log_prob for name in names] == pytest.approx([item.log_prob for item in scored], abs=1e-5)
    assert [name.novelty for name in names] == [item.novelty for item in scored]


def test_log_probs_are_those_of_the_whole_name_unfiltered(make_bigram: Callable[..., Run]) -> None:
    run = make_bigram(ROWS, "ab", 5)
    expected = probabilities(ROWS, 5)
    generated = generate(run, GenerateOptions(count=5, seed=3, prefix="a", temperature=3.0, top_k=2))
    assert len(generated.names) > 1
    for name in generated.names:
        assert name.log_prob == pytest.approx(math.log(expected[name.text]), abs=1e-6)


def test_a_seed_gives_the_same_names_and_no_seed_fresh_ones(make_run: Callable[..., Run]) -> None:
    run = make_run("gru", "abcdefgh", 12)
    options = GenerateOptions(count=40, seed=4)
    before = torch.random.get_rng_state()
    assert generate(run, options) == generate(run, options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert generate(run, options).names != generate(run, replace(options, seed=5)).names
    fresh = [generate(run, replace(options, seed=None)) for _ in range(2)]
    assert fresh[0].seed != fresh[1].seed
    assert fresh[0].names != fresh[1].names
    assert generate(run, replace(options, seed=fresh[0].seed)) == fresh[0]


def test_no_name_comes_twice_unless_asked_for(make_bigram: Callable[..., Run]) -> None:
    run = make_bigram(ROWS, "ab", 4)
    once = generate(run, GenerateOptions(count=12, seed=6))
    assert len({name.text for name in once.names}) == len(once.names) == 12
    assert once.draws > 12
    again = generate(run, GenerateOptions(count=100, seed=6, repeats=True))
    assert len({name.text for name in again.names}) < len(again.names) == 100


def test_names_are_labelled_and_known_ones_left_out(make_bigram: Callable[..., Run]) -> None:
    split = Split(train=("a", "b"), validation=("ab",), test=("ba", "a"), leak_share=0.5)
    run = make_bigram(ROWS, "ab", 4, split)
    labels = {name.text: name.novelty for name in generate(run, GenerateOptions(count=14, seed=7)).names}
    assert len(labels) == 14
    known = {"a": "train", "b": "train", "ab": "validation", "ba": "test"}
    assert {text: label for text, label in labels.items() if label != "new"} == known
    fresh = generate(run, GenerateOptions(count=10, seed=7, new_only=True))
    assert fresh.complete
    assert {name.text for name in fresh.names} == labels.keys() - known.keys()
    assert {name.novelty for name in fresh.names} == {"new"}


def test_it_gives_up_after_a_number_of_draws(make_bigram: Callable[..., Run]) -> None:
    run = make_bigram([[0.1, 0.9], [0.5, 0.5]], "a", 3)
    few = GenerateOptions(count=5, seed=8)
    cases = ((few, 20_000), (replace(few, count=300), 30_000), (replace(few, max_draws=77), 77))
    for options, draws in cases:
        generated = generate(run, options)
        assert {name.text for name in generated.names} == {"a", "aa"}
        assert (generated.draws, generated.complete) == (draws, False)
    nothing = make_bigram([[1.0, 0.0], [1.0, 0.0]], "a", 3)
    assert generate(nothing, GenerateOptions(count=3, seed=8)).names == []
    endless = make_bigram([[0.0, 1.0], [0.0, 1.0]], "a", 3)
    assert generate(endless, GenerateOptions(count=3, seed=8)).draws == 20_000


def test_drawn_names_are_counted_by_where_they_come_from(make_bigram: Callable[..., Run]) -> None:
    split = Split(train=("a", "bA"), validation=("A",), test=("a", "b"), leak_share=None)
    run = make_bigram([[0.1, 0.3, 0.3, 0.3], *[[0.5, 0.2, 0.2, 0.1]] * 3], "Aab", 4, split)
    options = GenerateOptions(count=300, seed=1, repeats=True)
    generated = generate(run, options)
    texts = [name.text for name in generated.names]
    tally = generated.tally
    assert tally
    assert (tally.drawn, tally.copies) == (300, texts.count("a") + texts.count("bA"))
    assert tally.held_out == texts.count("A") + texts.count("b") > 0
    assert tally.new == 300 - tally.copies - tally.held_out
    assert tally.copies_up_to_case == sum(texts.count(text) for text in ("A", "ba", "BA", "Ba")) > 0
    assert str(tally) == (
        f"300 drawn: {tally.new} new, {tally.copies} copies ({tally.copies_up_to_case} more ignoring case),"
        f" {tally.held_out} held out"
    )
    rejected = generate(run, replace(options, max_draws=generated.draws, new_only=True))
    assert rejected.tally == tally, "rejected names count too"


def test_names_do_not_depend_on_the_sizes_of_batches(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("gru", "abcdefgh", 12)
    options = GenerateOptions(count=40, seed=4, suffix="a", min_length=3)
    expected = generate(run, options)
    monkeypatch.setattr("flashmore.generation.sample.largest_batch", lambda *_: 7)
    again = generate(run, options)
    assert [name.text for name in again.names] == [name.text for name in expected.names]
    assert (again.draws, again.tally) == (expected.draws, expected.tally)


def test_greedy_takes_the_likeliest_character(make_bigram: Callable[..., Run]) -> None:
    run = make_bigram([[0.1, 0.5, 0.4], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]], "ab", 5)
    for options in (GenerateOptions(count=1, top_k=1), GenerateOptions(count=1, temperature=1e-300)):
        generated = generate(run, options)
        assert [name.text for name in generated.names] == ["ab"]
        assert generated.draws == 1


def test_draws_that_the_data_could_not_hold_give_no_name(make_run: Callable[..., Run]) -> None:
    run = make_run("bigram", " e\u0301", 5)  # a space, e, and an accent that composes with it; all alike
    texts = {name.text for name in generate(run, GenerateOptions(count=500, seed=9)).names}
    assert "e e" in texts
    assert "\u0301e" in texts
    assert not any("e\u0301" in text or text != text.strip() or not text for text in texts)


def test_a_prefix_begins_every_name(make_run: Callable[..., Run]) -> None:
    run = make_run("transformer", "abcd\u00e9", 8)
    generated = generate(run, GenerateOptions(count=20, seed=10, prefix=" e\u0301a"))
    assert generated.complete
    assert all(name.text.startswith("\u00e9a") for name in generated.names)


def test_a_prefix_may_fill_the_context_but_not_more(make_bigram: Callable[..., Run]) -> None:
    run = make_bigram(ROWS, "ab", 4)
    full = generate(run, GenerateOptions(count=1, seed=11, prefix="aba"))
    assert [name.text for name in full.names] == ["aba"]
    with pytest.raises(ConfigError, match="at most 3 characters") as caught:
        generate(run, GenerateOptions(prefix="abab"))
    assert "4 characters" in caught.value.found


def test_unknown_characters_of_a_prefix_are_named(make_bigram: Callable[..., Run]) -> None:
    with pytest.raises(DataError) as caught:
        generate(make_bigram(ROWS, "ab", 4), GenerateOptions(prefix="a1?b"))
    assert "'1'" in caught.value.found
    assert "'?'" in caught.value.found
    assert "'b'" not in caught.value.found


def test_more_names_than_a_batch_holds(make_run: Callable[..., Run]) -> None:
    run = make_run("bow", "abcdefgh", 401, n_embd=1024)
    assert largest_batch(run.model, run.model.block_size) == 10
    generated = generate(run, GenerateOptions(count=20, seed=12, temperature=0.9))
    assert len({name.text for name in generated.names}) == 20
