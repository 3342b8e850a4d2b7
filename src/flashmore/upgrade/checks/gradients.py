"""Whose gradients may be laid out in another order of memory, and which lines can tell.

The fused kernels return gradients laid out as (B, T, H, D), where the old products returned contiguous ones.
Every operation that moves dimensions or multiplies matrices comes to the same layout from both.
"""

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import Budget, Exceeded, limited
from flashmore.upgrade.checks.callees import applied, callee
from flashmore.upgrade.checks.output import callers, calls_of, layout_told
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import PRODUCTS, Closure, Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.operations import METADATA, MOVES
from flashmore.upgrade.source.scopes import Function, arguments_of, bound_arguments

_ENDS = MOVES | PRODUCTS | METADATA
_ENDS |= {"rearrange", "linear", "log_softmax", "layer_norm", "group_norm", "const", "global", "missing"}
_ENDS |= {f"layer:{name}" for name in ("Linear", "LayerNorm", "GroupNorm", "Embedding")}
_STEPS = 20_000
"""So much of the search may one function take that makes an operand."""
_GRAD = "torch.autograd.grad"


@dataclass(frozen=True)
class Read:
    """A place that reads how a gradient is laid out.

    Args:
        node: what gives the gradient.
        line: where its layout is read.
        module: the file of that line.
    """

    node: ast.AST
    line: int
    module: Module


def exposed(found: Attention) -> Iterator[tuple[Flow, Value]]:
    """What may get gradients laid out otherwise, from the operands back, in the file's callers too."""
    chain = {*found.chain, found.final}
    starts = {each for value in chain for each in value.inputs()} - chain
    starts |= {each.args[0] for each in starts if each.op in MOVES and each.args}
    ahead, seen = [(found.flow, each) for each in starts], set(starts)
    while ahead:
        flow, value = ahead.pop()
        yield flow, value
        if value.op in _ENDS:
            continue
        before = [(flow, each) for each in (() if _leaf(value) else value.inputs())]
        before += _given(flow, str(value.detail)) if value.op == "param" else _returned(flow, value)
        ahead += [(where, each) for where, each in before if each not in seen]
        seen |= {each for _, each in before}


def _leaf(value: Value) -> bool:
    """Whether nothing is known of what it was made from, or it comes out of a Function."""
    return value.op in ("param", "selfattr") or (value.op == "call" and not value.inner)


def _given(flow: Flow, name: str) -> list[tuple[Flow, Value]]:
    """What the callers of a function in its file pass for an argument."""
    found = []
    for caller in callers(flow):
        for call in calls_of(caller, flow):
            given = bound_arguments(flow.function, call, method=flow.owner is not None).get(name)
            found += [(caller, caller.seen[given])] if given in caller.seen else []
    return found


def _returned(flow: Flow, value: Value) -> list[tuple[Flow, Value]]:
    """What a function of the project returns, or the `forward` of a layer of its, where one is called."""
    called = callee(value, flow.module)
    if called is None or called.function is flow.function or applied(value, flow.module) is not None:
        return []
    with suppress(Exceeded), limited(Budget(_STEPS), _STEPS):
        inside = Flow(called.module, called.owner, called.function).run()
        return [(inside, each.args[0]) for each in inside.values if each.op == "return"]
    return []


def check_gradients(found: Attention) -> tuple[str, ...]:
    """The arguments, attributes and calls whose gradients' layout may change.

    Raises:
        Refuse: lines of the file read the layout of such a gradient.
    """
    names = set()
    for flow, value in exposed(found):
        asked = [value, *(each for each in value.users if each.op != "apply")]
        read = next(filter(None, (read_by(flow, each, value) for each in asked)), None)
        if read is not None:
            where = f"line {read.line}" if read.module is found.flow.module else _place(read)
            raise Refuse(
                f"{where} reads how a gradient is laid out in memory, which fused kernels change",
                "call `.reshape` there instead of `.view`, or `.contiguous()` first",
            )
        if flow is found.flow and _leaf(value):
            names.add(value.name() if value.op == "call" else str(value.detail))
    return tuple(sorted(names))


def _place(read: Read) -> str:
    name = read.module.path.name if read.module.path is not None else "another file"
    return f"{name}, line {read.line},"


def read_by(flow: Flow, value: Value, by: Value | None = None) -> Read | None:
    """Where the layout of the gradient that a value asks for is read.

    Args:
        flow: the function.
        value: a hook's registration, a call of `torch.autograd.grad` or of a Function, or another value.
        by: what must be differentiated by; None for anything.
    """
    line: int | None = None
    module = flow.module
    if value.op == "call" and value.detail == _GRAD:
        inputs = value.get(2, "inputs")
        of = {inputs, *(inputs.args if inputs is not None and inputs.op == "tuple" else ())}
        line = layout_told(flow, value) if by is None or by in of else None
    elif value.op == "retain_grad":
        kept = (each for each in value.args[0].users if each.op == "attr:grad")
        line = next((told for each in kept if (told := layout_told(flow, each)) is not None), None)
    elif value.op == "register_hook" and len(value.args) > 1:
        hook = _function(flow, value.args[1])
        line = told_by(hook, 0, module, None) if hook is not None else None
    elif (made := applied(value, module)) is not None and (backward := made.method("backward")) is not None:
        module = made.module
        line = told_by(backward, 1, module, made)
    return Read(value.node, line, module) if line is not None and value.node is not None else None


def told_by(function: Function | ast.Lambda, first: int, module: Module, owner: Class | None) -> int | None:
    """The line in which a function reads the layout of an argument, from the first that counts on."""
    if isinstance(function, ast.Lambda):
        body: list[ast.stmt] = [ast.Return(function.body, lineno=function.lineno)]
        function = ast.FunctionDef("", function.args, body, [], lineno=function.lineno)
    flow = Flow(module, owner, function).run()
    names = {each.arg for each in arguments_of(function.args)[first:]}
    given = (each for each in flow.values if each.op == "param" and each.detail in names)
    return next((line for each in given if (line := layout_told(flow, each)) is not None), None)


def _function(flow: Flow, value: Value) -> Function | ast.Lambda | None:
    if isinstance(value.detail, Closure):
        return value.detail.node
    return flow.module.functions.get(str(value.detail)) if value.op == "global" else None
