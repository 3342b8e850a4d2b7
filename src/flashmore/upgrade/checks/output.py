"""What becomes of an attention's output, in its function and in the callers that stand in the same file.

The old product was a new, contiguous tensor. The fused call's output is kept for the gradients, so it is
copied where it is changed in place. Its memory may be laid out in another order, which `view` and `stride`
can tell.
"""

import ast
import builtins
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise

from flashmore.upgrade.budget import step
from flashmore.upgrade.checks.callees import callee
from flashmore.upgrade.checks.functions import makes_inplace
from flashmore.upgrade.checks.pure import is_inplace_name
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.source.attributes import Attribute
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.functions import functions
from flashmore.upgrade.source.graph import Closure, Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.operations import KEEPS_LAYOUT, MAY_SHARE_MEMORY, MOVES, READS_LAYOUT
from flashmore.upgrade.source.scopes import Function, arguments_of, last
from flashmore.upgrade.text import Text

_CONTAINERS = {"tuple", "opaque"}
_PASSED_ON = _CONTAINERS | {"phi", "loop", "carried", "item", "index", "element", "star", "identity"}
ASKS_GRADIENTS = {"register_hook", "retain_grad"}
_UNSEEN = {"attr:data", "numpy", "asarray"}
"""What shares a tensor's memory and not the count of its changes."""
_CALLERS = 20
"""So many functions of a file are read as callers."""


def reshaped_views(found: Attention, text: Text, guarded: bool) -> set[int] | None:
    """Where `.view` must become `.reshape`, since it would fail for the fused call's output.

    Returns:
        The end of each such `view`. None where that is not enough: the output must be made contiguous.
    """
    ends = {
        _end_of_view(user, text) if flow is found.flow and not user.inner else None
        for flow, user, _, layout in _uses(found.flow, found.final)
        if layout and _reads_layout(user, found.flow.module)
    }
    if (guarded and ends) or None in ends:
        return None
    return {end for end in ends if end is not None}


def _end_of_view(user: Value, text: Text) -> int | None:
    """Where the name ends in `x.view(sizes)`; None for what no `reshape` can take the place of."""
    node = user.node
    if user.op != "view" or not isinstance(node, ast.Call) or user.named:
        return None
    if len(node.args) == 1 and user.args[1].op in ("param", "global", "selfattr", "attr:dtype", "call"):
        return None  # it may be a dtype
    end = text.span(node.func)[1]
    return end if isinstance(node.func, ast.Attribute) and text.source[end - 4 : end] == "view" else None


def viewed_after_a_move(flow: Flow, value: Value) -> int | None:
    """The line in which a value is viewed with its dimensions moved, so that it was not contiguous."""
    moved = [(where, user) for where, user, _, layout in _uses(flow, value) if layout and user.op in MOVES]
    lines = (layout_told(where, each) for where, each in moved)
    return next((line for line in lines if line is not None), None)


def layout_told(flow: Flow, value: Value) -> int | None:
    """The line in which something reads how a value is laid out in memory."""
    lines = (
        getattr(user.node, "lineno", 0)
        for where, user, _, layout in _uses(flow, value)
        if layout and _reads_layout(user, where.module)
    )
    return next(lines, None)


def changed_later(flow: Flow, value: Value) -> str | None:
    """The attribute or global variable whose memory a value shares, if a function changes it in place."""
    while value.op in MAY_SHARE_MEMORY and value.args:
        value = value.args[0]
    name = value.detail.name if isinstance(value.detail, Attribute) else str(value.detail)
    known = value.op in ("selfattr", "global") and name in _changed_in_functions(flow.module)
    return name if known else None


def is_changed_in_place(found: Attention) -> bool:
    """Whether the output is changed in place later."""
    return changed_in_place(found.flow, found.final) is not None or _feeds_inplace(found.flow)


def changed_in_place(flow: Flow, value: Value) -> int | None:
    """The line in which a value's memory is changed, in its function or in the callers of the file.

    Args:
        flow: the function.
        value: the value; an argument stands for what the callers give.
    """
    given = [(flow, value)]
    whole = value
    while whole.op in MAY_SHARE_MEMORY and whole.args:
        whole = whole.args[0]
    if whole.op == "param":
        given += [
            (caller, caller.seen[argument])
            for caller in callers(flow)
            for call in calls_of(caller, flow)
            for argument in call.args
            if argument in caller.seen
        ]
    return next((line for start, each in given for line in _changes(start, each)), None)


def _changes(flow: Flow, value: Value) -> Iterator[int]:
    """The lines in which a value's memory is changed."""
    for _, user, shares, _ in _uses(flow, value):
        made = user.inplace or "out" in user.named or _is_inplace_layer(user) or _is_changed(user, flow)
        if shares and made:
            yield getattr(user.node, "lineno", 0)


