"""The callers of a function that returns weights, and whether they use them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from flashmore.upgrade.budget import walk
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.escape import stripped
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.reaching import Reaching
from flashmore.upgrade.source.replaced import HOOK, beginning, stands_for
from flashmore.upgrade.source.scopes import SEE_LOCALS, Function, is_self, last

_SPECIAL = {"backward", "setup_context"}
"""What PyTorch calls."""
_LAYERS = {"children", "modules", "named_children", "named_modules", "_modules"}
"""What gives layers that are not named."""
_ITSELF = {"self", "self.forward", "self.__call__", "super().forward", "super().__call__"}
_MOST_PASSED = 5
"""So many callers may pass weights on."""
Parents = dict[ast.AST, ast.AST]


@dataclass(frozen=True)
class Name:
    """What callers call a function by.

    Args:
        text: the name.
        of: the class whose `self` has it; None for a function of the module.
        made: of an attribute that holds a layer, where it is stored.
    """

    text: str
    of: Class | None
    made: ast.AST | None = None


@dataclass(frozen=True)
class Passed:
    """A caller that returns the weights too, to callers of which nobody takes them.

    Args:
        names: what it is called by.
        calls: where it is called, each without a flag.
        kinds: the type of the weights in what it says that it returns; None if it says that otherwise.
    """

    names: list[Name]
    calls: list[tuple[ast.Call, str]]
    kinds: list[ast.expr | None]


def _passed(call: ast.Call, index: int, module: Module, passed: list[Passed]) -> bool:
    """Whether a caller only returns an element of the result, and its own callers leave that alone."""
    parents = _parents(module)
    caller, place = _function_around(call, parents), _place_in_return(call, index, parents)
    if caller is None or place is None or len(passed) == _MOST_PASSED:
        return False
    if caller.name == "forward" or is_opaque(caller):
        return False
    flow = Flow(module, _class_around(caller, module), caller)
    kinds = [returned_type(caller.returns, place)] if caller.returns is not None else []
    found = Passed([Name(caller.name, flow.owner)], [], kinds)
    passed.append(found)
    found.calls.extend(calls_by(flow, found.names[0], place, module, passed))
    return bool(found.calls) and not any(flag for _, flag in found.calls)


def _place_in_return(call: ast.Call, index: int, parents: Parents) -> int | None:
    """Where in what its function returns an element of a call's result stands, which is read nowhere else."""
    match parents.get(call):
        case ast.Return():
            return index
        case ast.Assign(targets=[ast.Tuple(elts=targets)]) if not any(
            isinstance(each, ast.Starred) for each in targets
        ):
            target = targets[index] if index < len(targets) else None
            read = [*_reads(target, parents)] if isinstance(target, ast.Name) else []
            whole = parents.get(read[0]) if len(read) == 1 and read[0] is not None else None
            by = parents.get(whole) if isinstance(whole, ast.Tuple) else None
            same = by is not None and _function_around(by, parents) is _function_around(call, parents)
            if isinstance(whole, ast.Tuple) and isinstance(by, ast.Return) and same:
                return next(at for at, each in enumerate(whole.elts) if each is read[0])
    return None


def returned_type(returns: ast.expr, index: int) -> ast.expr | None:
    """Of `Tuple[Tensor, Tensor]` one of the types."""
    match returns:
        case ast.Subscript(value=of, slice=ast.Tuple(elts=kinds)) if last(of) in ("Tuple", "tuple"):
            return kinds[index] if index < len(kinds) else None
    return None


def _may_get(node: ast.AST, name: str) -> bool:
    """Whether `getattr` is given a name that is computed, which may be the function's."""
    match node:
        case ast.Call(func=ast.Name(id="getattr"), args=[_, asked, *_]):
            return stands_for({beginning(asked)}, name)
    return False


