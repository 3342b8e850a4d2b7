"""A helper's lines in the place of its call, for attention that is spread over several functions."""

import ast
from collections.abc import Iterator
from itertools import pairwise

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.edits import edited
from flashmore.upgrade.emit.words import atom, fresh
from flashmore.upgrade.rewrite import has_long_string
from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Closure, Value
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.source.scopes import (
    SEE_LOCALS,
    Scope,
    arguments_of,
    claimed_by,
    defaults_of,
    is_private,
)
from flashmore.upgrade.text import Text, comments

_NOT_MOVED = (
    ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.ClassDef, ast.ExceptHandler, ast.alias,
    ast.Match, ast.JoinedStr, *Scope,
)  # fmt: skip
"""What binds names without a node of their own, has a scope, or cannot be edited in every Python."""
_AROUND = (ast.Call, ast.Attribute, ast.keyword, ast.Subscript, ast.Tuple, ast.BinOp)
"""What may stand around the call in its statement: it evaluates the call always, and once."""


def inlined(flow: Flow, text: Text, blocks: Blocks, made: Value, closure: Closure) -> Edit:
    """The edit that puts a function's lines in the place of a call.

    Args:
        flow: the function that calls.
        text: its source.
        blocks: where its statements stand.
        made: a value that the call makes.
        closure: the function that is called.

    Raises:
        Refuse: the lines may mean something else there.
    """
    call, statement, helper = made.node, made.statement, closure.node
    if not isinstance(call, ast.Call) or not isinstance(helper, ast.FunctionDef):
        raise Refuse("the helper is no function")
    if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.Return)) or statement.value is None:
        raise Refuse("the helper is called inside another statement")
    _check_callee(flow, call, closure)
    _check_place(statement.value, call, text)
    return _Inlining(flow, text, blocks, call, statement, helper).edit()


def separated(flow: Flow, text: Text, blocks: Blocks, statement: ast.stmt) -> Edit:
    """The edit that makes one assignment of several values several assignments.

    Raises:
        Refuse: the values are not written one by one, or a later one may depend on an earlier assignment.
    """
    match statement:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(
            targets
        ) == len(values) and all(isinstance(each, ast.Name) for each in targets):
            pass
        case _:
            raise Refuse("the statement assigns one value")
    start, end = text.whole_lines(statement)
    first, last = text.span(statement)
    indent, shared = text.indent(statement), _captured(flow)
    within = any(isinstance(each, (ast.Try, ast.TryStar)) for each in blocks.ancestors(statement))
    around = text.source[start:first].strip() or text.source[last:end].strip()
    if within or around or comments(text.of(statement)):
        raise Refuse("its line has something else, or an exception may be caught between the values")
    lines = []
    for index, (target, value) in enumerate(zip(targets, values, strict=True)):
        before = {each.id for each in targets[:index] if isinstance(each, ast.Name)}
        names = {each.id for each in walk(value) if isinstance(each, ast.Name)}
        if before & (names | shared) or any(
            isinstance(each, (ast.Starred, ast.NamedExpr)) for each in walk(value)
        ):
            raise Refuse("a value depends on another one that is assigned with it")
        lines.append(f"{indent}{text.of(target)} = {_flat(text.of(value))}{text.newline}")
    return Edit(start, end, "".join(lines))


