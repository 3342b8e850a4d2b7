"""A helper's lines in the place of its call, for attention that is spread over several functions."""

import ast
from collections.abc import Iterator

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.checks.inlinable import (
    Caller,
    check_callee,
    check_lines,
    check_names,
    check_place,
    source_of,
)
from flashmore.upgrade.edits import edited
from flashmore.upgrade.emit.words import atom, fresh
from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Closure, Value
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.source.scopes import Scope, claimed_by, defaults_of, is_static
from flashmore.upgrade.text import Text, comments


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
    if not isinstance(statement, Caller) or statement.value is None:
        raise Refuse("the helper is called inside another statement")
    check_callee(flow, call, closure)
    check_place(statement.value, call, text)
    source = text if closure.module is flow.own else source_of(closure, flow.own, text)
    return _Inlining(flow, text, blocks, call, statement, helper, source).edit()


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
        self, flow: Flow, text: Text, blocks: Blocks, call: ast.Call, statement: Caller,
        helper: ast.FunctionDef, source: Text,
    ) -> None:  # fmt: skip
        self.flow = flow
        self.source = source
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
        self.stored = {name for one in self.body for each in walk(one) for name in claimed_by(each)}
        check_lines(self.body, helper, call, statement, text, source)
        check_names(self.body, helper, self.bound)

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
        result = _flat(self._renamed(*self.source.span(returned), names))
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
                    text = _flat(self._renamed(*self.source.span(element), names))
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
        if isinstance(self.call.func, ast.Attribute) and not is_static(self.helper):
            names[positional.pop(0)] = "self"
        given = dict(zip(positional, self.call.args, strict=False))
        given |= {each.arg: each.value for each in self.call.keywords if each.arg is not None}
        defaults = {name: node for name, node in defaults_of(spec).items() if name not in given}
        lines = []
        for name, node in (*given.items(), *defaults.items()):
            text = _flat((self.text if name in given else self.source).of(node))
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
        looped = any(isinstance(each, (ast.For, ast.AsyncFor, ast.While)) for each in around)
        reads = [each for each in reads if not isinstance(each.ctx, ast.Store)]
        if not looped:  # in a loop the call reads its own arguments again
            reads = [each for each in reads if id(each) not in inside]
        if any(isinstance(each, (ast.Try, ast.TryStar)) for each in around):
            return bool(reads)
        if any(id(each) in here for each in reads):
            return True
        if isinstance(self.statement, ast.Return) or name in self._targets():
            return False
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
        start, end = self.source.whole_lines(statements[0])[0], self.source.whole_lines(statements[-1])[1]
        own = self.source.indent(statements[0])
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
            for at, to in (self.source.span(each),)
            if start <= at and to <= end
        ]
        return edited(self.source.source[start:end], changes)


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
