import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashmore.data.items import Split
from flashmore.errors import ConfigError, DataError
from flashmore.generation.constraints import nearest
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import Near, generate
from flashmore.runs import Run

ROWS = [[0.1, 0.6, 0.3], [0.3, 0.2, 0.5], [0.5, 0.35, 0.15]]  # BOS, a, b: to EOS, a, b
CONTEXT = 6


def distance(first: str, second: str) -> int:
    """Levenshtein distance by its recursive definition."""
    if not first or not second:
        return len(first) + len(second)
    if first[0] == second[0]:
        return distance(first[1:], second[1:])
    edits = ((first[1:], second), (first, second[1:]), (first[1:], second[1:]))
    return 1 + min(distance(*pair) for pair in edits)


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ({"min_length": 3}, lambda text: len(text) >= 3),
        ({"max_length": 2}, lambda text: len(text) <= 2),
        ({"min_length": 2, "max_length": 2, "prefix": "b"}, lambda text: re.fullmatch("b.", text)),
        ({"suffix": "ba"}, lambda text: text.endswith("ba")),
        ({"contains": "bb"}, lambda text: "bb" in text),
        ({"pattern": "(a|ab)+"}, lambda text: re.fullmatch("(a|ab)+", text)),
        ({"like": "abb"}, lambda text: 0 < distance(text, "abb") <= 2),
        ({"like": "abb", "max_distance": 1}, lambda text: distance(text, "abb") == 1),
        ({"suffix": "a", "contains": "bb", "max_length": 4}, lambda text: text[-1] == "a" and "bb" in text),
    ],
)
def test_names_that_fulfil_the_options_come_as_often_as_the_model_says(
    options: dict[str, Any], holds: Callable[[str], object], make_bigram: Callable[..., Run]
) -> None:
    """The distribution is the model's own, given the options: no name is cut short or drawn out."""
    run, count = make_bigram(ROWS, "ab", CONTEXT), 2000
    generated = generate(run, GenerateOptions(count=count, seed=1, repeats=True, **options))
    assert generated.complete
    counts = Counter(name.text for name in generated.names)
    expected = {}
    prefix, longest = options.get("prefix", ""), options.get("max_length", CONTEXT - 1)
    for length in range(1, longest + 1):
        for text in map("".join, itertools.product("ab", repeat=length)):
            ids = [0, *("ab".index(letter) + 1 for letter in text), 0]
            if text.startswith(prefix) and holds(text):
                steps = itertools.pairwise(ids)
                expected[text] = math.prod(ROWS[now][then] for now, then in steps)
    assert counts.keys() <= expected.keys()
    total = sum(expected.values())
    likely = {text: count * p / total for text, p in expected.items() if count * p / total >= 5}
    statistic = sum((counts[text] - mean) ** 2 / mean for text, mean in likely.items())
    assert statistic < len(likely) + 4 * math.sqrt(2 * len(likely)) + 8


def test_names_of_a_file_are_avoided_up_to_case(make_bigram: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "taken.txt").write_text("AB\n\n bb \r\nb\n", encoding="utf-8")
    run = make_bigram(ROWS, "ab", 3)
    options = GenerateOptions(count=6, seed=1, avoid=tmp_path / "taken.txt")
    assert {name.text for name in generate(run, options).names} == {"a", "aa", "ba"}
    with pytest.raises(DataError, match="nowhere"):
        generate(run, GenerateOptions(avoid=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prefix": "aba", "max_length": 2}, ("3 characters, by --prefix", "2 characters, by --max-length")),
        ({"min_length": 3, "max_length": 2}, ("--min-length", "--max-length")),
        ({"min_length": 6}, ("6 characters, by --min-length", "5 characters, by the model's context")),
        ({"suffix": "ab", "max_length": 1}, ("--suffix",)),
        ({"contains": "ab", "max_length": 1}, ("--contains",)),
        ({"like": "abababab"}, ("6 characters, by --like", "context")),
        ({"like": "a", "min_length": 4}, ("--min-length", "3 characters, by --like")),
        ({"suffix": "ac"}, ("'c'",)),
        ({"contains": "é"}, ("'é'",)),
        ({"pattern": "(a"}, ("--pattern", "missing )", "RE2")),
        ({"pattern": "(a)\\1"}, ("--pattern", "and backreferences")),
        ({"pattern": "\udc80"}, ("--pattern", "surrogates")),
        ({"pattern": "((a{999}){999}){999}"}, ("--pattern", "repetition")),
    ],
)
def test_what_no_name_can_fulfil_is_refused(
    options: dict[str, Any], told: tuple[str, ...], make_bigram: Callable[..., Run]
) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        generate(make_bigram(ROWS, "ab", CONTEXT), GenerateOptions(**options))
    assert all(part in str(caught.value) for part in told)


def test_a_hostile_pattern_takes_no_longer_than_another(make_bigram: Callable[..., Run]) -> None:
    """With backtracking, one name of a thousand characters would take longer than the age of the universe."""
    run = make_bigram([[0.0, 1.0, 0.0], [0.001, 0.999, 0.0], [1.0, 0.0, 0.0]], "ab", 1001)
    options = GenerateOptions(count=1, seed=1, max_draws=50, min_length=100, pattern="((a|a)+)+b")
    generated = generate(run, options)
    assert generated.names == []
    assert generated.tally
    assert generated.tally.drawn > 5


def test_each_name_has_the_nearest_of_the_training_part(
    make_bigram: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Split(train=("ab", "aba", "bbbb"), validation=("a",), test=(), leak_share=None)
    run = make_bigram(ROWS, "ab", CONTEXT, split)
    names = generate(run, GenerateOptions(count=30, seed=1, nearest=True)).names
    assert len(names) == 30
    monkeypatch.setattr("flashmore.generation.constraints._PAIRS", 7)  # several rounds
    again = nearest([name.text for name in names], split.train)
    for name, pair in zip(names, again, strict=True):
        assert isinstance(name, Near)
        assert (name.nearest, name.distance) == pair
        assert name.distance == distance(name.text, name.nearest)
        assert name.distance == min(distance(name.text, item) for item in split.train)
        assert (name.distance == 0) == (name.novelty == "train")
