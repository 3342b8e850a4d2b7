"""Attributes that may be others than their classes say, and layers whose calls a hook sees."""

import ast
import re
from collections.abc import Callable, Iterator

from flashmore.upgrade.source.scopes import Function, claimed_by, dotted, is_self, last, own_nodes

HOOK = re.compile(r"register_(module_)?(full_)?(forward|backward)\w*hook")
EVERY = "*"
"""Stands for all layers."""
_CONTAINERS = ("torch.nn.Sequential", "torch.nn.ModuleList", "torch.nn.ModuleDict")


def hooked(tree: ast.Module) -> dict[str, int]:
    """The attributes on which a file registers a hook, each with the line.

    Of a layer that the file finds by its name, such as in `named_modules()`, that is what its strings name.
    """
    named: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named.setdefault(node.targets[0].id, set()).update(_attribute(node.value))
    found: dict[str, int] = {}
    every = {id(node) for each in _of_all_layers(tree) for node in ast.walk(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and HOOK.fullmatch(node.attr):
            layer = node.value
            names = named.get(layer.id, set()) if isinstance(layer, ast.Name) else _attribute(layer)
            if (isinstance(layer, ast.Name) and id(node) in every) or "_module_" in node.attr:
                names = {EVERY}
            found |= dict.fromkeys(names or _last_names(tree), node.lineno)
        elif isinstance(node, ast.Name) and HOOK.fullmatch(node.id) and "_module_" in node.id:
            found[EVERY] = node.lineno
    return found


_LAYERS = {"Softmax", "Dropout"}
_NO_LAYERS = {"Sequential", "ModuleList", "ModuleDict", "Module"}
"""Whose tests leave out containers alone."""
_WALKS = ("modules", "named_modules", "children", "named_children")


def _of_all_layers(tree: ast.Module) -> Iterator[ast.AST]:
    """The loops over all layers of a model, and what `apply` calls for each, where no name chooses one.

    Nor may a test name classes, unless they are of layers that a rewriting no longer calls.
    """
    applied = [
        each.args[0]
        for each in ast.walk(tree)
        if isinstance(each, ast.Call) and last(each.func) == "apply" and len(each.args) == 1
    ]
    names = {each.id for each in applied if isinstance(each, ast.Name)}
    for node in ast.walk(tree):
        loop = isinstance(node, ast.For) and any(
            isinstance(each, ast.Attribute) and each.attr in _WALKS for each in ast.walk(node.iter)
        )
        if loop or node in applied or (isinstance(node, Function) and node.name in names):
            tests = [
                part
                for each in ast.walk(node)
                if isinstance(each, (ast.If, ast.IfExp))
                for part in ast.walk(each.test)
            ]
            classes = {last(each) for each in tests if last(each)[:1].isupper()}
            chosen = any(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in tests)
            compared = any(
                isinstance(each, ast.Compare) and not isinstance(each.comparators[0], ast.Constant)
                for each in tests
            )
            chosen |= compared and not classes
            if not chosen and (classes & _LAYERS or classes <= _NO_LAYERS):
                yield node


def _last_names(tree: ast.Module) -> set[str]:
    """What the strings of a file may name, which may choose a layer: of "blocks.0.attend" its last part."""
    texts = (each.value for each in ast.walk(tree) if isinstance(each, ast.Constant))
    last = {each.rpartition(".")[2] for each in texts if isinstance(each, str)}
    return {each for each in last if each.isidentifier()}


def _attribute(layer: ast.expr) -> set[str]:
    """The attribute that holds a layer, also if a string names it."""
    match layer:
        case ast.Attribute(attr=name):
            return {name}
        case ast.Call(
            func=ast.Attribute(attr="get_submodule") | ast.Name(id="getattr"),
            args=[*_, ast.Constant(value=str(name))],
        ):
            return {name.rpartition(".")[2]}
    return set()


def replaced(tree: ast.Module, qualified: Callable[[ast.expr], str]) -> set[str | None]:
    """Attributes that are stored on something else than a class's `self`, or in unusual ways.

    Args:
        tree: the file.
        qualified: the full name of what an expression takes from an import; else empty.

    Returns:
        A name with a star at its end stands for all names that begin so; None for all names.
    """
    filled = {*_filled(tree, qualified), *_of_plain_objects(tree)}
    within = {node for each in ast.walk(tree) if isinstance(each, ast.ClassDef) for node in ast.walk(each)}
    found: set[str | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            if not (is_self(node.value) and isinstance(node.ctx, ast.Store)):
                found.add(node.attr)
        elif node not in filled:
            found |= {name for owner, name in _by_name(node) if not (is_self(owner) and node in within)}
    return found


def _filled(tree: ast.Module, qualified: Callable[[ast.expr], str]) -> Iterator[ast.Call]:
    """The calls that add a layer to a container of PyTorch's, where the same function has made it.

    A container has no attributes that a class of the project stores, whatever name the layer gets.
    """
    for outer in ast.walk(tree):
        if not isinstance(outer, ast.Module | ast.ClassDef):
            continue
        for function in (each for each in outer.body if isinstance(each, Function)):
            made = {
                dotted(target): value.lineno
                for statement in function.body
                if isinstance(statement, ast.Assign) and isinstance(value := statement.value, ast.Call)
                for target in statement.targets
                if qualified(value.func) in _CONTAINERS
            }
            for node in own_nodes(function) if made else ():
                match node:
                    case ast.Call(func=ast.Attribute(attr="add_module" | "register_module", value=owner)):
                        name = dotted(owner)
                        scope = outer if "." in name else function
                        if made.get(name, node.lineno) < node.lineno and _claims(scope, name) == 1:
                            yield node


def _of_plain_objects(tree: ast.Module) -> Iterator[ast.AST]:
    """What stores by name on an object that its function made of a class without bases: no layer is one."""
    other = {"__class__", "__dict__", "__new__"}  # what may make an object another one
    stored = (each for each in ast.walk(tree) if isinstance(each, ast.Attribute) and each.attr in other)
    if any(isinstance(each.ctx, ast.Store) for each in stored):
        return
    plain = {
        each.name
        for each in tree.body
        if isinstance(each, ast.ClassDef)
        and all(dotted(base) == "object" for base in each.bases)
        and not (each.keywords or each.decorator_list)
        and not other & {name for one in each.body for name in claimed_by(one)}
    }
    plain -= {name for each in tree.body if not isinstance(each, ast.ClassDef) for name in claimed_by(each)}
    for function in ast.walk(tree):
        if isinstance(function, Function):
            made = {
                each.targets[0].id
                for each in function.body
                if isinstance(each, ast.Assign)
                and isinstance(each.targets[0], ast.Name)
                and isinstance(each.value, ast.Call)
                and dotted(each.value.func) in plain
            }
            alone = {name for name in made if _claims(function, name) == 1}
            yield from (
                node
                for node in own_nodes(function)
                if any(isinstance(owner, ast.Name) and owner.id in alone for owner, _ in _by_name(node))
            )


def _claims(scope: ast.AST, name: str) -> int:
    """How often a name or an attribute such as `self.x` is bound, deleted or declared."""
    return sum(
        dotted(node) == name
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)
        else claimed_by(node).count(name)
        for node in ast.walk(scope)
    )


def replaced_on_self(node: ast.ClassDef) -> set[str | None]:
    """Attributes that a class stores on `self` under a name that is computed; see `replaced`."""
    return {name for each in ast.walk(node) for owner, name in _by_name(each) if is_self(owner)}


def stored(tree: ast.Module) -> Iterator[tuple[ast.expr, str, int]]:
    """The objects that a file stores something in, each with the attribute's name and the line."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name, ctx=ast.Store() | ast.Del()):
                yield owner, name, node.lineno
            case ast.Call(func=ast.Name(id="setattr"), args=[owner, ast.Constant(value=str(name)), _]):
                yield owner, name, node.lineno
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="patch") | ast.Name(id="patch"), attr="object")
                | ast.Attribute(value=ast.Name(id="monkeypatch"), attr="setattr"),
                args=[owner, ast.Constant(value=str(name)), *_],
            ):
                yield owner, name, node.lineno
            case ast.Subscript(
                value=ast.Attribute(value=owner, attr="__dict__")
                | ast.Call(func=ast.Name(id="vars"), args=[owner]),
                slice=ast.Constant(value=str(name)),
                ctx=ast.Store(),
            ):
                yield owner, name, node.lineno


_OF_CLASS = {"forward", "__class__"}
_OF_LAYERS = {"p", "training"}
"""What a call that takes the place of a dropout still reads of it."""


def exchanged(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """The attributes of objects in which a file stores a layer, a tensor or a function, with the lines.

    `EVERY` where a function replaces the layers of a class that a rewriting no longer calls. The last is True
    for layers of which something else than the rate of a dropout is set: `block.softmax.dim = 1`.
    """
    for loop in _of_all_layers(tree):
        for node in ast.walk(loop):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in _OF_CLASS:
                yield EVERY, node.lineno, True
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Attribute(value=owner, attr=name)], value=value):
                if isinstance(owner, ast.Attribute) and name not in _OF_LAYERS:
                    yield owner.attr, node.lineno, True
                if not is_self(owner) and _is_object(value):
                    yield name, node.lineno, False
            case ast.Call(func=ast.Name(id="setattr"), args=[owner, ast.Constant(value=str(name)), value]):
                if not is_self(owner) and _is_object(value):
                    yield name, node.lineno, False
            case ast.FunctionDef():
                mentions = {last(each) for each in ast.walk(node)}
                if mentions & _LAYERS:
                    yield from (
                        (EVERY, getattr(each, "lineno", node.lineno), False)
                        for each in ast.walk(node)
                        for owner, name in _by_name(each)
                        if name is None and not (is_self(owner) and mentions.isdisjoint({"named_children"}))
                    )


def _is_object(value: ast.expr) -> bool:
    """Whether a layer, a tensor or a function may be made there, and no number, text or copied option."""
    if isinstance(value, ast.Call):
        name = last(value.func)
        return name != "Dropout" and (name[:1].isupper() or dotted(value.func).startswith(("torch.", "nn.")))
    return isinstance(value, ast.Lambda) or (isinstance(value, ast.Constant) and value.value is None)


def patched_by_text(tree: ast.Module) -> dict[str, int]:
    """What `mock.patch("torch.softmax")` and pytest's `monkeypatch` name, with the lines."""
    found = {}
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="patch")
                | ast.Name(id="patch")
                | ast.Attribute(value=ast.Name(id="monkeypatch"), attr="setattr"),
                args=[ast.Constant(value=str(full)), *_],
            ):
                found[full] = node.lineno
    return found


