"""Attributes that may be others than their classes say."""

import ast


def replaced(tree: ast.Module) -> set[str | None]:
    """Attributes that are stored on something else than `self`, or by name.

    A name with a star at its end stands for all names that begin so; None for all names.
    """
    found: set[str | None] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name, ctx=ast.Store() | ast.Del()):
                on_self = isinstance(value, ast.Name) and value.id == "self"
                found |= set() if on_self and isinstance(node.ctx, ast.Store) else {name}
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[_, attribute, *_]):
                found.add(_beginning(attribute))
            case ast.Call(
                func=ast.Attribute(attr="__setattr__" | "__delattr__", value=ast.Name(id="object"))
            ):
                found.add(None)
            case ast.Call(
                func=ast.Attribute(attr="add_module" | "register_module", value=value),
                args=[attribute, *_],
            ):
                on_self = isinstance(value, ast.Name) and value.id == "self"
                found |= set() if on_self else {_beginning(attribute)}
            case ast.Subscript(
                value=ast.Attribute(attr="_modules" | "__dict__"), ctx=ast.Store() | ast.Del()
            ):
                found.add(None)
            case ast.Call(
                func=ast.Attribute(attr="update", value=ast.Attribute(attr="_modules" | "__dict__"))
            ):
                found.add(None)
    return found


def _beginning(name: ast.expr) -> str | None:
    """The attribute that `setattr` is given; for `f"token_{i}"` how it begins, with a star."""
    match name:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return f"{text}*"
    return None
