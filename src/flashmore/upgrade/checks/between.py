"""What is read later than before, and what may change it in the meantime."""

import ast
import builtins
from collections.abc import Iterator, Sequence

from flashmore.upgrade.checks.functions import (
    called,
    changes_nothing,
    changes_own_memory,
    is_layer,
    keeps_arguments,
)
from flashmore.upgrade.checks.pure import is_inplace_name, stateful
from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.source.operations import MAY_SHARE_MEMORY, METADATA
from flashmore.upgrade.source.scopes import bound_by, claimed_by, given_to, head, last, own_nodes

_METADATA = {each.removeprefix("attr:") for each in METADATA} | {"training", "p"}
_MESSAGES = {"print", "warn", "info", "debug", "warning", "error", "log"}
_CONTEXTS = {"torch.no_grad", "torch.enable_grad", "torch.inference_mode"}
"""What changes nothing before it is entered, by a `with` statement."""
_MEMORY = "changes memory that queries, keys or masks may share"


class Later:
    """Expressions that are read later than before.

    Args:
        read: the expressions, as they stand in the function.
        flow: the function.
        blocks: where its statements stand.
    """

    def __init__(self, read: Sequence[ast.expr], flow: Flow, blocks: Blocks) -> None:
        self.flow = flow
        self.module = flow.module
        self.blocks = blocks
        nodes = [each for one in read for each in ast.walk(one)]
        self.names = {each.id for each in nodes if isinstance(each, ast.Name)}
        self.attributes = {each.attr for each in nodes if isinstance(each, ast.Attribute)}
        self.state = {head(each) for each in nodes if _reads_state(each)} - {"", *flow.module.imports}
        """What they read an attribute or an element of."""
        self.memory = {
            _memory(flow.seen[each]) for each in nodes if isinstance(each, ast.Name) and each in flow.seen
        }

    def disturbed_by(self, node: ast.AST) -> str:
        """What an effect before the new place may do to them; empty if nothing."""
        match node:
            case ast.Yield() | ast.YieldFrom() | ast.Await():
                return "runs other code"
            case ast.Attribute():
                return self._by_store(node)
            case ast.Subscript() if changes_own_memory(node, self.blocks, self.module):
                return ""
            case ast.AugAssign(target=ast.Attribute() as target) if self._is_number(target):
                return self._by_store(target)
            case ast.AugAssign(target=ast.Name(id=name)) if self._is_counter(name):
                return ""
            case ast.AugAssign() | ast.Subscript():
                return _MEMORY
            case ast.Call():
                return self._by_call(node)
        return ""

    def _is_number(self, attribute: ast.Attribute) -> bool:
        """Whether all that is stored in an attribute, apart from what is added to it, are numbers."""
        value = self.flow.seen.get(attribute)
        stored = value.detail if value is not None else None
        return isinstance(stored, Attribute) and kind_of(stored, self.module).name == "number"

    def _is_counter(self, name: str) -> bool:
        """Whether a name only ever has a number that is written down, and what is added to it."""
        counted = {
            id(target)
            for each in self.blocks.places
            if isinstance(each, (ast.Assign, ast.AugAssign)) and isinstance(each.value, ast.Constant)
            for target in (each.targets if isinstance(each, ast.Assign) else [each.target])
            if isinstance(each.value.value, (int, float))
        }
        claimed = (each for each in ast.walk(self.flow.function) if name in claimed_by(each))
        return all(id(each) in counted for each in claimed)

    def _by_store(self, node: ast.Attribute) -> str:
        if node.attr in stateful(self.module):
            return "runs other code"
        if node.attr in ("p", "training") or (
            node.attr in ("data", "requires_grad") and head(node) in self.names
        ):
            return f"changes `{node.attr}`"
        return f"changes what `{node.attr}` means" if node.attr in self.attributes else ""

    def _by_call(self, call: ast.Call) -> str:
        name = last(call.func)
        if self._is_harmless(call, name):
            return ""
        if is_inplace_name(name) or any(each.arg == "out" for each in call.keywords):
            return _MEMORY
        a_layer = isinstance(call.func, ast.Attribute) and is_layer(call.func, self.flow.owner, self.module)
        if a_layer:
            given = {head(each) for each in given_to(call)} & self.state
            heard = (
                given if keeps_arguments(call, self.flow.owner, self.module) else given | self._given(call)
            )
        else:
            heard = self._given(call) | ({head(call.func)} & self.names) | self.state
        if heard:
            return f"may change `{min(heard)}`"
        if shared := self._variables_of_module():
            return f"may change the shared `{min(shared)}`"
        of_effects = not a_layer and self._is_for_its_effects(call)
        return "may change tensors or settings" if of_effects else ""

    def _is_harmless(self, call: ast.Call, name: str) -> bool:
        """Whether a call is a message, a context that is entered, or of a function that only computes."""
        if name in _MESSAGES and name not in stateful(self.module) and name not in self.module.functions:
            return True
        if self.module.qualified(call.func) in _CONTEXTS:
            within = (each for each in self.blocks.places if isinstance(each, ast.With))
            return any(item.context_expr is call for each in within for item in each.items)
        return changes_nothing(call, self.flow.owner, self.module, frozenset(self.attributes))

    def _given(self, call: ast.Call) -> set[str]:
        """The names among a call's arguments whose memory it may reach."""
        names = {each for argument in given_to(call) for each in _shared_names(argument)} - {"self"}
        return {
            each.id
            for argument in given_to(call)
            for each in ast.walk(argument)
            if isinstance(each, ast.Name)
            and each.id in names
            and (each.id in self.names or _memory(self.flow.seen.get(each)) in self.memory)
        }

    def _is_for_its_effects(self, call: ast.Call) -> bool:
        """Whether a call may be there for its effects: nothing takes its result, or its function is known.

        What is known here is not pure. What comes from elsewhere, and has a result, computes something.
        """
        if any(isinstance(each, ast.Expr) and each.value is call for each in self.blocks.places):
            return True
        if called(call, self.flow.owner, self.module) is not None or self.module.qualified(
            call.func
        ).startswith(("torch.", "numpy.")):
            return True
        value = self.flow.seen.get(call.func)
        return value is not None and value.op.startswith("attr:") and isinstance(call.func, ast.Name)

    def _variables_of_module(self) -> set[str]:
        """Names that are neither the function's own nor imported, defined or built in."""
        function, module = self.flow.function, self.module
        own = {each.arg for each in ast.walk(function.args) if isinstance(each, ast.arg)}
        shared = {name for each in ast.walk(function) if isinstance(each, ast.Global) for name in each.names}
        own |= {name for each in own_nodes(function) for name in bound_by(each)} - shared
        return self.names - own - {*module.imports, *module.functions, *module.classes, *dir(builtins)}


def _shared_names(node: ast.AST) -> Iterator[str]:
    """The names whose memory a call may reach through an argument; not those whose shape it is given."""
    if isinstance(node, ast.Attribute) and node.attr in _METADATA:
        return
    if isinstance(node, ast.Name):
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from _shared_names(child)


def _memory(value: Value | None) -> Value | None:
    """The value whose memory another one may be a view of."""
    while value is not None and value.args and value.op in MAY_SHARE_MEMORY:
        value = value.args[0]
    return value


def _reads_state(node: ast.AST) -> bool:
    """Whether an expression reads what another object may change: an attribute or an element."""
    if isinstance(node, ast.Attribute):
        return node.attr not in _METADATA
    return isinstance(node, ast.Subscript)
