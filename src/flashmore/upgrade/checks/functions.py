"""What calls of a file's own functions, methods and layers change, as their lines say."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from flashmore.upgrade.checks.pure import is_pure, makes_new
from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.inlining import GRAD_MODES
from flashmore.upgrade.source.module import Found, Module
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.source.scopes import Function, arguments_of, bound_by, defaults_of, head, is_self, last

_MAY_WORK_IN_PLACE = {
    "ReLU", "ReLU6", "SiLU", "Mish", "SELU", "Hardswish", "Hardsigmoid", "ELU", "CELU", "LeakyReLU", "RReLU",
    "Threshold", "Hardtanh", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout",
}  # fmt: skip
"""Layers of torch that take `inplace`, by position too."""


def is_layer(node: ast.Attribute, owner: Class | None, module: Module) -> bool:
    """Whether `self.x` is something that the class stores, such as a layer, and no method."""
    if not is_self(node.value) or owner is None:
        return False
    attribute = Attribute(f"self.{node.attr}", owner, node.attr)
    return bool(owner.assignments(node.attr)) or kind_of(attribute, module).name != "unknown"


def keeps_arguments(call: ast.Call, owner: Class | None, module: Module) -> bool:
    """Whether a layer `self.x` does not work in place, as far as the class says what it is."""
    if not isinstance(call.func, ast.Attribute):
        return False
    kind = kind_of(Attribute(f"self.{call.func.attr}", owner, call.func.attr), module)
    if kind.name == "class":
        return changes_nothing(call, owner, module)
    known = kind.name in ("layer", "dropout", "identity", "softmax")
    return known and isinstance(kind.expression, ast.Call) and not makes_inplace(kind.expression)


Called = tuple[Function, Class | None]
"""A function of the file, and the class that its `self` is of."""


def called(call: ast.Call, owner: Class | None, module: Module) -> Called | None:
    """The function of the file that a call runs: a function, a method of the class, a layer's `forward`."""
    match call.func:
        case ast.Name(id=name) if name in module.functions:
            return module.functions[name], None
        case ast.Attribute(value=ast.Name(id="self"), attr=name) if owner is not None:
            if any(name in each.own_methods for each in owner.below(module)):
                return None
            if (method := owner.method_and_module(name)) is not None:
                return (method[1], owner) if method[0] is module else None
            kind = kind_of(Attribute(f"self.{name}", owner, name), module)
            made = kind.made if kind.made is not None and kind.made.module is module else None
            if made is not None and (forward := made.method("forward")) and not any(made.below(module)):
                return forward, made
    return None


def changes_nothing(
    call: ast.Call,
    owner: Class | None,
    module: Module,
    reads: frozenset[str] | None = None,
    within: frozenset[Function] = frozenset(),
) -> bool:
    """Whether a call of something in this file changes no argument, no setting, and nothing that is read.

    It may call layers and other such functions; only its own numbers may be changed in place.

    Args:
        call: the call.
        owner: the class of `self` where it stands.
        module: the file.
        reads: the attributes of `self` that must stay; None for all of them.
        within: the functions that are being read.
    """
    found = called(call, owner, module)
    imported = module.definition(module.qualified(call.func)) if found is None else None
    if isinstance(imported, Found) and imported.name in imported.module.functions:
        found, module = (imported.module.functions[imported.name], None), imported.module
    made = module.classes.get(getattr(call.func, "id", "")) if found is None else None
    if isinstance(imported, Found) and found is None:
        made = imported.module.classes.get(imported.name)
    if made is not None and (begin := _constructor(made)) is not None:
        found, owner, module, reads = (begin, made), made, made.module, frozenset()
    if found is None or found[0] in within:
        return False
    function, of = found
    by = [getattr(each, "id", "") for each in function.decorator_list]
    if not {*by} <= {"staticmethod", "classmethod"}:
        return False
    body = _Body(call, function, of, module, reads if owner is of else None, within | {function})
    return all(body.is_harmless(node) for statement in function.body for node in ast.walk(statement))


def _constructor(made: Class) -> Function | None:
    """The `__init__` of a class whose calls run nothing else, and which stores into the new object alone."""
    node = made.node
    rest = {*made.own_methods} & {"__new__", "__setattr__"}
    setters = any(
        isinstance(by, ast.Attribute) for each in made.own_methods.values() for by in each.decorator_list
    )
    above = [each for each in node.bases if getattr(each, "id", "") != "object"]
    if above or node.keywords or node.decorator_list or rest or setters:
        return None
    return made.own_methods.get("__init__")


