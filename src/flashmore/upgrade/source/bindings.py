"""What a name may be bound to where it is used."""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.scopes import own_nodes

Binding = ast.AST


@dataclass(frozen=True)
class Unfollowed:
    """A binding that reaches a use on a way that the graph of values does not know, such as a `break`."""

    binding: Binding


State = dict[str, frozenset[Binding | Unfollowed]]


@dataclass(frozen=True, eq=False)
class Use:
    """A name that is read, deleted, captured by a nested scope, or declared global.

    Args:
        node: where.
        name: which.
        bindings: what it may see.
        unfollowed: those of them that it may see on a way that the graph of values does not know.
        tests: the tests that hold there, with their answers.
        how: "read", "deleted", "captured by a nested function" or "declared global".
    """

    node: ast.AST
    name: str
    bindings: frozenset[Binding]
    unfollowed: frozenset[Binding]
    tests: tuple[tuple[ast.expr, bool], ...]
    how: str = "read"


def of_scope(node: ast.AST) -> Iterable[ast.AST]:
    """What binds names of the scope that a statement stands in: no target of a comprehension does."""
    inside = list(own_nodes(node))
    targets = {
        id(name) for each in inside if isinstance(each, ast.comprehension) for name in ast.walk(each.target)
    }
    return (each for each in inside if id(each) not in targets)


def unfollowed(seen: Iterable[Binding | Unfollowed]) -> frozenset[Unfollowed]:
    """The same bindings, seen on a way that the graph of values does not know."""
    return frozenset(each if isinstance(each, Unfollowed) else Unfollowed(each) for each in seen)


def perhaps(state: State, inner: State) -> None:
    """Add what an expression binds that may be evaluated or not, which the graph of values does not tell."""
    step(len(inner))
    for name, seen in inner.items():
        if seen != state.get(name):
            state[name] = unfollowed(seen | state.get(name, frozenset()))


def merged(states: Sequence[State]) -> State:
    """What names may be bound to after any one of several ways."""
    names = {name for state in states for name in state}
    return {name: frozenset().union(*(state.get(name, frozenset()) for state in states)) for name in names}
