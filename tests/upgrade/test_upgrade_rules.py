"""The registry of rules: codes, names, and what is said of a code that does not exist."""

import re

import pytest

from flashmore.errors import UsageError
from flashmore.upgrade.rules import RULES, rule


def test_codes_are_unique_and_in_order() -> None:
    codes = [each.code for each in RULES]
    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"FM[01]\d\d", code) for code in codes)
    assert len({each.name for each in RULES}) == len(RULES)


@pytest.mark.parametrize("word", ["FM001", "fm001", "manual-attention"])
def test_a_rule_is_found_by_code_and_by_name(word: str) -> None:
    assert rule(word).code == "FM001"


def test_an_unknown_code_names_close_ones() -> None:
    with pytest.raises(UsageError) as raised:
        rule("manual-atention")
    assert raised.value.valid.startswith("FM001 (manual-attention)")
    with pytest.raises(UsageError) as raised:
        rule("xyz")
    assert "FM001" in raised.value.valid
