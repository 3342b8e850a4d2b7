"""A helper whose lines mean the same in the place of its call."""

import ast
import builtins
from itertools import pairwise

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.project.files import Unreadable, content, decoded
from flashmore.upgrade.rewrite import has_long_string, require_own_lines
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Closure
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import SEE_LOCALS, Scope, arguments_of, claimed_by, is_private, is_static
from flashmore.upgrade.text import Text, comments

_NOT_MOVED = (
    ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.ClassDef, ast.ExceptHandler, ast.alias,
    ast.Match, ast.JoinedStr, *Scope,
)  # fmt: skip
"""What binds names without a node of their own, has a scope, or cannot be edited in every Python."""
_AROUND = (ast.Call, ast.Attribute, ast.keyword, ast.Subscript, ast.Tuple, ast.BinOp)
"""What may stand around the call in its statement: it evaluates the call always, and once."""
Caller = ast.Assign | ast.AnnAssign | ast.Return
"""The statement that calls."""


def check_callee(flow: Flow, call: ast.Call, closure: Closure) -> None:
    """Refuse a call that may be one of another function, or give it other arguments than are written."""
    helper, module = closure.node, flow.own
    assert isinstance(helper, ast.FunctionDef)
    by = [each for each in helper.decorator_list if getattr(each, "id", "") != "staticmethod"]
    method = closure.bound is not None or is_static(helper)
    if not (closure.module is module or method) or closure.given or closure.names or by:
        raise Refuse("the helper is decorated, or a function of another file")
    if any(isinstance(each, ast.Starred) for each in call.args) or any(e.arg is None for e in call.keywords):
        raise Refuse("the helper is given an unknown number of arguments")
    match call.func:
        case ast.Name(id=name) if module.functions.get(name) is helper and closure.bound is None:
            return
        case ast.Attribute(value=ast.Name(id="self"), attr=name) if flow.owner is not None:
            first = next((each.arg for each in (*helper.args.posonlyargs, *helper.args.args)), "")
            replaced = module.is_replaced(name) or flow.owner.replaces(name, module)
            replaced |= closure.module.is_replaced(name)
            of = {each for one in (flow.owner, *flow.owner.below(module)) for each in one.lineage()}
            stored = any(name in each.own_assignments for each in of)
            several = sum(name in each.own_methods for each in of) > 1
            unordered = several and any(len(each.bases) > 1 for each in of)
            names = (
                each for one in (flow.function, helper) for each in walk(one) if isinstance(each, ast.Name)
            )
            rebound = any(each.id == "self" and not isinstance(each.ctx, ast.Load) for each in names)
            if not (replaced or stored or unordered or rebound) and (is_static(helper) or first == "self"):
                return
    raise Refuse("the helper may be another function")


def source_of(closure: Closure, own: Module, text: Text) -> Text:
    """The source of a helper of another file.

    Raises:
        Refuse: a name means something else there, or the file has other line ends.
    """
    home, helper = closure.module, closure.node
    assert isinstance(helper, ast.FunctionDef)
    inside = [each for one in helper.body for each in walk(one)]
    if home.path is None or own.elsewhere is None:
        raise Refuse("the helper has no file")
    beside = home.path.parent == own.elsewhere.path.parent
    names = {each.id for each in inside if isinstance(each, ast.Name)}
    own_names = {each.arg for each in arguments_of(helper.args)}
    own_names |= {name for each in inside for name in claimed_by(each)}
    for name in names - own_names:
        meanings = home.meanings.get(name, set())
        full = next(iter(meanings), "builtins" if hasattr(builtins, name) else "")
        known = full and len(meanings) < 2 and (beside or not full.startswith("."))
        if not known or meanings != own.meanings.get(name, set()):
            raise Refuse("a name of the helper may mean something else in another file")
    try:
        source = Text(decoded(content(home.path))[0])
    except Unreadable as unreadable:
        raise Refuse("the helper's file cannot be read") from unreadable
    if source.newline != text.newline:
        raise Refuse("the helper's file has other line ends")
    return source


def check_place(whole: ast.expr, call: ast.Call, text: Text) -> None:
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


def check_lines(
    body: list[ast.stmt], helper: ast.FunctionDef, call: ast.Call, caller: Caller, text: Text, source: Text
) -> None:
    """Refuse lines that cannot stand where the call stands.

    Args:
        body: the helper's lines, without its docstring.
        helper: what is called.
        call: the call.
        caller: the statement that calls.
        text: the source of the call.
        source: the source of the helper.
    """
    require_own_lines(caller, text)
    if comments(text.of(call)):
        raise Refuse("the arguments have comments")
    inside = [each for one in body for each in walk(one)]
    stores = any(isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) for each in inside)
    if stores and caller.value is not call:
        raise Refuse("something else is evaluated before the helper is called")
    last = body[-1] if body else None
    if not isinstance(last, ast.Return) or last.value is None:
        raise Refuse("the helper may return nothing")
    returns = sum(isinstance(each, ast.Return) for each in inside)
    if returns > 1 and not (isinstance(caller, ast.Return) and caller.value is call):
        raise Refuse("the helper returns in several places")
    if any(isinstance(each, _NOT_MOVED) for each in inside) or has_long_string(body, source):
        raise Refuse("the helper has a scope of its own, or a multi-line string")
    shared = len(body) > 1 and body[0].lineno == helper.lineno
    if shared or any(after.lineno <= (one.end_lineno or 0) for one, after in pairwise(body)):
        raise Refuse("several statements share a line")


def check_names(body: list[ast.stmt], helper: ast.FunctionDef, bound: set[str]) -> None:
    """Refuse lines whose names mean something else where the call stands.

    Args:
        body: the helper's lines, without its docstring.
        helper: what is called.
        bound: the names that the function which calls binds, and those around it.
    """
    inside = [each for one in body for each in walk(one)]
    own = {each.arg for each in arguments_of(helper.args)} | {name for e in inside for name in claimed_by(e)}
    names = {each.id for each in inside if isinstance(each, ast.Name)}
    attributes = {each.attr for each in inside if isinstance(each, ast.Attribute)}
    of_place = {*SEE_LOCALS, "super", "__class__", helper.name}
    if names & of_place or any(map(is_private, names | attributes)):
        raise Refuse("the helper depends on where it stands")
    if (names - own) & bound:
        raise Refuse("a global name of the helper means something else in the function that calls it")