@dataclass(frozen=True)
class _Body:
    """The lines of a function that is called.

    Args:
        call: the call.
        function: the function.
        owner: the class of its `self`.
        module: the file.
        reads: the attributes of its `self` that must stay; None for all of them.
        within: the functions that are being read, this one included.
    """

    call: ast.Call
    function: Function
    owner: Class | None
    module: Module
    reads: frozenset[str] | None
    within: frozenset[Function]

    def is_harmless(self, node: ast.AST) -> bool:
        """Whether a node of the lines changes nothing."""
        match node:
            case ast.AugAssign(target=ast.Name(id=name)):
                return _is_fresh(name, self.function)
            case ast.Subscript(ctx=ast.Store()) if self._is_new_tensor(head(node)):
                return True
            case (
                ast.AugAssign(target=ast.Subscript(value=ast.Name(id=name)))
                | ast.Subscript(value=ast.Name(id=name), ctx=ast.Store())
                | ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"))
                | ast.Call(func=ast.Name(id="tuple" | "list"), args=[ast.Name(id=name)])
            ):
                return _is_fresh(name, self.function, _is_container)
            case (
                ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store())
                | ast.Call(
                    func=ast.Attribute(value=ast.Name(id="self"), attr="register_buffer"),
                    args=[ast.Constant(value=name), *_],
                )
            ):
                return self.reads is not None and name not in self.reads
            case ast.Call():
                return (
                    id(node) in self._contexts or is_pure(node, self.module) or self._is_harmless_call(node)
                )
            case ast.Global() | ast.Nonlocal():
                return False
        return isinstance(node, (ast.Assert, ast.Raise)) or is_pure(node, self.module)

    @cached_property
    def _contexts(self) -> set[int]:
        """The ids of calls such as `torch.no_grad()` in a `with` statement, which ends what they change."""
        blocks = (each for each in ast.walk(self.function) if isinstance(each, ast.With))
        entered = [item.context_expr for each in blocks for item in each.items]
        modes = {f"torch.{each}" for each in GRAD_MODES}
        return {id(each) for each in entered
                if isinstance(each, ast.Call) and self.module.qualified(each.func) in modes}  # fmt: skip

    def _is_new_tensor(self, name: str) -> bool:
        """Whether a name always means a tensor that the lines make, or a list of such tensors."""

        def is_new(made: ast.expr) -> bool:
            match made:
                case ast.ListComp(elt=each):
                    return is_new(each)
                case ast.Call(func=ast.Attribute(value=ast.Call() as inner, attr="bool" | "float" | "long")):
                    return is_new(inner)
                case ast.Call(func=func):
                    return makes_new(func, self.module)
            return False

        return _is_fresh(name, self.function, is_new)

    def _is_harmless_call(self, call: ast.Call) -> bool:
        """Whether it calls what was given and only computes, a layer, or a function that changes nothing."""
        positional = [each.arg for each in self.function.args.args]
        if isinstance(call.func, ast.Name) and call.func.id in positional:
            given = dict(zip(positional, self.call.args, strict=False)).get(call.func.id)
            return isinstance(given, ast.Lambda) and all(
                is_pure(each, self.module) for each in ast.walk(given)
            )
        layer = isinstance(call.func, ast.Attribute) and is_layer(call.func, self.owner, self.module)
        if layer and keeps_arguments(call, self.owner, self.module):
            return True
        return changes_nothing(call, self.owner, self.module, self.reads, self.within)


def _is_number(made: ast.expr) -> bool:
    match made:
        case ast.Call(func=ast.Name(id="len" | "int") | ast.Attribute(attr="item")):
            return True
    return isinstance(made, (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare))


def _is_container(made: ast.expr) -> bool:
    """Whether an expression makes a list or the like, `list(x)` included."""
    copies = ("list", "dict", "set", "tuple", "sorted", "sum")
    is_copy = isinstance(made, ast.Call) and isinstance(made.func, ast.Name) and made.func.id in copies
    return is_copy or isinstance(made, (ast.List, ast.Dict, ast.ListComp, ast.DictComp, ast.BinOp))


def _is_fresh(name: str, method: Function, is_own: Callable[[ast.expr], bool] = _is_number) -> bool:
    """Whether a name always means a result of the method's own, by the syntax that makes it.

    A number is one, and so is an argument whose default is a number; a tensor that it was given is not.
    """
    default = defaults_of(method.args).get(name)
    a_number = isinstance(default, ast.Constant) and default.value is not None
    if not name or (not a_number and name in {each.arg for each in arguments_of(method.args)}):
        return False
    made: list[ast.AST] = []
    for node in ast.walk(method):
        if isinstance(node, ast.AugAssign):
            made.append(node.target)
        elif isinstance(node, ast.Assign) and is_own(node.value):
            made += node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None and is_own(node.value):
            made.append(node.target)
    return all(node in made for node in ast.walk(method) if name in bound_by(node))


def changes_own_memory(store: ast.Subscript, blocks: Blocks, module: Module) -> bool:
    """Whether `x[i] = …`, or a loop of it, follows `x = torch.ones(…)`, and nothing else has that memory."""
    name = store.value.id if isinstance(store.value, ast.Name) else None
    statement: ast.stmt | None = next(
        (each for each in blocks.places if isinstance(each, ast.Assign) and each.targets == [store]), None
    )
    while statement is not None:
        place = blocks.places[statement]
        for before in reversed(place.block[: place.index]):
            if name not in _mentioned(before):
                continue
            match before:
                case ast.Assign(targets=[ast.Name(id=made)], value=ast.Call(func=func)):
                    return made == name and makes_new(func, module)
            return False
        if not isinstance(place.parent, ast.For) or name in _mentioned(place.parent, stores=False):
            return False
        statement = place.parent
    return False


def _mentioned(node: ast.AST, *, stores: bool = True) -> set[str]:
    """The names below a node, perhaps without those of which only elements are stored."""
    inside = [*ast.walk(node)]
    elements = {
        id(each.value)
        for each in inside
        if isinstance(each, ast.Subscript) and isinstance(each.ctx, ast.Store)
    }
    return {each.id for each in inside if isinstance(each, ast.Name) and (stores or id(each) not in elements)}


def makes_inplace(made: ast.Call) -> bool:
    """Whether a layer may be made to work in place on what it is given; of `nn.Sequential`, its first one."""
    if last(made.func) == "Sequential":
        for each in made.args:
            if not isinstance(each, ast.Call):
                return False
            if makes_inplace(each):
                return True
            if last(each.func) not in ("Dropout", "Identity", "Flatten", "Unflatten"):
                return False
    given = [each.value for each in made.keywords if each.arg == "inplace"]
    if last(made.func) in _MAY_WORK_IN_PLACE:
        given += [
            each for each in made.args if isinstance(each, ast.Constant) and isinstance(each.value, bool)
        ]
    return any(not (isinstance(each, ast.Constant) and each.value is False) for each in given)
