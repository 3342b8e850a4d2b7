"""Effects around an attention: they happen as often as before, in the same order, and change no later read.

Calls that are not known to be pure, stores into objects, changes in place, assertions: their sequence in the
function must be the same before and after the edits. What is read later than before must not have changed.
"""

import ast
from collections.abc import Iterator

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.checks.between import Later
from flashmore.upgrade.checks.output import changed_unseen
from flashmore.upgrade.checks.pure import is_inplace_name, is_pure, stateful
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Closure, Value
from flashmore.upgrade.source.inlining import GRAD_MODES
from flashmore.upgrade.source.module import Found, Module
from flashmore.upgrade.source.operations import MAY_SHARE_MEMORY
from flashmore.upgrade.source.replaced import HOOK, hooked
from flashmore.upgrade.source.scopes import Function

_OF_COMPARISONS: dict[type[ast.cmpop], set[str]] = {
    ast.Eq: {"__eq__"}, ast.NotEq: {"__ne__", "__eq__"}, ast.In: {"__contains__"},
    ast.NotIn: {"__contains__"},
    ast.Lt: {"__lt__", "__gt__"}, ast.Gt: {"__lt__", "__gt__"}, ast.LtE: {"__le__", "__ge__"},
    ast.GtE: {"__le__", "__ge__"},
}  # fmt: skip
_DRAWS = {"torch.dropout", "torch.nn.functional.dropout"}


def check_effects(rewriting: Rewriting, changed: str) -> None:
    """Whether a function's effects stay what they were.

    Args:
        rewriting: the rewriting.
        changed: the source with its edits made, without a guard around them.

    Raises:
        Refuse: an effect falls away, is repeated, or changes places with another or with a read.
    """
    found, flow = rewriting.found, rewriting.found.flow
    mine = {id(value.node) for value in (*found.chain, found.final) if value.node is not None}
    mine |= rewriting.ruled_out
    tree = ast.parse(changed)
    old, new = flow.function, rewriting.same_function(tree)
    _compare(effects(old, flow.module), effects(new, Module(tree, flow.module.elsewhere)), mine)
    for test in (guard.node for guard in rewriting.guards if guard.node is not None):
        asked = (f"{name}()" for name in sorted({*_unwritten(test)} & stateful(flow.module)))
        effect = next((said for said, _ in effects(test, flow.module)), None) or next(asked, None)
        if effect is not None:
            what = f"the condition in line {test.lineno} would run twice"
            raise Refuse(f"{what}, and `{effect}` may have side effects")
    _check_given_memory(found)
    _check_operands(rewriting)
    _check_caught(rewriting)
    _check_gradients(rewriting)
    _check_hooks(found)
    _check_helpers(flow, {id(value.node) for value in found.chain if value.inner}, found.chain)
    _check_between(rewriting, mine)


def _check_given_memory(found: Attention) -> None:
    """Refuse an operation that falls away and writes its result into a tensor that it is given."""
    for value in (*found.chain, found.final):
        if "out" in value.named:
            line = getattr(value.node, "lineno", 0)
            raise Refuse(
                f"`out=` in line {line} writes a result into another tensor", "assign the result instead"
            )


def _check_operands(rewriting: Rewriting) -> None:
    """Refuse operands that are changed later behind autograd's back: fused kernels compute weights again."""
    found, final = rewriting.found, rewriting.found.final.statement
    around = rewriting.blocks.ancestors(final) if final is not None else ()
    loops = [each.lineno for each in around if isinstance(each, (ast.For, ast.AsyncFor, ast.While))]
    first = min(loops, default=getattr(found.final.node, "end_lineno", 0) + 1)
    for value in (each.value for each in (found.q, found.k, found.v)):
        while value.op in MAY_SHARE_MEMORY and value.args:
            value = value.args[0]
        line = next((each for each in changed_unseen(found.flow, value) if each >= first), None)
        if line is not None:
            raise Refuse(
                f"line {line} changes an operand where autograd does not notice, and the gradients need it",
                "change a copy of it",
            )


