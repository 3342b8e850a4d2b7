"""Whose tensors a function works on: they are torch's only where the file's imports say so."""

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache

from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.scopes import Function, head

OTHERS = {
    "aesara", "autograd", "candle", "chainer", "cupy", "cupyx", "dask", "dfdx", "equinox", "flax",
    "haiku", "jax", "jaxlib", "jittor", "keras", "megengine", "mindspore", "minitorch", "mlx", "mxnet",
    "needle", "nnabla", "numpyro", "objax", "oneflow", "optax", "paddle", "pytensor", "tensorflow",
    "tensorflow_probability", "tf_keras", "theano", "thinc", "tinygrad", "trax", "tvm",
}  # fmt: skip
"""Libraries with tensors of their own, many with methods of torch's names."""
ARRAYS = frozenset(("numpy", "scipy"))
"""Fine beside torch for sizes and scales, but what these multiply are no torch tensors."""
_NUMPYS_WORDS = {"axis", "keepdims", "ddof", "dtype"}
_NUMPYS_METHODS = {"mean", "sum", "var", "std", "max", "min", "squeeze"}
"""What an array has, too; torch's own functions are names of its modules."""
ON_TORCH = {
    "accelerate", "detectron2", "diffusers", "fairseq", "fastai", "kornia", "lightning",
    "lightning_fabric", "mmcv", "mmdet", "mmengine", "monai", "open_clip", "peft", "pytorch_lightning",
    "pytorch3d", "timm", "transformers", "xformers",
}  # fmt: skip
"""Libraries whose modules are torch's; a class that inherits from one of theirs works on torch's tensors."""
ADVICE = "import torch in this file, and annotate the tensors as torch.Tensor or inherit from torch.nn.Module"


def not_torchs(flow: Flow, lines: Iterable[ast.AST | None], *, plain: bool = False) -> str | None:
    """Why a function's tensors may be another library's; None where they are torch's.

    Args:
        flow: the function.
        lines: the expressions that are replaced: products and softmaxes, or the calls of a formula.
        plain: whether they are methods and arithmetic, which NumPy may compute as well.
    """
    owner, function, lines = flow.owner, flow.function, [*lines]
    roots = _roots(flow.module.tree)
    everywhere = {root for found in roots.values() for root, _ in found}
    for name, line in _mentioned(owner, function):
        foreign = {root for root, _ in roots.get(name, ())} & OTHERS
        if foreign:
            return f"its tensors may be {min(foreign)}'s: `{name}` in line {line}"
    for root, line in roots.get("*", ()):
        if root in OTHERS:
            return f"its tensors may be {root}'s: line {line} imports all names of {root}"
    for node in lines:
        name = head(node.func) if isinstance(node, ast.Call) else ""
        if {root for root, _ in roots.get(name, ())} & ARRAYS:
            return f"`{name}` multiplies arrays, not torch tensors"
    if _says_torch(roots, owner, function):
        return None
    others = sorted(everywhere & OTHERS)
    if "torch" not in everywhere:
        return "the file does not import torch: its tensors may be another library's"
    if others:
        return (
            f"the file imports torch and {others[0]}, and this function does not show whose tensors it takes"
        )
    arrays = sorted(everywhere & ARRAYS) if plain and _may_be_numpys(lines) else []
    if arrays:
        return f"the file imports torch and {arrays[0]}, and these lines do not show whose tensors they take"
    return None


def _may_be_numpys(lines: Iterable[ast.AST | None]) -> bool:
    """Whether methods and arithmetic are all such that arrays have them, too."""
    calls = [each for each in lines if isinstance(each, ast.Call)]
    words = {word.arg for call in calls for word in call.keywords}
    names = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
    return words <= _NUMPYS_WORDS and names <= _NUMPYS_METHODS


@lru_cache(maxsize=1)  # of the file that is searched, not once for each of its places
def _roots(tree: ast.Module) -> dict[str, set[tuple[str, int]]]:
    """By local name, the libraries that it is imported from, with the lines; "*" for all names of one."""
    found: dict[str, set[tuple[str, int]]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                root = each.name.split(".")[0]
                found.setdefault(each.asname or root, set()).add((root, node.lineno))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for each in node.names:
                found.setdefault(each.asname or each.name, set()).add(
                    (node.module.split(".")[0], node.lineno)
                )
    return found


def _mentioned(owner: Class | None, function: Function) -> Iterator[tuple[str, int]]:
    """The names in a function, its annotations and decorators, and the classes that its own inherits from."""
    for base in _bases(owner):
        yield from ((each.id, each.lineno) for each in ast.walk(base) if isinstance(each, ast.Name))
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, (ast.arg, ast.AnnAssign)) and isinstance(node.annotation, ast.Constant):
            yield str(node.annotation.value).split(".")[0].strip(), node.lineno


def _bases(owner: Class | None) -> Iterator[ast.expr]:
    for each in owner.line if owner is not None else ():
        yield from each.node.bases


def _says_torch(roots: dict[str, set[tuple[str, int]]], owner: Class | None, function: Function) -> bool:
    """Whether the function names torch itself, or its class inherits from torch's or from one built on it."""
    for name, _ in _mentioned(owner, function):
        if {root for root, _ in roots.get(name, ())} == {"torch"}:
            return True
    return any(
        {root for root, _ in roots.get(name, ())} & ON_TORCH and not name.startswith(("TF", "Flax"))
        for name in map(head, _bases(owner))
    )
