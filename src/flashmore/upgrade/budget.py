"""How much work the search may do, in steps: unlike seconds, they are the same on every machine.

Whatever walks values, chains or names counts its steps. Where several ways lead to the same value, what is
known of it is kept; the budget is for what is left, such as helpers that call each other many times over.
"""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

FUNCTION_STEPS = 500_000
"""Of one function: one to two seconds.

Of 739 functions that multiply, in torch, einops, the standard library and this package, a code generator
needs most: 150,000. Of those that are part of a model, quantizable multi-head attention does: 35,000.
"""
FILE_STEPS = 1_000_000
"""Of all functions of a file; the most in the same files is 160,000."""


DEFECTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What a defect of the search may raise."""


class Exceeded(Exception):
    """More steps than the budget has; the message says what the budget was."""


class Budget:
    """Steps that are left."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.left = steps


_current: ContextVar[Budget | None] = ContextVar("budget", default=None)


def step(count: int = 1) -> None:
    """Count steps of the search that is under way, if any is.

    Raises:
        Exceeded: there are none left.
    """
    budget = _current.get()
    if budget is None:
        return
    budget.left -= count
    if budget.left < 0:
        raise Exceeded(f"the search budget of {budget.steps:,} steps was exceeded")


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk`, each node a step."""
    for node in ast.walk(tree):
        step()
        yield node


@contextmanager
def limited(file: Budget, steps: int = FUNCTION_STEPS) -> Iterator[Budget]:
    """Count the steps of one function, against its own budget and what is left of its file's.

    Args:
        file: what all functions of a file may take together.
        steps: what this one may take.
    """
    own = Budget(steps)
    own.left = min(steps, max(file.left, 0))
    if own.left < steps:
        own.steps = file.steps
    given, token = own.left, _current.set(own)
    try:
        yield own
    finally:
        _current.reset(token)
        file.left -= given - own.left


@contextmanager
def unlimited() -> Iterator[None]:
    """Count no steps."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
