"""Characters become ids and come back, for every character there is."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmore.data.vocabulary import EOS, Vocabulary
from flashmore.errors import DataError

ITEMS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(
        lambda text: unicodedata.normalize("NFC", text)
    ),
    max_size=8,
)


def test_ids_follow_the_code_points() -> None:
    vocabulary = Vocabulary.from_items(["bca", "bé", "𝒳"])
    assert vocabulary.characters == ("a", "b", "c", "é", "𝒳")
    assert vocabulary.size == 6
    assert vocabulary.encode("cabé𝒳") == [3, 1, 2, 4, 5]
    assert vocabulary.encode("") == []


def test_combining_characters_are_characters() -> None:
    vocabulary = Vocabulary.from_items(["x\u0323a"])
    assert vocabulary.decode_rows(np.array([vocabulary.encode("ax\u0323")])) == ["ax\u0323"]


def test_decoding_stops_before_the_first_stop() -> None:
    vocabulary = Vocabulary.from_items(["abc"])
    rows = np.array([[1, 2, EOS, 3, -1, 99], [EOS] * 6, [3, EOS, 1, 1, 1, 1]])
    assert vocabulary.decode_rows(rows) == ["ab", "", "c"]
    assert vocabulary.decode_rows(np.asfortranarray(rows)) == ["ab", "", "c"]


def test_unknown_characters_are_all_named_once_with_the_valid_ones() -> None:
    with pytest.raises(DataError) as caught:
        Vocabulary.from_items(["abc d\u00a0"]).encode("aéx\u0301é ")
    assert caught.value.found == "'é' (U+00E9), 'x' (U+0078), '\u0301' (U+0301)"
    assert caught.value.valid == "U+0020 a b c d U+00A0"


def test_a_large_vocabulary_is_shown_in_part() -> None:
    many = [chr(point) for point in range(0x4E00, 0x4E00 + 1500)]
    with pytest.raises(DataError) as caught:
        Vocabulary.from_items(many).encode("a")
    assert caught.value.valid.endswith("and 1,300 more")
    assert many[199] in caught.value.valid
    assert many[200] not in caught.value.valid


@given(ITEMS)
@settings(deadline=None)
def test_every_item_comes_back(items: list[str]) -> None:
    vocabulary = Vocabulary.from_items(items)
    assert list(vocabulary.characters) == sorted(set("".join(items)))
    for item in items:
        ids = vocabulary.encode(item)
        assert len(ids) == len(item)
        assert all(EOS < number < vocabulary.size for number in ids)
        assert vocabulary.decode_rows(np.array([[*ids, EOS, *ids]])) == [item]


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=9))
def test_rows_are_decoded_to_their_first_stop(rows: list[list[int]]) -> None:
    texts = Vocabulary(("a", "é", "さ", "😀")).decode_rows(np.array(rows, dtype=np.int64))
    assert texts == ["".join("\0aéさ😀"[number] for number in row).split("\0")[0] for row in rows]


def test_an_id_that_no_character_has_is_named() -> None:
    vocabulary = Vocabulary(("a", "b"))
    assert vocabulary.decode_rows(np.array([[1, 0, 9], [2, 2, 2]])) == ["a", "bbb"]
    assert vocabulary.decode_rows(np.empty((0, 3), dtype=np.int64)) == []
    for bad in (3, 99, -1):
        with pytest.raises(DataError, match=f"found: {bad}\n valid: 0 to 2"):
            vocabulary.decode_rows(np.array([[1, bad, 0]]))


@pytest.mark.parametrize("characters", [("b", "a"), ("a", "a"), ("ab",), ("",)])
def test_characters_that_are_no_vocabulary_are_refused(characters: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="stored with the run"):
        Vocabulary(characters)
