"""Lines that are there to be compared with: they must stay as they are written."""

import ast
import re
from collections.abc import Set
from functools import lru_cache
from pathlib import Path

from flashmore.upgrade.budget import walk
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import last

FUSED = frozenset((
    "scaled_dot_product_attention", "multi_head_attention_forward", "memory_efficient_attention",
    "flex_attention", "flash_attn_func", "flash_attn_varlen_func", "flash_attn_qkvpacked_func",
))  # fmt: skip
"""Functions of PyTorch, xFormers and flash-attn that compute a whole attention."""
_COMPARISONS = {"allclose", "assert_close", "assert_allclose", "assert_almost_equal", "isclose"}
_CLOCKS = {"time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "synchronize", "default_timer"}
_TESTS = re.compile(r"test_.*\.py|.*_test\.py")
"""The files that pytest collects."""


def why_reference(
    module: Module, path: str, function: ast.AST, replacements: frozenset[str] = FUSED
) -> str | None:
    """Why the hand-written lines of a function are a reference; None where they are not known to be one.

    Args:
        module: the file.
        path: its name.
        function: the function.
        replacements: functions that compute what the lines compute.
    """
    timed = _first(function, _CLOCKS)
    if timed is not None and (beside := _first(function, replacements)) is not None:
        return f"line {timed} may time it beside the fused kernel of line {beside}"
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
    return _first(module.tree, _COMPARISONS), _first(module.tree, replacements)


def _first(tree: ast.AST, names: Set[str]) -> int | None:
    """The first line below a node that calls one of these."""
    return min(
        (node.lineno for node in walk(tree) if isinstance(node, ast.Call) and last(node.func) in names),
        default=None,
    )
