"""What the page of a rule says: its example becomes what it says it becomes."""

import re

import pytest

from flashmore.upgrade.edits import apply
from flashmore.upgrade.find import find_sites
from flashmore.upgrade.rules import RULES
from flashmore.upgrade.rules.explanation import page
from flashmore.upgrade.rules.rule import Rule

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REWRITING = [each for each in RULES if each.code < "FM100"]
ADVISING = [each for each in RULES if each not in REWRITING]


@pytest.mark.parametrize("rule", REWRITING, ids=lambda rule: rule.code)
def test_the_example_of_a_page_is_rewritten_as_it_says(rule: Rule) -> None:
    before, after = BLOCK.findall(page(rule))
    sites = find_sites(before)
    assert [site.code for site in sites if site.edits] == [rule.code]
    assert apply(before, sites) == after


@pytest.mark.parametrize("rule", ADVISING, ids=lambda rule: rule.code)
def test_the_advice_of_a_page_is_for_the_first_example_alone(rule: Rule) -> None:
    before, after = ([site.code for site in find_sites(source)] for source in BLOCK.findall(page(rule)))
    assert rule.code in before
    assert rule.code not in after


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_page_has_all_that_the_rule_says(rule: Rule) -> None:
    text = page(rule)
    assert text.startswith(f"# {rule.code} {rule.name}\n\n{rule.summary}\n")
    assert f"<{rule.documentation}>" in text
    assert all(f": {first} or newer" in text for _, first in rule.needs)
    assert "\n## Exactness\n" in text
