"""Weights that a function returns, and that its callers use under one flag or not at all."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashmore.upgrade.budget import walk
from flashmore.upgrade.checks.callers import Name, Passed, calls_by, is_opaque, names_of, returned_type
from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import Function, given_to, own_nodes
from flashmore.upgrade.text import Text


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
    if is_opaque(function):
        return None
    places = {
        (index, element)
        for returned in _returned(function)
        for index, element in enumerate(returned)
        if flow.seen.get(element) in weights
    }
    if len({index for index, _ in places}) != 1 or any("\n" in ast.unparse(each) for _, each in places):
        return None
    names, user = _names(flow)
    if not names:
        return None
    index = next(iter(places))[0]
    passed: list[Passed] = []
    calls = [call for each in names for call in calls_by(flow, each, index, user or flow.module, passed)]
    elements = [*sorted((each for _, each in places), key=lambda each: each.lineno)]
    flags = {flag for _, flag in calls if flag}
    if len(calls) < len(names) or len(flags) > 1 or (passed and flags):
        return None
    kinds = [kind for each in passed for kind in each.kinds]
    if function.returns is not None:  # Tuple[Tensor, Tensor] would no longer be true
        kinds.append(returned_type(function.returns, index))
    if (kinds and flags) or None in kinds or (user is not None and any(each.kinds for each in passed)):
        return None
    elements += [each for each in kinds if each is not None]
    names += [name for each in passed for name in each.names]
    calls += [call for each in passed for call in each.calls]
    unused = Unused(tuple(elements), tuple(calls), "".join(flags), names=tuple(names), module=user)
    if not flags or unused.flag.startswith("self."):
        return unused
    return _given_the_flag(unused, flow)


def _names(flow: Flow) -> tuple[list[Name] | None, Module | None]:
    """What a function is called by, and the file that calls it, if it is another one."""
    module, user = flow.module, None
    names = names_of(flow, module)
    if names == [] and flow.owner is not None and module.elsewhere is not None:
        user = module.elsewhere.user(flow.owner.node.name)
        names = names_of(flow, user) if user is not None else None
    return names, user


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


def _returned(function: Function) -> Iterator[list[ast.expr]]:
    for node in own_nodes(function):
        match node:
            case ast.Return(value=ast.Tuple(elts=elements)):
                yield elements


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