def names_of(flow: Flow, module: Module) -> list[Name] | None:
    """What a file calls a function by: for `forward` the attributes that hold objects of its class.

    None where the class may be made or called in other ways, or a hook sees what it returns.
    """
    function, owner, parents = flow.function, flow.owner, _parents(module)
    if function.name != "forward":
        return [Name(function.name, owner)]
    if owner is None or any(map(HOOK.fullmatch, module.attributes)) or _calls_each(module.tree):
        return None
    if any(ast.unparse(each.func) in _ITSELF for each in walk(owner.node) if isinstance(each, ast.Call)):
        return None
    found = []
    for node in walk(module.tree):
        if getattr(node, "id", getattr(node, "attr", getattr(node, "value", None))) != owner.node.name:
            continue
        call = parents[node]
        made = parents[call]
        match call, made:
            case ast.Call(func=ast.Name(id="super")), _:  # super(Attention, self).__init__()
                continue
            case ast.Call(func=func), ast.Assign(targets=[ast.Attribute(value=on, attr=name) as target]) if (
                func is node and is_self(on) and (of := _class_around(made, module)) is not None
            ):
                found.append(Name(name, of, target))
            case _:
                return None
    return found


def _calls_each(tree: ast.Module) -> bool:
    """Whether a loop calls layers that it does not name: `for layer in self.children(): x = layer(x)`."""
    loops = [each for each in walk(tree) if isinstance(each, ast.For | ast.comprehension)]
    over = (each for each in loops if any(getattr(node, "attr", "") in _LAYERS for node in walk(each.iter)))
    names = {node.id for each in over for node in walk(each.target) if isinstance(node, ast.Name)}
    return any(isinstance(each, ast.Call) and getattr(each.func, "id", "") in names for each in walk(tree))


def _class_around(node: ast.AST, module: Module) -> Class | None:
    parents = _parents(module)
    while not isinstance(node, ast.ClassDef | ast.Module):
        node = parents[node]
    found = module.classes.get(getattr(node, "name", ""))
    return found if found is not None and found.node is node else None


def _is_another(node: ast.Name | ast.Attribute, of: Class | None, module: Module) -> bool:
    """Whether a name has nothing to do with an attribute of a class that has no subclasses."""
    if of is None or any(of.below(module)):
        return False
    if isinstance(node, ast.Name):
        return _function_around(node, _parents(module)) is not None
    around = _class_around(node, module) if is_self(node.value) else None
    return around is not None and around not in of.lineage()


def calls_by(
    flow: Flow, called: Name, index: int, module: Module, passed: list[Passed]
) -> list[tuple[ast.Call, str]]:
    """The calls of a function, each with the flag under which alone it uses an element of the result.

    Empty where a call uses it always, or where the file mentions the function otherwise.
    """
    name, parents, calls = called.text, _parents(module), []
    for node in walk(module.tree):
        if isinstance(node, ast.Constant) and node.value == name:
            return []  # `getattr(self, "attend")`
        if _may_get(node, name):
            return []
        if getattr(node, "id", getattr(node, "attr", None)) != name:
            continue
        assert isinstance(node, (ast.Name, ast.Attribute))
        if node is called.made or _is_another(node, called.of, module):
            continue
        call = parents.get(node)
        if not isinstance(call, ast.Call) or call.func is not node:
            return []
        left = _leaves(call, index, parents) or _passed(call, index, module, passed)
        flag = "" if left else _flag(call, index, parents, flow)
        if called.made is not None and flag:  # the flag of another object
            return []
        if flag is None:
            return []
        calls.append((call, flag))
    return calls