Effect = tuple[str, ast.AST]


def effects(node: ast.AST, module: Module) -> Iterator[Effect]:
    """Every effect in the order of evaluation, with its node."""
    order: list[object] = list(ast.iter_child_nodes(node))
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
        order = [node.value, *(node.targets if isinstance(node, ast.Assign) else [node.target])]
    elif isinstance(node, Function):
        order = list(node.body)
    for child in order:
        if isinstance(child, ast.AST):
            yield from effects(child, module)
    if is_pure(node, module):
        return
    yield _said(node), node


def _said(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        return f"{ast.unparse(node.func)}()"
    return ast.unparse(node.target if isinstance(node, ast.AugAssign) else node).partition("\n")[0]


def _compare(old: Iterator[Effect], new: Iterator[Effect], mine: set[int]) -> None:
    """Of the old effects only the attention's own may be missing, some of which others may be called like."""
    after = [said for said, _ in new]
    found = {0}  # how many of the new effects may be those of the old ones so far
    for said, node in old:
        kept = {count + 1 for count in found if after[count : count + 1] == [said]}
        if not (kept or id(node) in mine):
            line = getattr(node, "lineno", 0)
            raise Refuse(
                f"`{said}` in line {line} would run at a different time, or not at all",
                "move it to its own statement, before the product or after the values",
            )
        found = kept | found if id(node) in mine else kept
    if len(after) not in found:
        raise Refuse(f"`{after[max(found)]}` would run at a different time, or more often")


def _check_helpers(flow: Flow, calls: set[int], chain: set[Value]) -> None:
    """A helper whose call falls away does nothing but its part of the attention."""
    for value in flow.values:
        if value.inner and id(value.node) in calls and value not in chain:
            does = value.op in ("store", "setitem", "statement", "assert") or (
                value.op not in ("const",) and is_inplace_name(value.op)
            )
            if does or value.op in ("append", "extend", "update", "py:print"):
                line = getattr(value.node, "lineno", 0)
                raise Refuse(f"a helper that is called in line {line} does more than compute attention")
    read = {id(closure.node) for _, closure in flow.inlined}
    gone = {id(value.node) for value in chain if value.inner and value.op in ("softmax", "dropout")}
    for call, closure in flow.inlined:
        if id(call) in gone and (said := _more_than_arithmetic(closure, read, flow)):
            line = getattr(call, "lineno", 0)
            raise Refuse(f"a helper that is called in line {line} does more than compute attention: `{said}`")


def _more_than_arithmetic(closure: Closure, read: set[int], flow: Flow) -> str:
    """An effect of a helper's own lines that the graph of values does not show; empty if there is none."""
    module = closure.module
    for said, node in effects(closure.node, module):
        match node:
            case ast.AugAssign() | ast.Subscript() | ast.Assert() | ast.Raise():
                continue  # which are values of the graph, or raise what the lines after them would not see
            case ast.Call(func=ast.Attribute(attr=name)) if is_inplace_name(name):
                continue
            case ast.Call(func=func):
                found = module.definition(module.qualified(func))
                known = found.module.functions.get(found.name) if isinstance(found, Found) else None
                known = module.functions.get(getattr(func, "id", "")) or known
                if known is None and isinstance(func, ast.Attribute) and closure.bound is not None:
                    owner = flow.owners.get(str(closure.bound.detail))
                    known = owner.method(func.attr) if owner is not None else None
                    if kind_of(Attribute("", owner, func.attr), flow.own).name in ("softmax", "identity"):
                        continue
                if (known is not None and id(known) in read) or module.qualified(func) in _DRAWS:
                    continue
        return said
    return ""


def _check_between(rewriting: Rewriting, mine: set[int]) -> None:
    """Whether anything changes between where an operand was read and where it is read now."""
    found, flow, text = rewriting.found, rewriting.found.flow, rewriting.text
    if found.final.node is None:
        return
    block, first, _ = rewriting.region()
    start, end = text.span(block[first])[0], text.span(found.final.node)[0]
    moved = [each for each in rewriting.emission.read if text.span(each)[1] <= end]
    moved += [guard.node for guard in rewriting.guards if guard.node is not None]
    start = min([start, *(text.span(each)[0] for each in moved)])
    own = {id(inner) for each in moved for inner in ast.walk(each)}
    drawn = next((each for each in moved if next(effects(each, flow.module), None) is not None), None)
    for said, node in effects(flow.function, flow.module):
        if id(node) in mine or id(node) in own or not start <= text.span(node)[1] <= end:
            continue
        where = f"`{said}` in line {getattr(node, 'lineno', 0)}"
        if drawn is not None:
            raise Refuse(f"{where} would run before `{ast.unparse(drawn)}`")
        before = [each for each in moved if text.span(each)[1] <= text.span(node)[1]]
        if before and (what := Later(before, flow, rewriting.blocks).disturbed_by(node)):
            raise Refuse(f"{where} {what}, before the values are multiplied")


def _unwritten(test: ast.expr) -> Iterator[str]:
    """The methods that a test may call without a call being written."""
    for node in ast.walk(test):
        if isinstance(node, ast.Subscript):
            yield "__getitem__"
        elif isinstance(node, ast.Attribute):
            yield from ("__getattr__", "__getattribute__")
        elif isinstance(node, ast.Compare):
            yield from (name for each in node.ops for name in _OF_COMPARISONS.get(type(each), ()))
        operands = node.values if isinstance(node, ast.BoolOp) else [test]
        operands = [node.operand] if isinstance(node, ast.UnaryOp) else operands
        if any(isinstance(each, (ast.Name, ast.Attribute, ast.Subscript)) for each in operands):
            yield from ("__bool__", "__len__")


def _check_caught(rewriting: Rewriting) -> None:
    """The fused kernels do not raise what the old lines raise, such as for lengths that do not fit."""
    statement = rewriting.found.final.statement
    handler = rewriting.blocks.handler_of(statement) if statement is not None else None
    if handler is not None:
        raise Refuse(
            f"an exception in these lines is caught in line {handler.lineno}; fused kernels may not raise it"
        )


def _check_gradients(rewriting: Rewriting) -> None:
    """The scores are computed with gradients, or all of the attention is without."""
    flow, final = rewriting.found.flow, rewriting.found.final.statement
    around = {*rewriting.blocks.ancestors(final)} if final is not None else set()
    for value in rewriting.found.chain:
        for each in rewriting.blocks.ancestors(value.statement) if value.statement is not None else ():
            if not isinstance(each, (ast.With, ast.AsyncWith)) or each in around:
                continue
            for item in each.items:
                made = item.context_expr
                name = flow.module.qualified(made.func if isinstance(made, ast.Call) else made)
                if name.rpartition(".")[2] in GRAD_MODES:
                    where = f"`{name}` in line {each.lineno}"
                    raise Refuse(f"the scores are computed under {where}, and the output is not")


def _check_hooks(found: Attention) -> None:
    """A layer that falls away must have no hook."""
    module = found.flow.module
    hooks = hooked(module.tree) if any(map(HOOK.fullmatch, module.attributes)) else {}
    for path, name in uncalled(found).items():
        if name in hooks:
            raise Refuse(f"`{path}` would no longer be called, and line {hooks[name]} registers a hook")


def uncalled(found: Attention) -> dict[str, str]:
    """The attributes between scores and weights, whose layers are no longer called: names by path."""
    details = (term.value.detail for term in found.weights.walk())
    firsts = (detail[0] if isinstance(detail, tuple) else detail for detail in details)
    return {first.path: first.name for first in firsts if isinstance(first, Attribute)}