def changed_unseen(flow: Flow, value: Value) -> Iterator[int]:
    """The lines of a function in which a value's memory is changed so that autograd does not notice."""
    for where, user, shares, _ in _uses(flow, value):
        if where is flow and shares and user.op in _UNSEEN:
            yield from _changes(flow, user)


def _is_changed(user: Value, flow: Flow) -> bool:
    """Whether a function with such a name changes it, or some method the attribute that it is stored in."""
    if user.op == "call" and isinstance(user.node, ast.Call):
        return is_inplace_name(last(user.node.func))
    return user.op == "store" and user.detail in _changed_attributes(flow.module)


@lru_cache(maxsize=1)  # of the file that is searched, not once for each of its places
def _changed_attributes(module: Module) -> set[str]:
    """The attributes whose memory is changed somewhere in a file."""
    return _changed(ast.walk(module.tree))


@lru_cache(maxsize=1)
def _changed_in_functions(module: Module) -> set[str]:
    """The attributes and variables whose memory a function changes, constructors aside."""
    all_functions = (each for each in ast.walk(module.tree) if isinstance(each, Function))
    return _changed(node for each in all_functions if each.name != "__init__" for node in ast.walk(each))


def _changed(nodes: Iterable[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        match node:
            case (
                ast.AugAssign(target=ast.Attribute(attr=name))
                | ast.Subscript(value=ast.Attribute(attr=name), ctx=ast.Store())
            ):
                found.add(name)
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()):
                found.add(name)
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr=name) | ast.Name(id=name), attr=method)
            ):
                found |= {name} if is_inplace_name(method) else set()
    return found


def _uses(flow: Flow, value: Value) -> Iterator[tuple[Flow, Value, bool, bool]]:
    """What is done with what shares a value's memory, or is laid out like it; and which of both."""
    ahead = [(flow, value, True, True)]
    seen: set[tuple[int, bool, bool]] = set()
    read: set[Function] = {flow.function}
    while ahead:
        flow, value, shares, layout = ahead.pop()
        if (id(value), shares, layout) in seen:
            continue
        seen.add((id(value), shares, layout))
        step()
        for user in value.users:
            if user.op == "return":
                for caller in (each for each in callers(flow) if each.function not in read):
                    read.add(caller.function)
                    ahead += [(caller, each, shares, layout) for each in _results(caller, flow)]
                continue
            given = user.args[1:] if user.op == "call" else user.args  # the callee comes first
            first = user.named["out"] is value if "out" in user.named else bool(given) and given[0] is value
            stored = value.op in _CONTAINERS and user.op in ("setitem", "add")
            yield flow, user, shares and first and not stored, layout
            goes_on = shares and user.op in MAY_SHARE_MEMORY | _PASSED_ON and (first or user.op in _PASSED_ON)
            same = layout and user.op in KEEPS_LAYOUT | _PASSED_ON
            if shares and user.op == "append" and not first:
                ahead.append((flow, user.args[0], True, False))  # the list
            if goes_on or same:
                ahead.append((flow, user, goes_on, same))


def _reads_layout(user: Value, module: Module) -> bool:
    if user.op.removeprefix("attr:") in READS_LAYOUT:
        return True
    if user.op not in ("call", "apply") or not user.args:
        return False
    called = user.args[0]
    function = module.functions.get(str(called.detail)) if called.op == "global" else None
    if isinstance(called.detail, Closure):
        function = called.detail.node if isinstance(called.detail.node, Function) else None
    if function is not None:
        return any(_layouts_in(function))
    found = callee(user, module)
    if found is None:
        return False
    given = {each.arg for each in arguments_of(found.function.args)} - {"self"}
    inside = (each for one in _layouts_in(found.function) for each in ast.walk(one))
    return any(isinstance(each, ast.Name) and each.id in given for each in inside)


def _layouts_in(node: ast.AST) -> Iterator[ast.Attribute]:
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and each.attr in READS_LAYOUT:
            yield each


def callers(flow: Flow) -> list[Flow]:
    """The functions of the file that may call one, and look at how a tensor is laid out or change it."""
    return [each for each in _flows(flow.module) if calls_of(each, flow)][:_CALLERS]


def _results(caller: Flow, flow: Flow) -> Iterator[Value]:
    for call in calls_of(caller, flow):
        value = caller.seen[call]
        yield from value.args if value.op == "tuple" else (value,)


def calls_of(caller: Flow, flow: Flow) -> list[ast.Call]:
    """What may be calls of one function in another."""
    return [each for each in caller.seen if isinstance(each, ast.Call) and _is_call(each, caller, flow)]