def _flag(call: ast.Call, index: int, parents: Parents, flow: Flow) -> str | None:
    """The flag under which alone the caller uses an element of the result; None where there is none."""
    match parents.get(call):
        case ast.Assign(targets=[ast.Tuple(elts=targets)]) if not any(
            isinstance(each, ast.Starred) for each in targets
        ):
            target = targets[index] if index < len(targets) else None
        case _:
            return None
    caller = _function_around(call, parents)
    if not isinstance(target, ast.Name) or caller is None:
        return None
    if any(isinstance(each, ast.Name) and each.id in SEE_LOCALS for each in walk(caller)):
        return None
    reaching = Reaching(caller, flow.module)
    uses = [[*map(_straight, use.tests)] for use in reaching.uses if use.name == target.id]
    for test, holds in uses[0] if uses else ():
        asked = ast.unparse(test)
        if holds and all(any(each and ast.unparse(of) == asked for of, each in tests) for tests in uses):
            match test:
                case ast.Name(id=name) if {*map(type, reaching.bound.get(name, ()))} == {ast.arg}:
                    return name
                case ast.Attribute(value=ast.Name(id="self"), attr=name):
                    on_self = ast.unparse(call.func) == f"self.{flow.function.name}"
                    if on_self and _is_set_once(name, caller, flow):
                        return f"self.{name}"
    return None


def _straight(asked: tuple[ast.expr, bool]) -> tuple[ast.expr, bool]:
    """A test without each `not` in front of it, and its answer."""
    test, negated = stripped(asked[0])
    return test, asked[1] != negated


def _is_set_once(name: str, caller: Function, flow: Flow) -> bool:
    """Whether an attribute of the `self` of a function and its caller is what `__init__` has set, in both."""
    owner, module = flow.owner, flow.module
    if owner is None or caller not in owner.own_methods.values() or module.is_replaced(name):
        return False
    stores = [
        each
        for method in walk(module.tree)
        if isinstance(method, Function) and method.name != "__init__"
        for each in walk(method)
        if isinstance(each, ast.Attribute) and each.attr == name and not isinstance(each.ctx, ast.Load)
    ]
    return not stores and bool(owner.own_assignments.get(name)) and owner.method(name) is None


def _function_around(node: ast.AST, parents: Parents) -> Function | None:
    while not isinstance(node, Function | ast.ClassDef | ast.Module):
        node = parents[node]
    return node if isinstance(node, Function) else None


@lru_cache(maxsize=2)  # of the file that is searched and one that uses it, not once for each of its places
def _parents(module: Module) -> Parents:
    return {child: node for node in ast.walk(module.tree) for child in ast.iter_child_nodes(node)}


def _leaves(call: ast.Call, index: int, parents: Parents) -> bool:
    """Whether a call's result is taken apart, and the element at an index left alone."""
    match parents.get(call):
        case ast.Expr():
            return True
        case ast.Subscript(slice=ast.Constant(value=int(at)), ctx=ast.Load()):
            return 0 <= at != index
        case ast.Assign(targets=[ast.Tuple(elts=targets)]) if not any(
            isinstance(each, ast.Starred) for each in targets
        ):
            target = targets[index] if index < len(targets) else None
            return isinstance(target, ast.Name) and not _is_read(target, parents)
    return False


def _is_read(target: ast.Name, parents: Parents) -> bool:
    """Whether anything in the function around a name reads it, or may see all names."""
    return next(_reads(target, parents), target) is not target


def _reads(target: ast.Name, parents: Parents) -> Iterator[ast.Name | None]:
    """What reads a name in the function around it; None for what may see it in other ways."""
    at = _function_around(target, parents)
    if at is None:
        yield None
    for node in walk(at) if at is not None else ():
        match node:
            case ast.Name(id=name, ctx=ast.Load() | ast.Del()) if name in {target.id, *SEE_LOCALS}:
                yield node if name == target.id else None
            case ast.Global(names=names) | ast.Nonlocal(names=names) if target.id in names:
                yield None


def is_opaque(function: Function) -> bool:
    """Whether PyTorch or Python calls a function, or a decorator stands in its place."""
    decorated = any(getattr(each, "id", "") != "staticmethod" for each in function.decorator_list)
    return decorated or function.name in _SPECIAL or function.name.startswith("__")