def stands_for(found: set[str | None], name: str) -> bool:
    """Whether a name is among those that `replaced` returns."""
    return any(
        each is None or each == name or (each.endswith("*") and name.startswith(each[:-1])) for each in found
    )


def _by_name(node: ast.AST) -> Iterator[tuple[ast.expr, str | None]]:
    """The objects that an expression changes, each with the name of the attribute."""
    match node:
        case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[owner, attribute, *_]):
            yield owner, beginning(attribute)
        case ast.Call(func=ast.Attribute(attr="__setattr__" | "__delattr__", value=ast.Name(id="object"))):
            yield (node.args[0] if node.args else node.func), None
        case ast.Call(
            func=ast.Attribute(attr="add_module" | "register_module", value=owner), args=[attribute, *_]
        ):
            if not (is_self(owner) and isinstance(attribute, ast.Constant)):
                yield owner, beginning(attribute)
        case ast.Call(func=ast.Attribute(attr="set_submodule", value=owner), args=[path, *_]):
            text = path.value if isinstance(path, ast.Constant) else None
            yield owner, text.rpartition(".")[2] if isinstance(text, str) else None
        case ast.Subscript(
            value=ast.Attribute(attr="_modules" | "__dict__", value=owner),
            slice=key,
            ctx=ast.Store() | ast.Del(),
        ):
            yield owner, beginning(key)
        case ast.Call(
            func=ast.Attribute(attr="update", value=ast.Attribute(attr="_modules" | "__dict__", value=owner))
        ):
            yield owner, None


def beginning(name: ast.expr) -> str | None:
    """The attribute that `setattr` is given; for `f"token_{i}"` how it begins, with a star; else None."""
    match name:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return f"{text}*"
        case ast.BinOp(ast.Constant(value=str(text)), ast.Add()):
            return f"{text}*"
    return None
