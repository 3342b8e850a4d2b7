"""Compilers that take a part of Python: TorchScript, and the tracer of torch.fx."""

import ast
import re
from collections.abc import Iterator

from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import MODULE, Function, bound_by, own_nodes

COMPILERS = re.compile(rb"\bjit\b|\bfx\b|symbolic_trace|feature_extract|_fx\b")
"""A file without any of these calls no such compiler."""
_TRACERS = (
    "torch.fx.Tracer", "torch.ao.quantization.quantize_fx.", "torch.quantization.quantize_fx.",
    "torchvision.models.feature_extraction.",
)  # fmt: skip
_FINFO = re.compile(r"\bfinfo\("), "torch.finfo"
_LIMITS = {
    "TorchScript": (
        _FINFO,
        (re.compile(r"\bis_autocast_enabled\("), "torch.is_autocast_enabled of a device"),
        (re.compile(r"\btype\("), "type()"),
        (re.compile(r"^\s*\w+(, \w+)? = (.*, )?None$", re.MULTILINE), "a name that is None or a tensor"),
    ),
    "torch.fx": (_FINFO, (re.compile(r"\bif [^\n]*\.dtype\b"), "a test of a tensor's dtype")),
}
"""What lines may hold that a compiler does not take."""


def compilers(module: Module, *, decorators: bool) -> Iterator[tuple[str, int]]:
    """The compilers that a file calls, each with the line.

    Args:
        module: the file.
        decorators: whether those count that compile one function of the file alone.
    """
    left_out = {
        node
        for each in ast.walk(module.tree)
        if not decorators and isinstance(each, (ast.FunctionDef, ast.ClassDef))
        for decorator in each.decorator_list
        for node in ast.walk(decorator)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and node not in left_out:
            name = module.qualified(node)
            if name.startswith("torch.jit.script"):
                yield "TorchScript", node.lineno
            elif name.startswith(_TRACERS) or name.endswith(".symbolic_trace"):
                yield "torch.fx", node.lineno


def compilers_of(module: Module, function: Function) -> set[str]:
    """The compilers that a file calls and that may compile one of its functions.

    A decorator compiles what it decorates and what that calls, so the function is left out unless a decorated
    definition mentions it, directly or through others of the file.
    """
    if not COMPILERS.search(" ".join([*module.attributes, *module.imports.values()]).encode()):
        return set()
    found = {name for name, _ in compilers(module, decorators=False)}
    parts = module.tree.body
    for name, line in compilers(module, decorators=True):
        reached = [next(part for part in parts if line <= (part.end_lineno or line))]
        for part in reached:
            said = {getattr(each, "id", getattr(each, "attr", None)) for each in ast.walk(part)}
            reached += [each for each in parts if each not in reached and said & _named(each)]
        if function.name == MODULE or any(each is function for part in reached for each in ast.walk(part)):
            found.add(name)
    return found


def _named(part: ast.stmt) -> set[str]:
    """The names of a module that one of its statements binds."""
    inside = [part] if isinstance(part, (Function, ast.ClassDef)) else own_nodes(part)
    return {name for each in inside for name in bound_by(each)}


def unsupported(compiler: str, old: str, new: str) -> str | None:
    """What a compiler does not support in new lines that the old ones do not have; else None."""
    for pattern, what in _LIMITS[compiler]:
        if pattern.search(new) and not pattern.search(old):
            return what
    return None
