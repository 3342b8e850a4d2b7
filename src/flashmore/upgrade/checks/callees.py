"""Which function of the project a call runs: a layer's `forward`, a Function's, one of another file."""

import ast
from dataclasses import dataclass

from flashmore.upgrade.source.attributes import Attribute, stored_in
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.module import Found, Module
from flashmore.upgrade.source.scopes import Function, last


@dataclass(frozen=True)
class Callee:
    """A function, its file, and the class that it is a method of."""

    function: Function
    module: Module
    owner: Class | None = None


def callee(value: Value, module: Module) -> Callee | None:
    """What a call runs, where that is known."""
    if (owner := applied(value, module)) is not None:
        return _forward(owner)
    if value.op != "call":
        return None
    if isinstance(value.detail, Attribute):
        made = stored_in(value.detail, module)
        calls = [(each.func, home) for each, home in made if isinstance(each, ast.Call)]
        owners = (home.classes.get(last(func)) or home.class_of(home.qualified(func)) for func, home in calls)
        owner = next(owners, None)
        return _forward(owner) if owner is not None else None
    found = module.definition(str(value.detail))
    function = found.module.functions.get(found.name) if isinstance(found, Found) else None
    return Callee(function, found.module) if isinstance(found, Found) and function is not None else None


def _forward(owner: Class) -> Callee | None:
    found = owner.method_and_module("forward")
    return Callee(found[1], found[0], owner) if found is not None else None


def applied(value: Value, module: Module) -> Class | None:
    """The class whose `apply` a call is of, under whatever name."""
    callee = value.args[0] if value.args and value.op in ("apply", "call") else value
    of = callee.args[0] if callee.op == "attr:apply" else callee
    name = str(value.detail if of.op != "global" else of.detail).removesuffix(".apply")
    if value.op != "apply" and of is callee and not str(value.detail).endswith(".apply"):
        return None
    found = module.classes.get(name) or module.class_of(name)
    return found if found is not None and is_function(found) else None


def is_function(found: Class) -> bool:
    """Whether a class is one of PyTorch's Functions, which have a backward of their own."""
    return any(last(base) == "Function" for each in found.lineage() for base in each.node.bases)
