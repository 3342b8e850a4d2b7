"""Each finding names the items that deserve a look, and ordinary lists have none."""

import pytest

from flashmore.data.items import Split, Words, read_words, split_words
from flashmore.data.overview import Overview, overview


def looked(*lines: str, held_out: tuple[str, ...] = ()) -> Overview:
    items = tuple(dict.fromkeys(lines))
    train = tuple(item for item in items if item not in held_out)
    return overview(Words(lines, items, "a list"), Split(train, held_out, (), None))


def test_counts_lengths_and_characters() -> None:
    found = looked("anna", "bo", "anna", "cyan", held_out=("bo",))
    assert (found.lines, found.items) == (4, 3)
    assert found.parts == {"train": 2, "validation": 1, "test": 0}
    assert found.lengths == {2: 1, 4: 2}
    assert found.characters == {"n": 3, "a": 3, "b": 1, "o": 1, "c": 1, "y": 1}
    assert [found.length(share) for share in (0.1, 0.34, 1)] == [2, 4, 4]


@pytest.mark.parametrize(
    ("lines", "what", "examples"),
    [
        (("a", "b", "b", "a", "b"), "more than once, with 3 extra lines", ("b", "a")),
        (("José Maria", "josemaria", "bob"), "equal a training item", ("josemaria",)),
        (("anna", "b\u200bob", "cy\ufffd", "\ue000"), "control", ("b\u200bob", "cy\ufffd", "\ue000")),
        (("anna", "\u041caria", "Мария", "Ωmega"), "mix alphabets", ("\u041caria", "Ωmega")),
        (("anna", "bo" * 21), "without them the context would be 5, not 43", ("bo" * 21,)),
    ],
)
def test_what_may_be_unintended_is_found(
    lines: tuple[str, ...], what: str, examples: tuple[str, ...]
) -> None:
    if what.startswith("without"):
        lines = ("bob", "cy", *lines)
    (finding,) = looked(*lines, held_out=("josemaria",) if "josemaria" in lines else ()).findings
    assert what in finding.what
    assert (finding.count, finding.examples) == (len(examples), examples)


def test_ordinary_lists_have_no_findings() -> None:
    words = read_words(None)
    assert overview(words, split_words(words)).findings == ()
    assert looked("صدا\u200cها", "東京タワー", "Tシャツ", "O’Neil-Smith", "c d").findings == ()
