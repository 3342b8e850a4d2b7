"""The rules of `flashmore upgrade`, one module each."""

from rapidfuzz import process

from flashmore.errors import UsageError
from flashmore.upgrade.rules import (
    attention,
    blocking_copy,
    cross_entropy,
    dataloader,
    gelu,
    generation,
    item_in_loop,
    layer_norm,
    log_softmax,
    no_autocast,
    no_compile,
    optimizer,
    rms_norm,
)
from flashmore.upgrade.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    attention.RULE,
    gelu.RULE,
    optimizer.RULE,
    layer_norm.RULE,
    rms_norm.RULE,
    cross_entropy.RULE,
    log_softmax.RULE,
    dataloader.RULE,
    item_in_loop.RULE,
    blocking_copy.RULE,
    no_autocast.RULE,
    no_compile.RULE,
    generation.RULE,
)
"""In order of their codes."""
CODES = frozenset(each.code for each in RULES)
_CLOSE = 60
"""How alike two names are, of 100, to be suggested."""


def rule(code: str) -> Rule:
    """The rule of a code or a name.

    Raises:
        UsageError: there is none; names those that are close.
    """
    found = next((each for each in RULES if code.upper() == each.code or code.lower() == each.name), None)
    if found is not None:
        return found
    words = {word: f"{each.code} ({each.name})" for each in RULES for word in (each.code, each.name)}
    close = process.extract(code, list(words), processor=str.lower, limit=3, score_cutoff=_CLOSE)
    valid = ", ".join(dict.fromkeys(words[word] for word, *_ in close)) or ", ".join(e.code for e in RULES)
    raise UsageError("the code or the name of a rule", f"'{code}'", valid)
