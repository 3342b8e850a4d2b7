"""Where a file takes second derivatives, or forward-mode derivatives: the fused kernels have neither.

PyTorch: https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad.html (`create_graph`),
https://docs.pytorch.org/docs/stable/func.api.html, https://docs.pytorch.org/docs/stable/autograd.html.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import Function, defaults_of, dotted, last
from flashmore.upgrade.text import shown

HINT = re.compile(
    rb"create_graph|gradgradcheck|hessian|\bhvp\b|\bvhp\b|\bjvp\b|jacfwd|jacrev|linearize|forward_ad"
    rb"|gradient_penalty|torch\.func|functorch|forward-mode|\bbackward\(.*,.*,|\bgrad\(.*,.*,.*,.*,"
)
"""A file without any of these words takes none; looked for in its bytes, so that few files are parsed."""
_CALLS = re.compile(
    r"(torch\.func|functorch(\.\w+)*)\.(hessian|jvp|jacfwd|linearize)"
    r"|torch\.autograd\.functional\.(hessian|hvp|vhp|jvp)"
    r"|torch\.autograd(\.gradcheck)?\.gradgradcheck"
    r"|torch\.autograd\.forward_ad\.\w+"
)
_ONCE = re.compile(r"(torch\.func|functorch(\.\w+)*)\.(grad|grad_and_value|jacrev|vjp)")
"""One derivative each; one of them inside another is two."""
_POSITION = {"grad": 4, "backward": 2}
"""Where `create_graph` stands without its name: `grad(outputs, inputs, …)` and `tensor.backward(…)`."""


ADVICE = "leave it, or select the MATH kernel where second derivatives are needed"
"""What somebody can do whose attention is differentiated twice."""


@dataclass(frozen=True)
class Use:
    """A place that takes second derivatives."""

    line: int
    what: str
    """As it is written, such as `create_graph=True`."""
    within: str | None
    """The function or class of the file's top level that it stands in; None outside of all."""
    certain: bool = True
    """Whether it always does so: `create_graph=flag` does where somebody sets the flag."""
    node: ast.AST | None = None
    """Where it stands in the file's tree."""
    layout: bool = False
    """Whether it reads how a first derivative is laid out in memory instead."""

    def differentiated(self) -> tuple[list[ast.expr], set[str]]:
        """The expressions that are differentiated, and the names of what they are differentiated by."""
        if not isinstance(self.node, ast.Call):
            return [], set()
        given = {each.arg: each.value for each in self.node.keywords}
        args = dict(enumerate(self.node.args))
        name = last(self.node.func)
        if name in ("partial", "dict"):  # what is called with it later
            return [], set()
        if name == "backward" and isinstance(self.node.func, ast.Attribute):
            function = dotted(self.node.func).endswith("autograd.backward")
            tensors = args.get(0, given.get("tensors")) if function else self.node.func.value
            return [tensors] if tensors is not None else [], set()
        if name != "grad":
            return [*self.node.args, *given.values()], set()
        outputs, inputs = args.get(0, given.get("outputs")), args.get(1, given.get("inputs"))
        by = inputs.elts if isinstance(inputs, (ast.Tuple, ast.List)) else [inputs]
        names = {each.id for each in by if isinstance(each, ast.Name)}
        return [outputs] if outputs is not None else [], names if len(names) == len(by) else set()


def reason(where: str) -> str:
    """Why a place is refused."""
    return f"fused kernels do not support second derivatives, which are taken here: {where}"


@lru_cache(maxsize=1)  # asked once for every place of a file
def uses(module: Module) -> tuple[Use, ...]:
    """Every such place of a file, in order of its lines."""
    found = []
    for statement in module.tree.body:
        defines = isinstance(statement, (Function, ast.ClassDef))
        name = statement.name if isinstance(statement, (Function, ast.ClassDef)) else None
        for node in ast.walk(statement):
            for what, certain in _of(node, module):
                found.append(Use(getattr(node, "lineno", 0), what, name if defines else None, certain, node))
    return tuple(sorted(found, key=lambda use: use.line))


def _of(node: ast.AST, module: Module) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "create_graph":
                yield from _asked(value, module)
    match node:
        case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value="create_graph"))], value=given):
            yield from _asked(given, module)
    if not isinstance(node, ast.Call):
        return
    for keyword in node.keywords:
        if keyword.arg == "create_graph":
            yield from _asked(keyword.value, module)
        elif isinstance(keyword.value, ast.Constant) and keyword.value.value == "forward-mode":
            yield f'{keyword.arg}="forward-mode"', True
    name = last(node.func)
    at = _POSITION.get(name, len(node.args))
    if at < len(node.args):
        yield from _asked(node.args[at], module, only_constant=True)
    full = module.qualified(node.func)
    if _CALLS.fullmatch(full):
        yield f"{full}()", True
    elif _ONCE.fullmatch(full) and any(_is_derivative(each, module) for each in node.args):
        yield f"{full}() of a derivative", True
    elif "gradient_penalty" in name and name not in _defined(module):
        yield f"{name}()", True


def _asked(value: ast.expr, module: Module, *, only_constant: bool = False) -> Iterator[tuple[str, bool]]:
    """What is given as `create_graph`."""
    if isinstance(value, ast.Constant):
        if value.value is True:
            yield "create_graph=True", True
    elif not only_constant:
        certain = last(value) == "training" or (
            isinstance(value, ast.Name) and value.id in _true_by_default(module)
        )
        yield f"create_graph={shown(value)}", certain


@lru_cache(maxsize=1)
def _true_by_default(module: Module) -> set[str]:
    """Parameters and names of the top level that are True where nobody says otherwise."""
    found = {name for name, value in module.constants.items() if _is_true(value)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.arguments):
            found |= {name for name, default in defaults_of(node).items() if _is_true(default)}
    return found


def _is_true(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def _is_derivative(argument: ast.AST, module: Module) -> bool:
    """Whether a derivative is taken in an expression, or in a function that it names."""
    ahead, seen = [argument], {argument}
    while ahead:
        for node in ast.walk(ahead.pop()):
            if isinstance(node, ast.Call) and _ONCE.fullmatch(module.qualified(node.func)):
                return True
            named = _named(module).get(node.id, []) if isinstance(node, ast.Name) else []
            ahead += [each for each in named if each not in seen]
            seen.update(named)
    return False


@lru_cache(maxsize=1)
def _named(module: Module) -> dict[str, list[ast.AST]]:
    """The functions of a file by their names, in any scope."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(module.tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Lambda() | ast.Call() as made):
                found.setdefault(name, []).append(made)
            case ast.FunctionDef(name=name):
                found.setdefault(name, []).append(node)
    return found


@lru_cache(maxsize=1)
def _defined(module: Module) -> set[str]:
    """The names of the file's functions and methods, whose own lines say what they do."""
    return {node.name for node in ast.walk(module.tree) if isinstance(node, Function)}