def _is_call(call: ast.Call, caller: Flow, flow: Flow) -> bool:
    """Whether a call of one function may be a call of another."""
    name, func, module = flow.function.name, call.func, flow.module
    called = last(func)
    if called == name:
        return isinstance(func, ast.Attribute) or flow.owner is None
    callee = caller.seen.get(func)
    known = called in module.meanings or called in dir(builtins)
    made = callee is not None and callee.op == "call"
    if not (isinstance(func, ast.Attribute) or known or made):  # it may be any function or layer
        return name in ("forward", "__call__") or name in _passed_on(module)
    if isinstance(func, ast.Attribute) and name in _passed_on(module) and _may_hold(func.attr, name, module):
        return True
    if name not in ("forward", "__call__") or flow.owner is None:
        return False
    classes = {each.node.name for each in (flow.owner, *flow.owner.below(module))}
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "self":
        return caller.owner is not None and _may_be_made_of(func.attr, caller.owner, classes)
    return (
        callee is not None and callee.op == "call" and str(callee.detail or callee.args[0].detail) in classes
    )


def _may_be_made_of(name: str, owner: Class, classes: set[str]) -> bool:
    """Whether `self.x` may be an object of some classes, or a container of one."""
    if owner.method(name) is not None:
        return False
    made = owner.assignments(name)
    mentioned = {part.id for each in made for part in ast.walk(each) if isinstance(part, ast.Name)}
    others = bool(made) and all(isinstance(each, (ast.Call, ast.Constant)) for each in made)
    return bool(classes & mentioned) or not others


def _may_hold(attribute: str, name: str, module: Module) -> bool:
    """Whether an attribute may be the function with this name: no call returns it that is not given it."""
    return any(
        not isinstance(value, (ast.Call, ast.Constant)) or any(last(part) == name for part in ast.walk(value))
        for value in _stored(module).get(attribute, ())
    )


@lru_cache(maxsize=1)
def _stored(module: Module) -> dict[str, list[ast.expr]]:
    """What names and attributes are set to."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found.setdefault(last(target), []).append(node.value)
    return found


@lru_cache(maxsize=1)
def _passed_on(module: Module) -> set[str]:
    """What is mentioned without being called, such as a function that is an argument."""
    nodes = list(ast.walk(module.tree))
    called = {id(each.func) for each in nodes if isinstance(each, ast.Call)}
    names = (each for each in nodes if isinstance(each, (ast.Name, ast.Attribute)))
    return {each.id if isinstance(each, ast.Name) else each.attr for each in names if id(each) not in called}


@lru_cache(maxsize=1)  # of the file that is searched, not once for each of its places
def _flows(module: Module) -> list[Flow]:
    """The functions that may tell a layout or work in place, and the module's own lines as one of them."""
    found = [Flow(module, each.owner, each.node, each.enclosing) for each in functions(module.tree, module)]
    names = {
        name
        for each in module.classes.values()
        for name, made in each.own_assignments.items()
        if any(isinstance(one, ast.Call) and makes_inplace(one) for one in made)
    }
    count = -1
    while count < len(names):  # those that call one of them, too
        count = len(names)
        names |= {each.function.name for each in found if _may_matter(each.function, names)}
    return [each.run() for each in found if _may_matter(each.function, names)]


def _may_matter(function: Function, names: set[str]) -> bool:
    for each in ast.walk(function):
        match each:
            case ast.Attribute(attr=name) | ast.Name(id=name):
                if name in READS_LAYOUT | ASKS_GRADIENTS or is_inplace_name(name):
                    return True
            case ast.AugAssign() | ast.Subscript(ctx=ast.Store()) | ast.keyword(arg="inplace" | "out"):
                return True
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in names:
                return True
    return False


def _feeds_inplace(flow: Flow) -> bool:
    """Whether a layer in place follows the module: `nn.Sequential(Attention(), nn.ReLU(inplace=True))`."""
    classes = {flow.owner.node.name} if flow.owner is not None and flow.function.name == "forward" else set()
    for node in ast.walk(flow.module.tree) if classes else ():
        if isinstance(node, ast.Call) and last(node.func) in ("Sequential", "ModuleList"):
            layers = [
                each for arg in node.args for each in (arg.elts if isinstance(arg, ast.List) else [arg])
            ]
            for one, after in pairwise(each for each in layers if isinstance(each, ast.Call)):
                if last(one.func) in classes and makes_inplace(after):
                    return True
    return False


def _is_inplace_layer(user: Value) -> bool:
    """`F.dropout(x, inplace=True)`, or a layer that was made with `inplace=True`."""
    flag = user.named.get("inplace")
    if flag is not None and not (flag.op == "const" and flag.detail is False):
        return True
    if user.op == "dropout" and len(user.args) > 3:
        return True
    attribute = user.detail[0] if isinstance(user.detail, tuple) else user.detail
    made: list[object] = [user.detail]
    if isinstance(attribute, Attribute) and attribute.owner is not None:
        made = [*attribute.owner.assignments(attribute.name)]
    if user.op == "call" and isinstance(user.node, ast.Call) and isinstance(user.node.func, ast.Call):
        made = [user.node.func]  # nn.ReLU(inplace=True)(x)
    return any(isinstance(each, ast.Call) and makes_inplace(each) for each in made)
