"""Which cases are tried, where flags and optional inputs multiply them: a covering design; no torch here."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from random import Random

from flashmore.upgrade.site import Input
from flashmore.upgrade.verify.family import Case, Choice, Choices, family

MOST_COMBINATIONS = 256
"""Combinations of answers that are all tried; of more, each answer beside the plainest, and a mixture."""
MIXED = 64
"""How many combinations the mixture has."""
MOST_CASES = 300
"""With more of them, the combinations are thinned; an ordinary place has 40 to 100."""
Design = list[tuple[Choices, list[Case]]]
"""The cases of each combination of answers to the open questions."""
Questions = Mapping[str, Sequence[Choice]]


@dataclass(frozen=True)
class Accepted:
    """Combinations of answers which the original takes."""

    combinations: list[Choices]
    of: int
    """How many there may be."""


def accepted(questions: Questions, takes: Callable[[Choices], bool]) -> Accepted:
    """All combinations that the original takes; where they are too many, some in which each answer occurs.

    Args:
        questions: what is not known of the inputs, and the answers.
        takes: whether the original runs with one answer to each.
    """
    every = islice(product(*questions.values()), MOST_COMBINATIONS)
    first: list[Choices] = [dict(zip(questions, answers, strict=True)) for answers in every]
    if math.prod(map(len, questions.values())) <= MOST_COMBINATIONS:
        taken = [choices for choices in first if takes(choices)]
        return Accepted(taken, len(taken))
    plainest = next(filter(takes, first), None)
    if plainest is None:
        return Accepted([], 0)
    singles: list[Choices] = [
        {**plainest, name: answer} for name, answers in questions.items() for answer in answers
    ]
    taken = [choices for choices in singles if takes(choices)]
    possible = {name: list(dict.fromkeys(choices[name] for choices in taken)) for name in questions}
    taken += [choices for choices in _mixture(possible) if takes(choices)]
    unique: list[Choices] = [choices for at, choices in enumerate(taken) if choices not in taken[:at]]
    return Accepted(unique, math.prod(map(len, possible.values())))


def _mixture(questions: Questions) -> Iterator[Choices]:
    """Combinations in which each answer to a question occurs as often as the others, in random order."""
    random = Random(0)
    columns = []
    for answers in questions.values():
        rounds = math.ceil(MIXED / len(answers))
        columns.append([each for _ in range(rounds) for each in random.sample(answers, len(answers))])
    return (dict(zip(questions, row, strict=True)) for row in islice(zip(*columns, strict=False), MIXED))


def whole(inputs: Sequence[Input], combinations: Sequence[Choices]) -> Design:
    """Every case with every combination."""
    return [(choices, list(family(inputs, choices))) for choices in combinations]


def thinned(design: Design) -> Design:
    """The plainest case with every combination; every case with every single answer.

    So each pair of a case and an answer occurs, and each combination of answers. Each case starts from
    another combination, so that the answers meet in many ways.
    """
    where: dict[Case, list[int]] = {}
    kinds = [[replace(case, choices={}) for case in cases] for _, cases in design]
    for number, found in enumerate(kinds):
        for kind in found:
            where.setdefault(kind, []).append(number)
    kept = {
        (kind, number)
        for start, (kind, numbers) in enumerate(where.items())
        for number in (numbers if _is_plain(kind) else _cover(design, numbers, start))
    }
    return [
        (choices, [case for case, kind in zip(cases, kinds[number], strict=True) if (kind, number) in kept])
        for number, (choices, cases) in enumerate(design)
    ]


def size(design: Design) -> int:
    """The number of its cases."""
    return sum(len(cases) for _, cases in design)


def said(found: Accepted, tried: Design, of: Design) -> Iterator[str]:
    """What a test says of what it left out."""
    if len(found.combinations) < found.of:
        yield (
            f"{len(found.combinations)} of {found.of} combinations of flags and optional inputs were tried"
        )
    if size(tried) < size(of):
        yield (
            f"{size(tried)} of {size(of)} cases were tried: the simplest with every combination of flags "
            "and optional inputs, and each case with every value of each of them"
        )


def _is_plain(kind: Case) -> bool:
    return kind == Case(hides=kind.hides)


def _cover(design: Design, numbers: Sequence[int], start: int) -> Iterator[int]:
    """Few of the combinations, in which each answer that occurs in any of them occurs."""
    start %= len(numbers)
    order = [*numbers[start:], *numbers[:start]]
    left = {answer for number in numbers for answer in design[number][0].items()}
    while left:
        best = max(order, key=lambda number: len(left.intersection(design[number][0].items())))
        left.difference_update(design[best][0].items())
        yield best
