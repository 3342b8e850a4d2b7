"""Lines that are there to be compared with: they must stay as they are written."""

import ast
import re
from functools import lru_cache
from pathlib import Path

from flashmore.upgrade.source.module import Module

FUSED = frozenset((
    "scaled_dot_product_attention", "multi_head_attention_forward", "memory_efficient_attention",
    "flex_attention", "flash_attn_func", "flash_attn_varlen_func", "flash_attn_qkvpacked_func",
))  # fmt: skip
"""Functions of PyTorch, xFormers and flash-attn that compute a whole attention."""
_COMPARISONS = {"allclose", "assert_close", "assert_allclose", "assert_almost_equal", "isclose"}
_TESTS = re.compile(r"test_.*\.py|.*_test\.py")
"""The files that pytest collects."""


def why_reference(module: Module, path: str, replacements: frozenset[str] = FUSED) -> str | None:
    """Why the hand-written lines of a file are a reference; None where they are not known to be one.

    Args:
        module: the file.
        path: its name.
        replacements: functions that compute what the lines compute.
    """
    compared, fused = _calls(module, replacements)
    if compared is None:
        return None
    if _TESTS.fullmatch(Path(path).name):
        return f"line {compared} of this test may compare with it"
    if fused is not None:
        return f"line {compared} may compare it with the fused kernel of line {fused}"
    return None


def why_fallback(module: Module, function: str) -> str | None:
    """Why a function has to work where PyTorch has no fused attention; None where it does not.

    A `try`, an `if` or an assignment outside of functions chooses between the two.
    """
    for statement in module.tree.body:
        if isinstance(statement, ast.Try | ast.If | ast.Assign):
            choice = statement.value if isinstance(statement, ast.Assign) else statement
            named = {each for node in ast.walk(choice) for each in _named(node)}
            if {"scaled_dot_product_attention", function} <= named:
                return f"line {statement.lineno} uses it where PyTorch has no fused attention"
    return None


def _named(node: ast.AST) -> tuple[object, ...]:
    match node:
        case (
            ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=name)
            | ast.alias(name=name) | ast.FunctionDef(name=name)
        ):  # fmt: skip
            return (name,)
    return ()


@lru_cache(maxsize=1)  # asked once for every place of a file
def _calls(module: Module, replacements: frozenset[str]) -> tuple[int | None, int | None]:
    """The lines of the first comparison of tensors, and of the first call of a replacement."""
    lines: dict[bool, int] = {}
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if (
                name in replacements | _COMPARISONS
            ):
                fused = name in replacements
                lines[fused] = min(node.lineno, lines.get(fused, node.lineno))
    return lines.get(False), lines.get(True)
