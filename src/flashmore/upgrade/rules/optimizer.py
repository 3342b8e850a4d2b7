"""FM003 unfused-optimizer: Adam and AdamW without `fused=True`, which updates all weights in one kernel."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import limited
from flashmore.upgrade.checks.compiled import require_compilable
from flashmore.upgrade.edits import edited
from flashmore.upgrade.rules.advice import TEST
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.site import Edit, Fragment, Input, Site, Verdict
from flashmore.upgrade.source.called import Called, calls
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import last
from flashmore.upgrade.text import shown

CODE = "FM003"
PARAMETERS = ("params", "lr", "betas", "eps", "weight_decay", "amsgrad")
"""Those that may be given without a name."""
_NAME = re.compile(r"torch\.optim\.(?:(?:adam|adamw|sgd)\.)?(Adam|AdamW|SGD)")
_FLAGS = ("amsgrad", "maximize", "decoupled_weight_decay")
_AFTER = re.compile(r"(,?)([^\S\r\n]*(?:#[^\r\n]*)?[\r\n]+)")
"""What follows an argument that ends its line: a comma, a comment."""
_EXCLUSIVE = ("foreach", "capturable", "differentiable")
"""Options that choose another implementation."""
_COMPLEX = ("cfloat", "cdouble", "complex64", "complex128")
_ASSUMED = (
    "its parameters are floating-point tensors on the CPU or on a CUDA, MPS or XPU device",
    "each gradient is laid out in memory as its parameter, without gaps (not a strided view)",
    "no gradient is sparse",
)
_SGD = "fused SGD on the CPU leaves most 16-bit parameters as they are (pytorch/pytorch#191763)"
_NOTE = "loading an optimizer state saved before this change restores fused=None"


def find(_: Rule, parsed: Parsed) -> Iterator[Site]:
    """Every such optimizer that a file makes, tests aside."""
    if TEST.fullmatch(Path(parsed.path).name):
        return
    with limited(parsed.budget):
        for called in calls(parsed.module):
            if (name := _NAME.fullmatch(called.full)) is not None:
                yield _site(parsed, called, name[1])


def _site(parsed: Parsed, called: Called, name: str) -> Site:
    node = called.node

    def site(verdict: Verdict, reason: str, advice: str = "") -> Site:
        end = node.end_lineno or node.lineno
        return Site(
            parsed.path, node.lineno, end, called.symbol, verdict, reason, advice, rule=name, code=CODE
        )

    if (how := _fused(parsed.module, called)) is not None:
        return site("already fused", how)
    try:
        _check(parsed, node)
        if name == "SGD":
            raise Refuse(_SGD, "add fused=True yourself, if all parameters are float32 or on a GPU")
        edits = (_edit(parsed, node),)
        require_compilable(edited(parsed.text.source, edits))
    except Refuse as refusal:
        return site("refused", refusal.reason, refusal.advice)
    return replace(
        site("rewritten", f"`{name}` without `fused=True` makes several passes over the parameters"),
        edits=edits,
        assumptions=_ASSUMED,
        notes=(_NOTE,),
        fragment=_fragment(parsed, node, name),
    )


def _fused(module: Module, called: Called) -> str | None:
    """How a call chooses the fused implementation already; None where it does not."""
    for keyword in called.node.keywords:
        value = keyword.value
        if keyword.arg == "fused" and not (isinstance(value, ast.Constant) and value.value in (False, None)):
            return f"`fused={ast.unparse(value)}` is given"
        if keyword.arg is None and isinstance(value, ast.Name):
            scopes: tuple[ast.AST, ...] = (*called.within, module.tree)
            if any(_sets_fused(node, value.id) for scope in scopes for node in ast.walk(scope)):
                return f"`**{value.id}` chooses it"
    return None


def _sets_fused(node: ast.AST, name: str) -> bool:
    """`extra = dict(fused=True) if available else {}`, `extra["fused"] = True`."""
    match node:
        case ast.Assign(targets=[ast.Name(id=target)], value=value):
            keys = (key for each in ast.walk(value) if isinstance(each, ast.Dict) for key in each.keys)
            named = (each.arg for each in ast.walk(value) if isinstance(each, ast.keyword))
            said = any(isinstance(key, ast.Constant) and key.value == "fused" for key in keys)
            return target == name and (said or "fused" in named)
        case ast.Assign(
            targets=[ast.Subscript(value=ast.Name(id=target), slice=ast.Constant(value="fused"))]
        ):
            return target == name
    return False


def _check(parsed: Parsed, node: ast.Call) -> None:
    """Refuse where the documentation excludes `fused`, or nothing says that it does not."""
    for keyword in node.keywords:
        text = shown(keyword.value)
        if keyword.arg is None:
            raise Refuse(f"`**{text}` may hold fused, foreach or capturable", "add fused=True to it yourself")
        unset = isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None)
        if keyword.arg == "fused":
            raise Refuse(f"`fused={text}` is given")
        if keyword.arg in _EXCLUSIVE and not unset:
            raise Refuse(f"`{keyword.arg}={text}` chooses another implementation")
    if any(isinstance(each, ast.Starred) for each in node.args):
        raise Refuse("its arguments are not written out", "add fused=True yourself")
    if not node.args and not any(each.arg == "params" for each in node.keywords):
        raise Refuse("it is given no parameters")
    for each in ast.walk(parsed.module.tree):
        match each:
            case ast.keyword(arg="sparse", value=ast.Constant(value=True)):
                raise Refuse(
                    f"line {each.value.lineno} makes sparse gradients, which `fused` does not support"
                )
            case ast.Call(func=func, lineno=line) if last(func) == "Parameter" and any(
                isinstance(one, ast.Attribute) and one.attr in _COMPLEX for one in ast.walk(each)
            ):
                raise Refuse(f"line {line} makes a complex parameter, which `fused` does not support")
            case ast.Attribute(attr="register_step_pre_hook", lineno=line):
                raise Refuse(
                    f"line {line} sees gradients before a step: under a GradScaler `fused` divides them later"
                )
            case ast.Import(names=names) if any(a.name.split(".")[0] == "torch_xla" for a in names):
                raise Refuse("the file uses XLA, for which there is no fused optimizer")
            case ast.ImportFrom(module=str(name)) if name.split(".")[0] == "torch_xla":
                raise Refuse("the file uses XLA, for which there is no fused optimizer")


def _edit(parsed: Parsed, node: ast.Call) -> Edit:
    """`fused=True` behind the last argument, on a line of its own where that has one."""
    text = parsed.text
    given: list[ast.AST] = [*node.args, *node.keywords]
    final = max(given, key=lambda each: text.span(each)[1])
    start, end = text.span(final)
    if isinstance(final, ast.GeneratorExp) and text.source[end - 1] == ")" and text.span(node)[1] == end:
        return Edit(start, end, f"({text.source[start:end]}, fused=True)")  # whose parentheses are the call's
    closing = text.span(node)[1] - 1
    while text.source[end:closing].lstrip()[:1] == ")":  # of an argument in parentheses
        end = text.source.index(")", end) + 1
    first = text.starts[final.lineno - 1]  # type: ignore[attr-defined]
    own = not text.source[first:start].strip() and node.func.end_lineno != final.lineno  # type: ignore[attr-defined]
    if not own:
        return Edit(end, end, ", fused=True")
    below = text.starts[text.offset_line(end) + 1]
    after = _AFTER.fullmatch(text.source[end:below])
    if after is None:  # the closing parenthesis stands there
        return Edit(end, end, f",{text.newline}{text.indent(final)}fused=True")
    line = f"{text.indent(final)}fused=True{after[1]}{text.newline}"
    return Edit(end, below, f",{after[2]}{line}")


def _fragment(parsed: Parsed, node: ast.Call, name: str) -> Fragment | None:
    """A few steps of the optimizer with the same options, on one matrix."""
    inputs = [
        Input("weight", "parameters", "tensor", ("L", "D")),
        Input("gradient", "gradients", "tensor", ("L", "D")),
    ]
    options = dict(zip(PARAMETERS, node.args, strict=False))
    options |= {each.arg: each.value for each in node.keywords if each.arg is not None}
    written = []
    for option, value in options.items():
        if option == "params" or option in ("fused", *_EXCLUSIVE):
            continue
        if option not in (*PARAMETERS, *_FLAGS):
            return None
        written.append(f"{option}={_option(option, value, inputs, parsed)}")
    given = ", ".join(each.name for each in inputs)

    def side(side: str, *more: str) -> str:
        made = f"torch.optim.{name}({', '.join(['parameters', *written, *more])})"
        return f"def {side}({given}):\n    return trained(lambda parameters: {made}, weight, gradient)\n"

    return Fragment(tuple(inputs), side("old"), side("new", "fused=True"), differentiable=False)


def _option(option: str, value: ast.expr, inputs: list[Input], parsed: Parsed) -> str:
    """A literal as it is; anything else as an input of the test."""
    try:
        return repr(ast.literal_eval(value))
    except (ValueError, TypeError, SyntaxError):
        pass
    source = parsed.text.of(value)
    if option in _FLAGS:
        inputs.append(Input(option, source, "flag", None, "bool"))
        return option
    if option != "betas":
        inputs.append(Input(option, source, "number", None))
        return option
    parts = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == 2 else [value, value]
    return f"({', '.join(_option(f'beta{n}', each, inputs, parsed) for n, each in enumerate(parts, 1))})"


RULE = Rule(
    CODE,
    "unfused-optimizer",
    "Use the fused implementation of Adam and AdamW.",
    "https://docs.pytorch.org/docs/stable/optim.html#algorithms",
    r"\b(Adam|AdamW|SGD)\b",
    find,
    needs=(("fused=True", "2.4"),),
    setup=True,
)