class _Inlining:
    def __init__(
        self, flow: Flow, text: Text, blocks: Blocks, call: ast.Call,
        statement: ast.Assign | ast.AnnAssign | ast.Return, helper: ast.FunctionDef,
    ) -> None:  # fmt: skip
        self.flow = flow
        self.text = text
        self.blocks = blocks
        self.call = call
        self.statement = statement
        self.helper = helper
        noted = ast.get_docstring(helper) is not None
        self.body = helper.body[1:] if noted else helper.body
        outer = [each for one in (flow.function, *flow.enclosing) for each in walk(one)]
        self.bound = {name for each in outer for name in claimed_by(each)}
        self.mentioned = {each.id for each in outer if isinstance(each, ast.Name)} | self.bound
        self.shared = _captured(flow)
        inside = [each for one in self.body for each in walk(one)]
        self.stored = {name for each in inside for name in claimed_by(each)}
        self._check_body(inside)

    def _check_body(self, inside: list[ast.AST]) -> None:
        start, end = self.text.span(self.statement)
        first, last_line = self.text.whole_lines(self.statement)
        after = self.text.source[end:last_line].strip()
        if self.text.source[first:start].strip() or (after and not after.startswith("#")):
            raise Refuse("several statements share a line")
        if comments(self.text.of(self.call)):
            raise Refuse("the arguments have comments")
        stores = any(isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) for each in inside)
        if stores and self.statement.value is not self.call:
            raise Refuse("something else is evaluated before the helper is called")
        last = self.body[-1] if self.body else None
        if not isinstance(last, ast.Return) or last.value is None:
            raise Refuse("the helper may return nothing")
        returns = sum(isinstance(each, ast.Return) for each in inside)
        if returns > 1 and not (isinstance(self.statement, ast.Return) and self.statement.value is self.call):
            raise Refuse("the helper returns in several places")
        if any(isinstance(each, _NOT_MOVED) for each in inside) or has_long_string(self.body, self.text):
            raise Refuse("the helper has a scope of its own, or a multi-line string")
        parameters = {each.arg for each in arguments_of(self.helper.args)}
        names = {each.id for each in inside if isinstance(each, ast.Name)}
        attributes = {each.attr for each in inside if isinstance(each, ast.Attribute)}
        of_place = {*SEE_LOCALS, "super", "__class__", self.helper.name}
        if names & of_place or any(map(is_private, names | attributes)):
            raise Refuse("the helper depends on where it stands")
        if (names - parameters - self.stored) & self.bound:
            raise Refuse("a global name of the helper means something else in the function that calls it")
        if len(self.body) > 1 and self.body[0].lineno == self.helper.lineno:
            raise Refuse("several statements share a line")
        if any(after.lineno <= (one.end_lineno or 0) for one, after in pairwise(self.body)):
            raise Refuse("several statements share a line")

    def edit(self) -> Edit:
        """The statement that calls, after the helper's lines and those that set its parameters."""
        lines, names = self._parameters()
        for name in sorted(self.stored - names.keys()):
            if name in self._given() or not self._is_free(name):
                names[name] = fresh(name, self.mentioned | self.stored | {*names.values()})
        *before, last = self.body
        assert isinstance(last, ast.Return)
        assert last.value is not None
        indent, line = self.text.indent(self.statement), self.text.newline
        block = "".join(f"{indent}{each}{line}" for each in lines)
        if before:
            block += self._moved(before, names, indent)
        return Edit(*self.text.whole_lines(self.statement), block + self._last(last.value, names, block))

    def _last(self, returned: ast.expr, names: dict[str, str], block: str) -> str:
        """The statement that calls, with what the helper returns in the call's place."""
        result = _flat(self._renamed(*self.text.span(returned), names))
        (start, end), (first, after) = (
            self.text.whole_lines(self.statement),
            self.text.span(self.call),
        )
        source, line = self.text.source, self.text.newline
        if self.statement.value is not self.call:
            return f"{source[start:first]}{atom(result)}{source[after:end]}"
        match self.statement, returned:
            case ast.Assign(targets=[ast.Name(id=name)]), _ if block and name == result:
                return ""  # not `x = x`
            case ast.Assign(targets=[ast.Tuple(elts=targets)]), ast.Tuple(elts=elements) if len(
                targets
            ) == len(elements):
                live = [pair for pair in zip(targets, elements, strict=True) if not self._is_lost(*pair)]
                if len(live) == 1:
                    target, element = live[0]
                    text = _flat(self._renamed(*self.text.span(element), names))
                    return f"{self.text.indent(self.statement)}{self.text.of(target)} = {text}{line}"
        return f"{source[start:first]}{result}{source[after:end]}"

    def _is_lost(self, target: ast.expr, element: ast.expr) -> bool:
        """Whether nobody reads a name that the call's statement sets to another one."""
        around = [*self.blocks.ancestors(self.statement)][1:]
        later = self.text.span(self.statement)[1]
        return (
            isinstance(target, ast.Name)
            and isinstance(element, ast.Name)
            and target.id not in self.shared
            and not any(isinstance(each, (ast.For, ast.AsyncFor, ast.While)) for each in around)
            and not any(
                isinstance(each, ast.Name)
                and each.id == target.id
                and not isinstance(each.ctx, ast.Store)
                and self.text.span(each)[0] >= later
                for each in walk(self.flow.function)
            )
        )

    def _parameters(self) -> tuple[list[str], dict[str, str]]:
        """The assignments to parameters that need one, and what stands for each of the others."""
        spec = self.helper.args
        positional = [each.arg for each in (*spec.posonlyargs, *spec.args)]
        names: dict[str, str] = {}
        if isinstance(self.call.func, ast.Attribute) and not _is_static(self.helper):
            names[positional.pop(0)] = "self"
        given = dict(zip(positional, self.call.args, strict=False))
        given |= {each.arg: each.value for each in self.call.keywords if each.arg is not None}
        defaults = {name: node for name, node in defaults_of(spec).items() if name not in given}
        lines = []
        for name, node in (*given.items(), *defaults.items()):
            text = _flat(self.text.of(node))
            if (
                name not in self.stored
                and isinstance(node, ast.Constant)
                and type(node.value) in (int, float)
            ):
                names[name] = text
            elif name in defaults and not isinstance(node, ast.Constant):
                raise Refuse("the default of a parameter is no constant")
            elif isinstance(node, ast.Name) and self._stands_for(node, name):
                names[name] = node.id
            else:
                free = name not in self._given() and self._is_free(name)
                names[name] = name if free else fresh(name, self.mentioned | self.stored | {*names.values()})
                lines.append(f"{names[name]} = {text}")
        return lines, names

    def _stands_for(self, node: ast.Name, parameter: str) -> bool:
        """Whether a name of the caller may stand for a parameter, which the helper may give another value."""
        if node.id not in self.bound or node.id in self.shared:
            return False
        once = self._given().count(node.id) == 1
        return parameter not in self.stored or (once and not self._is_live(node.id))

    def _given(self) -> list[str]:
        """The names that the arguments mention."""
        arguments = (*self.call.args, *(each.value for each in self.call.keywords))
        return [each.id for one in arguments for each in walk(one) if isinstance(each, ast.Name)]

    def _is_free(self, name: str) -> bool:
        """Whether the function that calls may have another value under a name from here on."""
        return name not in self.mentioned or (name in self.bound and not self._is_live(name))

    def _is_live(self, name: str) -> bool:
        """Whether the function that calls may read a name after the call, or in its statement."""
        if name in self.shared:
            return True
        inside = {id(each) for each in walk(self.call)}
        reads = [each for each in walk(self.flow.function) if isinstance(each, ast.Name) and each.id == name]
        here = {id(each) for each in walk(self.statement)} - inside
        around = [*self.blocks.ancestors(self.statement)][1:]
        reads = [each for each in reads if not isinstance(each.ctx, ast.Store) and id(each) not in inside]
        if any(isinstance(each, (ast.Try, ast.TryStar)) for each in around):
            return bool(reads)
        if any(id(each) in here for each in reads):
            return True
        if isinstance(self.statement, ast.Return) or name in self._targets():
            return False
        looped = any(isinstance(each, (ast.For, ast.AsyncFor, ast.While)) for each in around)
        end = self.text.span(self.statement)[1]
        return any(looped or self.text.span(each)[0] >= end for each in reads)

    def _targets(self) -> set[str]:
        """The names that the statement sets, whatever they were before."""
        match self.statement:
            case ast.Assign(targets=targets):
                parts = [part for each in targets for part in getattr(each, "elts", [each])]
                return {each.id for each in parts if isinstance(each, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                return {name}
        return set()

    def _moved(self, statements: list[ast.stmt], names: dict[str, str], indent: str) -> str:
        """The helper's lines, as deep as the call."""
        start, end = self.text.whole_lines(statements[0])[0], self.text.whole_lines(statements[-1])[1]
        own = self.text.indent(statements[0])
        result = []
        for each in Text(self._renamed(start, end, names)).lines:
            if each.strip() and not each.startswith(own) and not each.lstrip().startswith("#"):
                raise Refuse("a line of the helper is indented less than its first one")
            result.append(indent + each.removeprefix(own) if each.strip() else each)
        return "".join(result)

    def _renamed(self, start: int, end: int, names: dict[str, str]) -> str:
        """A span of the helper with other names."""
        changes = [
            Edit(at - start, to - start, names[each.id])
            for one in self.body
            for each in walk(one)
            if isinstance(each, ast.Name) and names.get(each.id, each.id) != each.id
            for at, to in (self.text.span(each),)
            if start <= at and to <= end
        ]
        return edited(self.text.source[start:end], changes)


def _check_callee(flow: Flow, call: ast.Call, closure: Closure) -> None:
    """Refuse a call that may be one of another function, or give it other arguments than are written."""
    helper, module = closure.node, flow.own
    assert isinstance(helper, ast.FunctionDef)
    by = [each for each in helper.decorator_list if getattr(each, "id", "") != "staticmethod"]
    if closure.module is not module or closure.given or closure.names or by:
        raise Refuse("the helper is decorated, or not of this file")
    if any(isinstance(each, ast.Starred) for each in call.args) or any(e.arg is None for e in call.keywords):
        raise Refuse("the helper is given an unknown number of arguments")
    match call.func:
        case ast.Name(id=name) if module.functions.get(name) is helper and closure.bound is None:
            return
        case ast.Attribute(value=ast.Name(id="self"), attr=name) if flow.owner is not None:
            first = next((each.arg for each in (*helper.args.posonlyargs, *helper.args.args)), "")
            replaced = module.is_replaced(name) or flow.owner.replaces(name, module)
            of = {each for one in (flow.owner, *flow.owner.below(module)) for each in one.lineage()}
            stored = any(name in each.own_assignments for each in of)
            several = sum(name in each.own_methods for each in of) > 1
            unordered = several and any(len(each.bases) > 1 for each in of)
            names = (
                each for one in (flow.function, helper) for each in walk(one) if isinstance(each, ast.Name)
            )
            rebound = any(each.id == "self" and not isinstance(each.ctx, ast.Load) for each in names)
            if not (replaced or stored or unordered or rebound) and (_is_static(helper) or first == "self"):
                return
    raise Refuse("the helper may be another function")


def _check_place(whole: ast.expr, call: ast.Call, text: Text) -> None:
    """Refuse a statement that evaluates something before the call, which its lines would follow then."""
    start, end = text.span(call)
    inside = {id(each) for each in walk(call)}
    for node in walk(whole):
        if id(node) in inside or not hasattr(node, "lineno"):
            continue
        first, last = text.span(node)
        if first <= start and end <= last:
            if not isinstance(node, _AROUND):
                raise Refuse("the helper is called under a condition, or several times")
        elif first < end and not (isinstance(node, (ast.Name, ast.Constant)) or _is_callee(whole, node)):
            raise Refuse("something else is evaluated before the helper is called")
    if any(isinstance(each, ast.NamedExpr) for each in walk(whole)):
        raise Refuse("the statement assigns another name")


def _is_callee(whole: ast.expr, node: ast.AST) -> bool:
    """Whether an attribute is what a call calls, as `self.out` in `self.out(…)`."""
    calls = (each for each in walk(whole) if isinstance(each, ast.Call))
    return isinstance(node, ast.Attribute) and any(each.func is node for each in calls)


def _captured(flow: Flow) -> set[str]:
    """The names that nested functions, classes and generators mention, which may read them at any time."""
    own = (flow.function, *flow.enclosing)
    scopes = (
        each
        for one in own
        for each in walk(one)
        if isinstance(each, (*Scope, ast.ClassDef, ast.GeneratorExp, ast.Global, ast.Nonlocal))
        and each not in own
    )
    return {
        name
        for scope in scopes
        for each in walk(scope)
        for name in ([each.id] if isinstance(each, ast.Name) else claimed_by(each))
    } | {each.id for one in flow.enclosing for each in walk(one) if isinstance(each, ast.Name)}


def _is_static(helper: ast.FunctionDef) -> bool:
    return any(getattr(each, "id", "") == "staticmethod" for each in helper.decorator_list)


def _flat(text: str) -> str:
    """An expression in one line."""
    if "\n" not in text and "\r" not in text:
        return text
    return ast.unparse(ast.parse(f"({text})", mode="eval"))


def helpers(flow: Flow, chain: set[Value]) -> Iterator[tuple[Value, Closure]]:
    """The calls of helpers that make values of an attention, in the order of the lines."""
    closures = {id(node): closure for node, closure in reversed(flow.inlined)}
    found = {id(each.node): each for each in chain if each.inner and id(each.node) in closures}
    for value in sorted(found.values(), key=lambda each: (each.node.lineno, each.node.col_offset)):  # type: ignore[union-attr]
        yield value, closures[id(value.node)]
