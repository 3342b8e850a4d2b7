"""The syntax of a chain: which expression is which operand, and where statements stand."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Condition, Value
from flashmore.upgrade.source.scopes import Function, is_self


def children(node: ast.AST) -> list[ast.expr]:
    """The operands of an operation, in order."""
    match node:
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.AugAssign(target=target, value=value):
            return [target, value]
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.Compare(left=left, comparators=others):
            return [left, *others]
        case ast.Attribute(value=value):
            return [value]
        case ast.Subscript(value=value, slice=index):
            return [value, index]
        case ast.Call(func=func, args=args, keywords=keywords):
            first = [func.value] if isinstance(func, ast.Attribute) else []
            spread = [
                each
                for arg in args
                for each in (arg.elts if isinstance(arg, (ast.Tuple, ast.List)) else [arg])
            ]
            return [*first, *spread, *(each.value for each in keywords)]
    return []


def operand(flow: Flow, node: ast.AST | None, value: Value) -> ast.expr | None:
    """The expression of an operation whose value is given."""
    step()
    if node is None:
        return None
    direct = next((each for each in children(node) if flow.seen.get(each) is value), None)
    if direct is not None or not isinstance(node, ast.BinOp):
        return direct
    deeper = (each for child in (node.left, node.right) for each in children(child))
    return next((each for each in deeper if flow.seen.get(each) is value), None)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a statement stands: the block, its index there, and the statement that the block belongs to."""

    block: list[ast.stmt]
    index: int
    parent: ast.stmt | Function


class Blocks:
    """The blocks of a function."""

    def __init__(self, function: Function) -> None:
        self.places: dict[ast.stmt, Place] = {}
        self._see(function)

    def _see(self, parent: ast.stmt | Function) -> None:
        for block in blocks_of(parent):
            for index, statement in enumerate(block):
                self.places[statement] = Place(block, index, parent)
                if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    self._see(statement)

    def ancestors(self, statement: ast.stmt) -> Iterator[ast.stmt]:
        """A statement and those that it stands in, from the inside."""
        current: ast.AST = statement
        while isinstance(current, ast.stmt) and current in self.places:
            yield current
            current = self.places[current].parent

    def handler_of(self, statement: ast.stmt) -> ast.ExceptHandler | None:
        """What catches an exception in a statement; None where nothing does."""
        for place in (self.places[each] for each in self.ancestors(statement)):
            match place.parent:
                case ast.Try(handlers=[first, *_]) | ast.TryStar(handlers=[first, *_]) as tried:
                    if place.block is tried.body:
                        return first
        return None

    def common(self, statements: list[ast.stmt]) -> tuple[list[ast.stmt], int, int] | None:
        """The innermost block in which all statements stand, and the first and last place in it."""
        for candidate in self.ancestors(statements[0]):
            block = self.places[candidate].block
            inside = [
                next((each for each in self.ancestors(s) if self.places[each].block is block), None)
                for s in statements
            ]
            if all(each is not None for each in inside):
                places = [self.places[each].index for each in inside if each is not None]
                return block, min(places), max(places)
        return None


def blocks_of(parent: ast.AST) -> Iterator[list[ast.stmt]]:
    """The blocks of a statement or a function, in order."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(parent, "handlers", []):
        yield handler.body
    for case in getattr(parent, "cases", []):
        yield case.body


class Stability:
    """Whether an expression still means the same at a later statement.

    Args:
        flow: the function.
        decided: the tests whose answer is known there.
    """

    def __init__(self, flow: Flow, decided: Mapping[ast.expr, bool] | None = None) -> None:
        self.flow = flow
        self.decided = decided or {}

    def holds(self, node: ast.expr, at: ast.stmt, condition: Condition | None = None) -> bool:
        """Whether every name in an expression has the same value there.

        Args:
            node: the expression.
            at: the statement where it would be read again.
            condition: a test that holds (or not) there as well: a name that was set under it counts as the
                same.
        """
        env = self.flow.before.get(at, {})
        for each in walk(node):
            if isinstance(each, (ast.Lambda, ast.NamedExpr, ast.Await, ast.ListComp, ast.GeneratorExp)):
                return False
            if isinstance(each, ast.Name) and not self._same(each, env, condition):
                return False
            if isinstance(each, ast.Attribute) and is_self(each.value):
                path = f"self.{each.attr}"
                if path in self.flow.stored and env.get(path) is not self.flow.seen.get(each):
                    return False
        return True

    def _same(self, name: ast.Name, env: dict[str, Value], condition: Condition | None) -> bool:
        then, now = self.flow.seen.get(name), env.get(name.id)
        while now is not None and now.op == "phi" and isinstance(now.detail, Condition):
            if (test := now.detail.node) is None or test not in self.decided:
                break
            now = now.args[0 if self.decided[test] == now.detail.holds else 1]
        if then is None:
            return now is None
        if now is None and (then.op in ("global", "closure", "partial") or then in self.flow.literals):
            return True
        if now is then:
            return True
        if now is None or condition is None or now.op != "phi" or not isinstance(now.detail, Condition):
            return False
        if now.detail.node is None or now.detail.node is not condition.node:
            return False
        return now.args[0 if now.detail.holds == condition.holds else 1] is then
