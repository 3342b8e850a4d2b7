"""Weights that a function returns, and that its callers use under one flag or not at all."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from flashmore.upgrade.budget import walk
from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.escape import stripped
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.reaching import Reaching
from flashmore.upgrade.source.replaced import HOOK, beginning, stands_for
from flashmore.upgrade.source.scopes import SEE_LOCALS, Function, given_to, is_self, last, own_nodes
from flashmore.upgrade.text import Text

_SPECIAL = {"backward", "setup_context"}
"""What PyTorch calls."""
_LAYERS = {"children", "modules", "named_children", "named_modules", "_modules"}
"""What gives layers that are not named."""
_ITSELF = {"self", "self.forward", "self.__call__", "super().forward", "super().__call__"}
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
class Unused:
    """Elements of returned tuples that nobody reads, or only under a flag.

    Args:
        elements: the expressions, which `None` can take the place of.
        calls: where the function is called, each with the flag that it passes; empty for none.
        flag: the flag, as the function reads it; empty where nobody reads the elements.
        last: the argument behind which the function takes the flag; None where it does not.
        names: what the function is called by.
        module: the file of the calls, if it is another one.
    """

    elements: tuple[ast.expr, ...]
    calls: tuple[tuple[ast.Call, str], ...]
    flag: str = ""
    last: ast.expr | ast.arg | None = None
    names: tuple[Name, ...] = ()
    module: Module | None = None

    def edits(self, text: Text) -> list[Edit]:
        """What makes the elements None where nobody reads them."""
        edits = []
        for each in self.elements:
            asked = f"{text.of(each)} if {self.flag} else None" if self.flag else "None"
            edits.append(Edit(*text.span(each), asked))
        last = [] if self.last is None else [(self.last, "True")]
        last += [(given_to(call)[-1], given) for call, given in self.calls if given and last]
        ends = [(text.span(each)[1], given) for each, given in last]
        return [*edits, *(Edit(end, end, f", {self.flag}={given}") for end, given in ends)]

    def said(self, name: str) -> str:
        """What a rewrite takes for granted."""
        lines = sorted({call.func.end_lineno or call.lineno for call, _ in self.calls})
        where = f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines))}"
        does = "calls" if self.last is None else "calls or overrides"
        used = f"used there only if `{self.flag}`" if self.flag else "not used there"
        become = "become None otherwise" if self.flag else "become None"
        file = "this file" if self.module is None or self.module.path is None else self.module.path.name
        return f"nobody but {where} of {file} {does} `{name}`: its weights are {used}, and {become}"


def unused_weights(flow: Flow, weights: set[Value]) -> Unused | None:
    """The weights that a function returns in a tuple, if its file uses them under one flag, or not at all.

    The flag is an attribute of `self` that `__init__` alone sets, or an argument of a caller, which a private
    function can be given as well: by default it returns the weights as before.

    Args:
        flow: the function.
        weights: the values that are weights.
    """
    function = flow.function
    if function.name in _SPECIAL or function.name.startswith("__"):
        return None
    decorators = [each for each in function.decorator_list if getattr(each, "id", "") != "staticmethod"]
    if decorators:
        return None
    places = {
        (index, element)
        for returned in _returned(function)
        for index, element in enumerate(returned)
        if flow.seen.get(element) in weights
    }
    if len({index for index, _ in places}) != 1 or any("\n" in ast.unparse(each) for _, each in places):
        return None
    module, user = flow.module, None
    names = _names(flow, module)
    if names == [] and flow.owner is not None and module.elsewhere is not None:
        user = module.elsewhere.user(flow.owner.node.name)
        names = _names(flow, user) if user is not None else None
    if not names:
        return None
    index = next(iter(places))[0]
    calls = [call for each in names for call in _calls(flow, each, index, user or module)]
    elements = tuple(sorted((each for _, each in places), key=lambda each: each.lineno))
    flags = {flag for _, flag in calls if flag}
    if len(calls) < len(names) or len(flags) > 1:
        return None
    if function.returns is not None:  # Tuple[Tensor, Tensor] would no longer be true
        kind = _returned_type(function.returns, index)
        if kind is None or flags:
            return None
        elements = (kind, *elements)
    unused = Unused(elements, tuple(calls), "".join(flags), names=tuple(names), module=user)
    if not flags or unused.flag.startswith("self."):
        return unused
    return _given_the_flag(unused, flow)


def _returned_type(returns: ast.expr, index: int) -> ast.expr | None:
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


def _names(flow: Flow, module: Module) -> list[Name] | None:
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


def _calls(flow: Flow, called: Name, index: int, module: Module) -> list[tuple[ast.Call, str]]:
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
        flag = "" if _leaves(call, index, parents) else _flag(call, index, parents, flow)
        if called.made is not None and flag:  # the flag of another object
            return []
        if flag is None:
            return []
        calls.append((call, flag))
    return calls


def _given_the_flag(unused: Unused, flow: Flow) -> Unused | None:
    """A private function that takes its callers' flag as one more argument, if it can."""
    function, spec, flag = flow.function, flow.function.args, unused.flag
    defined = [each for each in walk(flow.module.tree) if getattr(each, "name", "") == function.name]
    names = {getattr(each, "arg", getattr(each, "id", None)) for each in walk(function)}
    rigid = spec.posonlyargs or spec.vararg or spec.kwarg or not (spec.args or spec.kwonlyargs)
    if len(defined) > 1 or not function.name.startswith("_") or rigid or flag in names:
        return None
    for call, _ in unused.calls:
        spread = any(isinstance(each, ast.Starred) for each in call.args)
        if spread or not given_to(call) or any(each.arg is None for each in call.keywords):
            return None
    parts: list[ast.expr | ast.arg] = [*spec.args, *spec.defaults, *spec.kwonlyargs]
    parts += [each for each in spec.kw_defaults if each is not None]
    last = max(parts, key=lambda each: (each.end_lineno or 0, each.end_col_offset or 0))
    return replace(unused, last=last, calls=tuple((call, given or "False") for call, given in unused.calls))


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


def _returned(function: Function) -> Iterator[list[ast.expr]]:
    for node in own_nodes(function):
        match node:
            case ast.Return(value=ast.Tuple(elts=elements)):
                yield elements


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
    at = _function_around(target, parents)
    if at is None:
        return True
    for node in walk(at):
        match node:
            case ast.Name(id=name, ctx=ast.Load() | ast.Del()) if name in {target.id, *SEE_LOCALS}:
                return True
            case ast.Global(names=names) | ast.Nonlocal(names=names) if target.id in names:
                return True
    return False


def advice_about_weights(flow: Flow, leaves: Value, how: str) -> str:
    """What to do about weights that leave: a method's callers may want them under a flag alone.

    Their flag cannot guard a public method's lines, for other files may call or override it, too.
    """
    if isinstance(leaves.statement, ast.Assert) or "assert" in how:
        return "assertions are kept: take this one away yourself, or assert shapes, dtypes or devices alone"
    owner, name = flow.owner, flow.function.name
    callers = [
        f"{method.name} in line {node.lineno}"
        for method in (owner.own_methods.values() if owner is not None and how == "returned" else ())
        for node in walk(method)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{name}"
    ]
    if not callers:
        return "if they are not needed, do not return or store them"
    return (
        f"called by {', '.join(callers)}: add a flag to it, and return them only with that flag; this is "
        "not done automatically, because other code may call it too"
    )
